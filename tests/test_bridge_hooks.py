"""The hooks of one bridged layer: what they are shown, what an edit does, and that looking does
nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from ropebridge import HookNeverFired, attach
from ropebridge_spec import axis_sizes, hook_order, shape_of

pytestmark = pytest.mark.slow

ORDER = [
    "hook_in", "hook_q", "hook_k", "hook_v", "hook_q_normed", "hook_k_normed", "hook_cos",
    "hook_sin", "hook_rot_q", "hook_rot_k", "hook_attn_scores", "hook_pattern", "hook_z",
    "hook_out",
]  # fmt: skip
ALWAYS = [name for name in ORDER if not name.endswith("normed")]
DIFFERENTIABLE = [name for name in ALWAYS if name not in ("hook_cos", "hook_sin")]
LATE = {"hook_attn_scores", "hook_pattern"}


def nudge(tensor: Tensor) -> Tensor:
    """An affine edit: a mere shift of scores would be invisible to softmax, a mere product of -inf
    a NaN."""
    return torch.where(tensor.isfinite(), tensor * 1.25 + 0.01, tensor)


def nudge_in_place(tensor: Tensor, hook: Any) -> None:
    tensor.copy_(nudge(tensor))


def look(tensor: Tensor, hook: Any) -> None:
    """A hook that changes nothing."""


def wipe(tensor: Tensor, hook: Any) -> None:
    tensor.zero_()


def run(bridge: Any, inputs: dict[str, Any], **hooks: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """One call with hooks by name; its output, and every stage that was recorded after them."""
    kept: dict[str, Tensor] = {}
    handles = [bridge.hook_points[name].add_hook(fn) for name, fn in hooks.items()]
    handles += [
        point.add_hook(
            lambda tensor, hook: kept.__setitem__(hook.spec.name, tensor.detach().clone())
        )
        for point in bridge.hook_points.values()
    ]
    out, _ = bridge(**inputs)
    for handle in handles:
        handle.remove()
    return out, kept


def output(bridge: Any, inputs: dict[str, Any], **hooks: Any) -> Tensor:
    """One call in which only these hooks are there."""
    handles = [bridge.hook_points[name].add_hook(fn) for name, fn in hooks.items()]
    out, _ = bridge(**inputs)
    for handle in handles:
        handle.remove()
    return out


@pytest.fixture
def llama_inputs(llama: Any) -> Any:
    return llama.get_random_inputs(2, 9, seed=0)


# ---- shape, order ----


def test_every_hook_has_the_shape_and_dtype_of_the_contract(bridge: Any) -> None:
    inputs = bridge.get_random_inputs(2, 9, seed=0, dtype=torch.float32)
    _, kept = run(bridge, inputs)
    sizes = axis_sizes(bridge.variant, batch=2, pos=9, key=9)
    assert {name: tuple(tensor.shape) for name, tensor in kept.items()} == {
        spec.name: shape_of(spec, sizes) for spec in hook_order(bridge.variant)
    }
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}


def test_watched_hooks_fire_in_contract_order(bridge: Any) -> None:
    _, kept = run(bridge, bridge.get_random_inputs(2, 9, seed=0))
    assert list(kept) == [name for name in ORDER if name in bridge.hook_points]


@pytest.mark.parametrize("name", ALWAYS)
def test_a_single_watched_hook_fires_exactly_once(llama: Any, llama_inputs: Any, name: str) -> None:
    fired: list[str] = []
    output(llama, llama_inputs, **{name: lambda tensor, hook: fired.append(hook.name)})
    assert fired == [f"blocks.0.attn.{name}"]


# ---- looking ----


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", [name for name in ALWAYS if name not in LATE])
def test_looking_at_what_the_kernel_does_not_make_gives_the_same_bits(
    bridge: Any, name: str, grad: bool
) -> None:
    inputs = bridge.get_random_inputs(2, 9, seed=0, left_padding=2)
    with torch.set_grad_enabled(grad):
        assert torch.equal(
            output(bridge, inputs, **{name: lambda tensor, hook: None}), output(bridge, inputs)
        )


@pytest.mark.parametrize("pos", [9, 300], ids=["one_block", "three_blocks"])
@pytest.mark.parametrize("layer", [0, 1], ids=["first_layer", "second_layer"])
@pytest.mark.parametrize("mask", ["explicit_mask", "no_mask"])
@torch.no_grad()
def test_the_watched_path_agrees_with_the_unwatched_one(
    bridge_layer: Any, family: str, layer: int, pos: int, mask: str
) -> None:
    bridge = bridge_layer(family, layer, requires_attention_mask=mask == "explicit_mask")
    inputs = bridge.get_random_inputs(2, pos, seed=0)
    unwatched = output(bridge, inputs)
    watched = output(
        bridge,
        inputs,
        hook_attn_scores=lambda tensor, hook: None,
        hook_pattern=lambda tensor, hook: None,
    )
    torch.testing.assert_close(watched, unwatched, rtol=1e-5, atol=2e-6)


# ---- editing ----


@pytest.mark.parametrize("how", ["replaced", "in_place"])
@pytest.mark.parametrize("name", ALWAYS)
@torch.no_grad()
def test_an_edit_leaves_earlier_stages_alone_and_moves_later_ones(
    bridge: Any, name: str, how: str
) -> None:
    inputs = bridge.get_random_inputs(2, 9, seed=0, left_padding=2)
    _, plain = run(bridge, inputs)
    out, edited = run(
        bridge,
        inputs,
        **{name: nudge_in_place if how == "in_place" else lambda tensor, hook: nudge(tensor)},
    )
    stages = list(plain)
    before, at, after = stages[: stages.index(name)], name, stages[-1]
    assert [stage for stage in before if not torch.equal(edited[stage], plain[stage])] == []
    assert torch.equal(edited[at], nudge(plain[at]))
    assert not torch.allclose(edited[after], plain[after])
    assert torch.equal(out, edited["hook_out"])


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", ALWAYS)
def test_an_edit_in_place_is_the_same_as_a_replacement(bridge: Any, name: str, grad: bool) -> None:
    inputs = bridge.get_random_inputs(2, 9, seed=0)
    with torch.set_grad_enabled(grad):
        in_place = output(bridge, inputs, **{name: nudge_in_place})
        replaced = output(bridge, inputs, **{name: lambda tensor, hook: nudge(tensor)})
    assert torch.equal(in_place, replaced)


@pytest.mark.parametrize("name", ALWAYS)
def test_the_gradient_under_an_edit_in_place_is_that_under_a_replacement(
    bridge: Any, name: str
) -> None:
    """Softmax and the fused kernel keep what they made for the backward pass: an edit must not
    reach that."""

    def gradient(edit: Any) -> Tensor:
        inputs = bridge.get_random_inputs(2, 9, seed=0, left_padding=2)
        inputs["hidden_states"].requires_grad_()
        output(bridge, inputs, **{name: edit}).square().sum().backward()
        return inputs["hidden_states"].grad

    torch.testing.assert_close(
        gradient(nudge_in_place), gradient(lambda tensor, hook: nudge(tensor)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", ["hook_in", "hook_cos", "hook_sin"])
def test_an_edit_in_place_does_not_reach_what_the_caller_holds(bridge: Any, name: str) -> None:
    inputs = bridge.get_random_inputs(2, 9, seed=0)
    cos, sin = inputs["position_embeddings"]
    held = {"hook_in": inputs["hidden_states"], "hook_cos": cos, "hook_sin": sin}[name]
    before = held.clone()
    output(bridge, inputs, **{name: nudge_in_place})
    assert torch.equal(held, before)


@pytest.mark.parametrize("path", ["fused", "explicit"])
@torch.no_grad()
def test_a_head_zeroed_in_z_is_missing_from_the_output_and_no_other(bridge: Any, path: str) -> None:
    inputs = bridge.get_random_inputs(2, 9, seed=0)

    def zero_head(tensor: Tensor, hook: Any) -> None:
        tensor[:, :, 4] = 0

    look = {"hook_pattern": lambda tensor, hook: None} if path == "explicit" else {}
    _, plain = run(bridge, inputs)
    share = plain["hook_z"][:, :, 4] @ bridge.W_O[4]
    ablated = output(bridge, inputs, hook_z=zero_head, **look)
    torch.testing.assert_close(ablated, plain["hook_out"] - share, rtol=1e-4, atol=2e-5)
    assert share.abs().max() > 0.01


@torch.no_grad()
def test_a_key_edit_moves_only_the_heads_of_its_group(bridge_layer: Any) -> None:
    bridge = bridge_layer("llama")
    inputs = bridge.get_random_inputs(2, 9, seed=0)

    def edit(tensor: Tensor, hook: Any) -> None:
        tensor[:, :, 1] *= 3

    _, plain = run(bridge, inputs)
    _, edited = run(bridge, inputs, hook_rot_k=edit)
    moved = (edited["hook_z"] != plain["hook_z"]).flatten(0, 1).any(0).any(-1)
    assert moved.tolist() == [False, False, False, True, True, True]


@pytest.mark.parametrize(
    ("stage", "later"),
    [
        ("hook_k", "hook_rot_k"),
        ("hook_rot_q", "hook_attn_scores"),
        ("hook_attn_scores", "hook_pattern"),
        ("hook_pattern", "hook_z"),
    ],
)
@torch.no_grad()
def test_an_edit_at_one_position_reaches_only_what_reads_it(
    llama: Any, llama_inputs: Any, stage: str, later: str
) -> None:
    """The last position is edited: nothing that an earlier query sees may move."""

    def edit(tensor: Tensor, hook: Any) -> None:
        last = (slice(None), -1) if "pos" in hook.spec.axes else (slice(None), slice(None), -1)
        tensor[last] = nudge(tensor[last])

    _, plain = run(llama, llama_inputs)
    _, edited = run(llama, llama_inputs, **{stage: edit})
    moved = edited["hook_out"] != plain["hook_out"]
    assert not moved[:, :-1].any()
    assert moved[:, -1].any()
    assert not torch.equal(edited[later], plain[later])


def test_a_pattern_set_by_hand_is_what_mixes_the_values(llama: Any, llama_inputs: Any) -> None:
    """Each query made to read position 0 alone gets that position's value."""

    def first_key(tensor: Tensor, hook: Any) -> Tensor:
        chosen = torch.zeros_like(tensor)
        chosen[..., 0] = 1.0
        return chosen

    _, kept = run(llama, llama_inputs, hook_pattern=first_key)
    wanted = kept["hook_v"][:, :1].repeat_interleave(3, dim=2).expand_as(kept["hook_z"])
    torch.testing.assert_close(kept["hook_z"], wanted, rtol=0, atol=0)


def test_olmo2_leaves_the_residual_stream_alone_under_an_edit_of_hook_in(
    build: Any, tokens: Tensor
) -> None:
    """Its attention is given the residual stream itself; only the attention's own output may move
    it."""
    from ropebridge import attach

    model: Any = build("olmo2")
    block = model.model.layers[0]
    residuals: list[Tensor] = []
    block.self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: residuals.append(kwargs["hidden_states"]), with_kwargs=True
    )

    with attach(model) as bridged, torch.no_grad():
        bridged.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_in", wipe)])
    assert torch.equal(residuals[0], model.model.embed_tokens(tokens))


@pytest.mark.parametrize("name", ["hook_cos", "hook_sin"])
@torch.no_grad()
def test_a_table_edited_in_one_layer_is_whole_in_the_next(
    build: Any, tokens: Tensor, family: str, name: str
) -> None:

    with attach(build(family)) as bridged:
        plain = bridged.run_with_cache(tokens, names_filter=f"blocks.1.attn.{name}")[1]
        with bridged.hooks([(f"blocks.0.attn.{name}", wipe)]):
            edited = bridged.run_with_cache(tokens, names_filter=f"blocks.1.attn.{name}")[1]
    assert torch.equal(plain[f"blocks.1.attn.{name}"], edited[f"blocks.1.attn.{name}"])


# ---- gradients ----


@pytest.mark.parametrize("path", ["fused", "explicit"])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_gradient_retained_at_a_hook_is_the_derivative_by_it(
    bridge: Any, name: str, path: str
) -> None:
    """GRAD-1. Against a finite difference in float64 along a random direction; NaN and None both
    fail."""
    bridge.original_component.double()
    inputs = bridge.get_random_inputs(2, 7, seed=0, dtype=torch.float64)
    held: list[Tensor] = []
    direction: list[Tensor] = []

    def hold(tensor: Tensor, hook: Any) -> None:
        tensor.retain_grad()
        held.append(tensor)
        draw = torch.Generator().manual_seed(5)
        noise = torch.randn(tensor.shape, generator=draw, dtype=tensor.dtype)
        direction.append(torch.where(tensor.isfinite(), noise, 0.0))

    look = (
        {"hook_pattern": lambda tensor, hook: None}
        if path == "explicit" and name != "hook_pattern"
        else {}
    )
    inputs["hidden_states"].requires_grad_()
    output(bridge, inputs, **{name: hold}, **look).square().sum().backward()
    slope = float((held[0].grad.nan_to_num() * direction[0]).sum())

    def along(step: float) -> float:
        with torch.no_grad():
            return float(
                output(
                    bridge,
                    inputs,
                    **{name: lambda tensor, hook: tensor + step * direction[0]},
                    **look,
                )
                .square()
                .sum()
            )

    step = 1e-5
    assert slope == pytest.approx((along(step) - along(-step)) / (2 * step), rel=2e-4)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_backward_hook_is_shown_the_gradient_and_may_replace_it(bridge: Any, name: str) -> None:
    """GRAD-1."""
    inputs = bridge.get_random_inputs(2, 7, seed=0)
    x = inputs["hidden_states"].requires_grad_()
    shown: list[Tensor] = []

    def stop(gradient: Tensor, hook: Any) -> Tensor:
        shown.append(gradient)
        return torch.zeros_like(gradient)

    with bridge.hook_points[name].add_hook(stop, dir="bwd"):
        out, _ = bridge(**inputs)
        out.square().sum().backward()
    assert len(shown) == 1
    assert shown[0].any()
    stops_all = name in ("hook_in", "hook_out", "hook_z")
    assert bool(x.grad.any()) is not stops_all


@pytest.mark.parametrize("name", ["hook_rot_q", "hook_pattern", "hook_z"])
def test_a_backward_hook_follows_what_a_forward_hook_put_in_place(
    llama: Any, llama_inputs: Any, name: str
) -> None:
    llama_inputs["hidden_states"].requires_grad_()
    put: list[Tensor] = []

    def replace(tensor: Tensor, hook: Any) -> Tensor:
        put.append(nudge(tensor))
        put[0].retain_grad()
        return put[0]

    shown: list[Tensor] = []
    point = llama.hook_points[name]
    with (
        point.add_hook(replace),
        point.add_hook(lambda gradient, hook: shown.append(gradient), dir="bwd"),
    ):
        llama(**llama_inputs)[0].square().sum().backward()
    assert torch.equal(shown[0], put[0].grad)


def test_backward_hooks_see_what_earlier_ones_left(llama: Any, llama_inputs: Any) -> None:
    llama_inputs["hidden_states"].requires_grad_()
    point = llama.hook_points["hook_z"]
    shown: list[Tensor] = []
    with (
        point.add_hook(lambda gradient, hook: gradient * 0 + 3.0, dir="bwd"),
        point.add_hook(lambda gradient, hook: shown.append(gradient), dir="bwd"),
    ):
        llama(**llama_inputs)[0].sum().backward()
    assert shown[0].eq(3.0).all()


def test_a_backward_hook_where_gradients_are_off_is_an_error(llama: Any, llama_inputs: Any) -> None:
    llama.hook_points["hook_z"].add_hook(lambda gradient, hook: None, dir="bwd")
    message = (
        r"^the backward hook at 'blocks\.0\.attn\.hook_z' cannot fire: no gradient flows through"
        r" this tensor\n  gradients are off here: run the model outside"
    )
    with torch.no_grad(), pytest.raises(HookNeverFired, match=message):
        llama(**llama_inputs)


def test_a_backward_hook_where_nothing_requires_a_gradient_is_an_error(
    llama: Any, llama_inputs: Any
) -> None:
    llama.original_component.requires_grad_(False)
    llama.hook_points["hook_z"].add_hook(lambda gradient, hook: None, dir="bwd")
    with pytest.raises(
        HookNeverFired,
        match=(
            r"cannot fire: no gradient flows through this tensor\n  let the model's input, or a"
            r" weight before this point, require a gradient$"
        ),
    ):
        llama(**llama_inputs)


# ---- coming and going ----


def test_prepend_puts_a_hook_before_those_that_are_there(llama: Any, llama_inputs: Any) -> None:
    called: list[str] = []
    point = llama.hook_points["hook_z"]
    point.add_hook(lambda tensor, hook: called.append("first"))
    point.add_hook(lambda tensor, hook: called.append("prepended"), prepend=True)
    point.add_hook(lambda tensor, hook: called.append("last"))
    llama(**llama_inputs)
    assert called == ["prepended", "first", "last"]


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_a_handle_takes_its_own_hook_away_and_no_other(llama: Any, direction: str) -> None:
    point = llama.hook_points["hook_z"]
    one = point.add_hook(look, dir=direction)
    other = point.add_hook(look, dir=direction)
    one.remove()
    one.remove()
    assert point.watched
    other.remove()
    assert not point.watched


def test_a_hook_lives_as_long_as_its_with_block(llama: Any) -> None:
    with llama.hook_points["hook_z"].add_hook(look):
        assert llama.hook_points["hook_z"].watched
    assert not llama.hook_points["hook_z"].watched


def test_remove_hooks_takes_all_of_a_point(llama: Any) -> None:
    point = llama.hook_points["hook_z"]
    point.add_hook(look)
    point.add_hook(look, dir="bwd")
    point.remove_hooks()
    assert not point.watched


def test_a_hook_may_remove_itself_while_it_runs(llama: Any, llama_inputs: Any) -> None:
    called: list[str] = []
    point = llama.hook_points["hook_z"]

    def once(tensor: Tensor, hook: Any) -> None:
        called.append("once")
        handle.remove()

    handle = point.add_hook(once)
    point.add_hook(lambda tensor, hook: called.append("other"))
    llama(**llama_inputs)
    llama(**llama_inputs)
    assert called == ["once", "other", "other"]


def test_recomputing_is_false_in_a_plain_forward_and_backward(
    llama: Any, llama_inputs: Any
) -> None:
    said: list[bool] = []
    llama_inputs["hidden_states"].requires_grad_()
    with llama.hook_points["hook_z"].add_hook(lambda tensor, hook: said.append(hook.recomputing)):
        llama(**llama_inputs)[0].sum().backward()
    assert said == [False]


# ---- caches ----


@pytest.mark.parametrize("name", ["hook_rot_k", "hook_v", "hook_k"])
@pytest.mark.parametrize("how", ["replaced", "in_place"])
@torch.no_grad()
def test_an_edit_of_key_or_value_enters_the_cache_and_later_steps_see_it(
    bridge: Any, name: str, how: str
) -> None:
    """EDIT-4. An edit in the prefill alone moves the decode step exactly as the same edit of those
    positions without a cache."""
    inputs = bridge.get_random_inputs(2, 5, seed=0)

    def edit_first_four(tensor: Tensor, hook: Any) -> Tensor | None:
        edited = tensor if how == "in_place" else tensor.clone()
        edited[:, :4, :, ::3] *= 2  # not affine: a layer norm would not see that
        return None if how == "in_place" else edited

    wanted = output(bridge, inputs, **{name: edit_first_four})[:, 4:]
    plain = output(bridge, inputs)[:, 4:]
    cache = DynamicCache()
    with bridge.hook_points[name].add_hook(edit_first_four):
        bridge(**part(inputs, slice(0, 4), 4), past_key_values=cache)
    step, _ = bridge(**part(inputs, slice(4, 5), 5), past_key_values=cache)
    torch.testing.assert_close(step, wanted, rtol=1e-5, atol=2e-6)
    assert not torch.allclose(step, plain, rtol=1e-3, atol=1e-3)


def part(inputs: dict[str, Any], rows: slice, keys: int) -> dict[str, Any]:
    """Some positions of a call, with the tables and mask rows that are theirs."""
    cos, sin = inputs["position_embeddings"]
    mask = inputs["attention_mask"]
    return {
        "hidden_states": inputs["hidden_states"][:, rows],
        "position_embeddings": (cos[:, rows], sin[:, rows]),
        "attention_mask": None if mask is None else mask[:, :, rows, :keys],
    }


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox"])
@pytest.mark.parametrize(("name", "role"), [("hook_q", "q"), ("hook_v", "v"), ("hook_out", "o")])
def test_an_edit_in_place_does_not_reach_a_raw_hook_on_the_projection(
    bridge: Any, name: str, role: str
) -> None:
    """EDIT-2, with gradients: what the projection gave is somebody else's too."""
    kept: list[Tensor] = []
    projection = bridge.submodule(role if role in bridge.roles else "qkv")
    handle = projection.register_forward_hook(lambda module, args, out: kept.append(out))
    output(bridge, bridge.get_random_inputs(2, 9, seed=0), **{name: wipe})
    handle.remove()
    assert bool(kept[0].any(-1).all())
