"""The hooks of an attached model: names, caches, edits, gradients, and how they come and go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ropebridge import UnknownHook, attach
from ropebridge_spec import hook_order

pytestmark = pytest.mark.slow

Z = "blocks.0.attn.hook_z"
PATTERN = "blocks.0.attn.hook_pattern"


def look(tensor: Tensor, hook: Any) -> None:
    """A hook that changes nothing."""


def double(tensor: Tensor, hook: Any) -> Tensor:
    """A hook that replaces."""
    return tensor * 2


def double_in_place(tensor: Tensor, hook: Any) -> None:
    """A hook that edits in place."""
    tensor *= 2


@pytest.fixture
def bridged(build: Any) -> Any:
    with attach(build("llama")) as bridged:
        yield bridged


# ---- names ----


def test_hook_points_are_those_of_the_contract_in_its_order(build: Any, family: str) -> None:
    with attach(build(family)) as bridged:
        wanted = [
            f"blocks.{number}.attn.{spec.name}"
            for number, layer in enumerate(bridged.layers)
            for spec in hook_order(layer.variant)
        ]
        assert list(bridged.hook_points) == wanted


def test_a_hook_point_knows_its_full_name(bridged: Any) -> None:
    assert [point.name for point in bridged.hook_points.values()] == list(bridged.hook_points)


def test_a_model_fires_its_hooks_once_each_in_the_order_of_hook_points(
    build: Any, tokens: Tensor, family: str
) -> None:
    fired: list[str] = []
    with (
        attach(build(family)) as bridged,
        bridged.hooks([(lambda _: True, lambda tensor, hook: fired.append(hook.name))]),
    ):
        bridged(tokens)
        assert fired == list(bridged.hook_points)


# ---- run_with_cache ----


def test_run_with_cache_keeps_all_by_default(bridged: Any, tokens: Tensor) -> None:
    assert list(bridged.run_with_cache(tokens)[1]) == list(bridged.hook_points)


@pytest.mark.parametrize(
    ("names_filter", "wanted"),
    [
        pytest.param(Z, [Z], id="a_name"),
        pytest.param([Z, PATTERN], [PATTERN, Z], id="a_list"),
        pytest.param((Z, Z), [Z], id="a_name_twice"),
        pytest.param(
            lambda name: name.startswith("blocks.0") and "rot" in name,
            ["blocks.0.attn.hook_rot_q", "blocks.0.attn.hook_rot_k"],
            id="a_predicate",
        ),
    ],
)
def test_a_names_filter_chooses_what_is_kept(
    bridged: Any, tokens: Tensor, names_filter: Any, wanted: list[str]
) -> None:
    assert list(bridged.run_with_cache(tokens, names_filter=names_filter)[1]) == wanted


@pytest.mark.parametrize(
    "names_filter",
    [pytest.param([], id="an_empty_list"), pytest.param(lambda _: False, id="a_predicate")],
)
def test_a_filter_that_selects_nothing_is_an_error_not_an_empty_cache(
    bridged: Any, tokens: Tensor, names_filter: Any
) -> None:
    with pytest.raises(UnknownHook, match="the names filter selects no hook point"):
        bridged.run_with_cache(tokens, names_filter=names_filter)


def test_a_cache_is_detached_from_the_graph(bridged: Any, tokens: Tensor) -> None:
    output, cache = bridged.run_with_cache(tokens, names_filter=Z)
    assert (output.logits.requires_grad, cache[Z].requires_grad) == (True, False)


def test_a_cache_can_be_kept_on_another_device(bridged: Any, tokens: Tensor) -> None:
    assert bridged.run_with_cache(tokens, names_filter=Z, device="meta")[1][Z].is_meta


def test_run_with_cache_leaves_no_hook(bridged: Any, tokens: Tensor) -> None:
    bridged.run_with_cache(tokens)
    assert not any(point.watched for point in bridged.hook_points.values())


def test_a_cache_shows_what_hooks_that_were_there_before_left(bridged: Any, tokens: Tensor) -> None:
    _, before = bridged.run_with_cache(tokens, names_filter=Z)
    with bridged.hooks([(Z, double)]):
        _, after = bridged.run_with_cache(tokens, names_filter=Z)
    assert torch.equal(after[Z], before[Z] * 2)


# ---- run_with_hooks and hooks() ----


@pytest.mark.parametrize(
    ("names", "fired"),
    [
        pytest.param(Z, [Z], id="a_name"),
        pytest.param([PATTERN, Z], [PATTERN, Z], id="a_list"),
        pytest.param(
            lambda name: name.endswith("hook_z"), [Z, "blocks.1.attn.hook_z"], id="a_predicate"
        ),
    ],
)
def test_hooks_may_be_named_by_string_list_or_predicate(
    bridged: Any, tokens: Tensor, names: Any, fired: list[str]
) -> None:
    seen: list[str] = []
    bridged.run_with_hooks(tokens, fwd_hooks=[(names, lambda tensor, hook: seen.append(hook.name))])
    assert seen == fired


def test_run_with_hooks_gives_the_output_of_the_edited_model(bridged: Any, tokens: Tensor) -> None:
    plain, edited = (
        bridged(tokens).logits,
        bridged.run_with_hooks(tokens, fwd_hooks=[(Z, double)]).logits,
    )
    assert not torch.allclose(edited, plain)
    assert torch.equal(bridged(tokens).logits, plain)


def test_hooks_on_one_point_are_called_in_the_order_given_each_with_what_the_last_left(
    bridged: Any, tokens: Tensor
) -> None:
    seen: list[Tensor] = []
    keep = lambda tensor, hook: seen.append(tensor.clone())  # noqa: E731 - three of them in a row read best
    bridged.run_with_hooks(
        tokens, fwd_hooks=[(Z, keep), (Z, double), (Z, keep), (Z, double_in_place), (Z, keep)]
    )
    assert torch.equal(seen[1], seen[0] * 2)
    assert torch.equal(seen[2], seen[0] * 4)


def test_hooks_work_through_generate(bridged: Any, tokens: Tensor) -> None:
    shapes: list[tuple[int, ...]] = []
    with bridged.hooks([(PATTERN, lambda tensor, hook: shapes.append(tuple(tensor.shape)))]):
        bridged.model.generate(tokens, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert shapes == [(2, 6, 12, 12), (2, 6, 1, 13), (2, 6, 1, 14)]


def test_an_edit_works_through_generate(bridged: Any, tokens: Tensor) -> None:
    options = {
        "max_new_tokens": 3,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    plain = bridged.model.generate(tokens, **options).logits
    with bridged.hooks([(Z, double)]):
        edited = bridged.model.generate(tokens, **options).logits
    assert [torch.allclose(a, b, atol=1e-3) for a, b in zip(plain, edited, strict=True)] == [
        False
    ] * 3


def test_hooks_blocks_nest(bridged: Any, tokens: Tensor) -> None:
    plain = bridged.run_with_cache(tokens, names_filter=Z)[1][Z]
    with bridged.hooks([(Z, double)]):
        with bridged.hooks([(Z, double)]):
            inner = bridged.run_with_cache(tokens, names_filter=Z)[1][Z]
        outer = bridged.run_with_cache(tokens, names_filter=Z)[1][Z]
    assert torch.equal(inner, plain * 4)
    assert torch.equal(outer, plain * 2)


def test_the_same_function_hooked_twice_is_called_twice(bridged: Any, tokens: Tensor) -> None:
    fired: list[str] = []
    note = lambda tensor, hook: fired.append(hook.name)  # noqa: E731 - the same object twice is the point
    bridged.run_with_hooks(tokens, fwd_hooks=[(Z, note), (Z, note)])
    assert fired == [Z, Z]


def test_an_unknown_name_leaves_no_hook_of_those_named_before_it(
    bridged: Any, tokens: Tensor
) -> None:
    with pytest.raises(UnknownHook):
        bridged.run_with_hooks(tokens, fwd_hooks=[(Z, look), ("blocks.0.attn.hook_nothing", look)])
    assert not bridged.hook_points[Z].watched


# ---- gradients through a model ----


def test_a_backward_hook_sees_the_gradient_at_its_point(bridged: Any, tokens: Tensor) -> None:
    shown: list[Tensor] = []
    held: list[Tensor] = []

    def hold(tensor: Tensor, hook: Any) -> None:
        tensor.retain_grad()
        held.append(tensor)

    with bridged.hooks([(Z, hold)], [(Z, lambda gradient, hook: shown.append(gradient.clone()))]):
        bridged(tokens, labels=tokens).loss.backward()
    assert shown[0].any()
    assert torch.equal(shown[0], held[0].grad)


def test_a_backward_hook_replaces_the_gradient(bridged: Any, tokens: Tensor) -> None:
    weight = bridged.layers[0].submodule("o").weight
    query = bridged.layers[0].submodule("q").weight
    with bridged.hooks(bwd_hooks=[(Z, lambda gradient, hook: torch.zeros_like(gradient))]):
        bridged(tokens, labels=tokens).loss.backward()
    assert weight.grad.any()  # after z
    assert not query.grad.any()  # before z


def test_a_backward_hook_that_outlives_its_block_is_silent(bridged: Any, tokens: Tensor) -> None:
    """The tensor still holds it; the block has ended."""
    shown: list[Tensor] = []
    with bridged.hooks([(Z, look)]):
        handle = bridged.hook_points[Z].add_hook(
            lambda gradient, hook: shown.append(gradient), dir="bwd"
        )
        loss = bridged(tokens, labels=tokens).loss
        handle.remove()
    loss.backward()
    assert shown == []


def test_run_with_hooks_refuses_a_backward_hook_since_no_backward_pass_runs_in_it(
    bridged: Any, tokens: Tensor
) -> None:
    from ropebridge import HookNeverFired

    with pytest.raises(HookNeverFired, match="and for backward hooks the backward pass"):
        bridged.run_with_hooks(tokens, bwd_hooks=[(Z, look)])


# ---- raw hooks of torch on the projections ----


@pytest.mark.parametrize("role", ["q_proj", "k_proj", "v_proj", "o_proj"])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_attn_in": True, "use_attn_result": True}, {"use_split_qkv_input": True}],
    ids=["plain", "attn_in", "split"],
)
@pytest.mark.parametrize("watched", [False, True], ids=["unwatched", "watched"])
def test_a_raw_module_hook_fires_exactly_once_a_forward(
    build: Any, tokens: Tensor, family: str, role: str, options: dict[str, bool], watched: bool
) -> None:
    model = build(family)
    fired: list[str] = []
    model.model.layers[0].self_attn.get_submodule(role).register_forward_hook(
        lambda *_: fired.append(role)
    )
    with (
        attach(model, **options) as bridged,
        bridged.hooks([(lambda _: True, look)] if watched else []),
    ):
        bridged(tokens)
    assert fired == [role]


def test_a_raw_hook_on_the_attention_module_sees_what_it_returns(
    bridged: Any, tokens: Tensor
) -> None:
    seen: list[Any] = []
    bridged.layers[0].original_component.register_forward_hook(
        lambda module, args, output: seen.append(output)
    )
    _, cache = bridged.run_with_cache(tokens, names_filter="blocks.0.attn.hook_out")
    assert torch.equal(seen[0][0], cache["blocks.0.attn.hook_out"])
