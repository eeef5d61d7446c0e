"""Every error says what was given, what is required, and what to do; and it leaves everything as it
was."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaAttention

from ropebridge import (
    FAMILIES,
    AttachError,
    ContractError,
    Family,
    HookNeverFired,
    MaskError,
    NormKind,
    NotBound,
    PositionEmbeddingsAttentionBridge,
    RopebridgeError,
    RotaryKind,
    UnknownHook,
    UnsupportedAttention,
    VerificationError,
    attach,
    describe,
)

pytestmark = pytest.mark.slow

Z = "blocks.0.attn.hook_z"


def says(*lines: str) -> str:
    """A pattern for a whole message, line by line."""
    return rf"^{re.escape(chr(10).join(lines))}$"


@pytest.fixture
def inputs(llama: Any) -> dict[str, Any]:
    return llama.get_random_inputs(2, 5, seed=0)


# ---- what a hook returns ----


def test_a_replacement_of_the_wrong_shape(llama: Any, inputs: Any) -> None:
    message = says(
        "hook 'blocks.0.attn.hook_rot_q' was given a replacement of shape (2, 6, 5, 20); clause"
        " ROT-2 requires (2, 5, 6, 20)",
        "  axes: batch pos head d_head",
        "  with: batch=2, pos=5, head=6, d_head=20",
    )
    with (
        llama.hook_points["hook_rot_q"].add_hook(lambda tensor, hook: tensor.transpose(1, 2)),
        pytest.raises(ContractError, match=message),
    ):
        llama(**inputs)


def test_a_replacement_that_would_only_broadcast(llama: Any, inputs: Any) -> None:
    with (
        llama.hook_points["hook_pattern"].add_hook(lambda tensor, hook: tensor[:, :1]),
        pytest.raises(
            ContractError, match=r"of shape \(2, 1, 5, 5\); clause PAT-2 requires \(2, 6, 5, 5\)"
        ),
    ):
        llama(**inputs)


def test_a_replacement_of_the_wrong_dtype(llama: Any, inputs: Any) -> None:
    message = (
        r"hook 'blocks\.0\.attn\.hook_z' was given a replacement of dtype torch\.float64; clause"
        r" EDIT-3 requires torch\.float32\n  axes: batch pos head"
    )
    with (
        llama.hook_points["hook_z"].add_hook(lambda tensor, hook: tensor.double()),
        pytest.raises(ContractError, match=message),
    ):
        llama(**inputs)


def test_a_replacement_on_the_wrong_device(llama: Any, inputs: Any) -> None:
    message = (
        r"hook 'blocks\.0\.attn\.hook_z' was given a replacement of device meta; clause EDIT-3"
        r" requires cpu\n"
    )
    with (
        llama.hook_points["hook_z"].add_hook(lambda tensor, hook: tensor.to("meta")),
        pytest.raises(ContractError, match=message),
    ):
        llama(**inputs)


@pytest.mark.parametrize(
    ("returned", "kind"),
    [(1.0, "float"), (True, "bool"), ((), "tuple")],
    ids=["number", "bool", "tuple"],
)
def test_a_hook_that_returns_no_tensor(
    llama: Any, inputs: Any, returned: object, kind: str
) -> None:
    message = says(
        f"hook '{Z}' returned {kind}; clause FIRE-4 requires None (to look) or a tensor (to"
        " replace)"
    )
    with (
        llama.hook_points["hook_z"].add_hook(lambda tensor, hook: returned),
        pytest.raises(ContractError, match=message),
    ):
        llama(**inputs)


def test_a_gradient_of_the_wrong_shape(llama: Any, inputs: Any) -> None:
    message = (
        r"hook 'blocks\.0\.attn\.hook_z' was given a gradient of shape \(5, 6, 20\); clause MIX-2"
        r" requires \(2, 5, 6, 20\)"
    )
    with (
        llama.hook_points["hook_z"].add_hook(lambda gradient, hook: gradient[0], dir="bwd"),
        pytest.raises(ContractError, match=message),
    ):
        llama(**inputs)[0].sum().backward()


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=["nan", "plus_infinity"])
@pytest.mark.parametrize("how", ["replaced", "in_place"])
@pytest.mark.parametrize(
    "grad",
    [torch.no_grad, torch.enable_grad, torch.inference_mode],
    ids=["no_grad", "grad", "inference_mode"],
)
def test_scores_that_softmax_cannot_take(
    llama: Any, inputs: Any, value: float, how: str, grad: Any
) -> None:
    def spoil(tensor: Tensor, hook: Any) -> Tensor | None:
        edited = tensor if how == "in_place" else tensor.clone()
        edited[0, 0, 0, 0] = value
        return None if how == "in_place" else edited

    message = says(
        "hook 'blocks.0.attn.hook_attn_scores' left NaN or +inf in the scores; clause SCORE-3"
        " requires finite numbers, or -inf to forbid a key"
    )
    with (
        grad(),
        llama.hook_points["hook_attn_scores"].add_hook(spoil),
        pytest.raises(ContractError, match=message),
    ):
        llama(**inputs)


@pytest.mark.parametrize("how", ["replaced", "in_place"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("mask", ["explicit", "none"])
@pytest.mark.parametrize(
    "grad",
    [torch.no_grad, torch.enable_grad, torch.inference_mode],
    ids=["no_grad", "grad", "inference_mode"],
)
def test_scores_at_forbidden_keys(
    bridge_layer: Any, mask: str, dtype: torch.dtype, how: str, grad: Any
) -> None:
    llama = bridge_layer("llama", requires_attention_mask=mask == "explicit")
    llama.original_component.to(dtype)

    def let_all_in(tensor: Tensor, hook: Any) -> Tensor | None:
        return torch.zeros_like(tensor) if how == "replaced" else nothing(tensor.detach().zero_())

    message = says(
        "hook 'blocks.0.attn.hook_attn_scores' left numbers at keys that their query may not see;"
        " clause SCORE-6 requires -inf there\n  keep it: edited = torch.where(scores =="
        " -torch.inf, scores, edited); to let a query see more keys, give the model another"
        " attention_mask"
    )
    with (
        grad(),
        llama.hook_points["hook_attn_scores"].add_hook(let_all_in),
        pytest.raises(ContractError, match=message),
    ):
        llama(**llama.get_random_inputs(2, 5, seed=0))


def nothing(value: object) -> None:
    """Nothing, whatever is given."""


def test_zeros_where_keys_may_be_seen_are_allowed(llama: Any, inputs: Any) -> None:
    def level(scores: Tensor, hook: Any) -> Tensor:
        return torch.where(scores == -torch.inf, scores, 0.0)

    with llama.hook_points["hook_attn_scores"].add_hook(level):
        assert llama(**inputs)[0].isfinite().all()


def test_scores_of_minus_infinity_are_allowed(llama: Any, inputs: Any) -> None:
    with llama.hook_points["hook_attn_scores"].add_hook(
        lambda tensor, hook: torch.full_like(tensor, -torch.inf)
    ):
        assert torch.equal(llama(**inputs)[0], llama.b_O.expand(2, 5, 60))


# ---- hooks that cannot be ----


def look(tensor: Tensor, hook: Any) -> None:
    """A hook that changes nothing."""


@pytest.mark.parametrize("where", ["on_the_point", "in_hooks", "in_run_with_hooks"])
def test_a_hook_that_cannot_be_called_is_refused_where_it_is_given(
    build: Any, tokens: Tensor, where: str
) -> None:
    with attach(build("llama")) as bridged:
        give = {
            "on_the_point": lambda: bridged.hook_points[Z].add_hook(3),
            "in_hooks": lambda: bridged.hooks([(Z, look), (Z, 3)]).__enter__(),
            "in_run_with_hooks": lambda: bridged.run_with_hooks(
                tokens, fwd_hooks=[(Z, look), (Z, 3)]
            ),
        }[where]
        with pytest.raises(
            ContractError,
            match=says(
                f"hook '{Z}' was given int 3; clause FIRE-4 requires a function fn(tensor, hook)"
            ),
        ):
            give()
        assert not bridged.hook_points[Z].watched


@pytest.mark.parametrize(
    ("hooks", "shown"),
    [
        pytest.param((Z, look), rf"'{Z}'", id="one_pair"),
        pytest.param([Z, print], rf"'{Z}'", id="one_pair_as_a_list"),
        pytest.param({Z: print}, rf"'{Z}'", id="a_mapping"),
        pytest.param([(Z, look), (Z,)], rf"\('{Z}',\)", id="a_name_alone"),
        pytest.param(print, r"<built-in function print>", id="a_function_alone"),
    ],
)
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_hooks_that_are_no_list_of_pairs(
    build: Any, tokens: Tensor, hooks: Any, shown: str, direction: str
) -> None:
    message = (
        rf"^{direction}_hooks was given {shown} for a pair \(name, fn\); clause FIRE-4 requires a"
        r" function fn\(tensor, hook\) with the name of its place\n"
        r"  pass a list of pairs, for one hook too:"
        rf" {direction}_hooks=\[\('blocks\.0\.attn\.hook_z', fn\)\]$"
    )
    with attach(build("llama")) as bridged:
        with pytest.raises(ContractError, match=message):
            bridged.run_with_hooks(tokens, **{f"{direction}_hooks": hooks})
        assert not any(point.watched for point in bridged.hook_points.values())


def test_a_direction_that_does_not_exist(llama: Any) -> None:
    with pytest.raises(ContractError, match=r"was given dir='forward'; it must be 'fwd' or 'bwd'"):
        llama.hook_points["hook_z"].add_hook(look, dir="forward")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param(
            "blocks.0.attn.hook_patern",
            r"\n  nearest: blocks\.0\.attn\.hook_pattern, ",
            id="a_slip",
        ),
        pytest.param(
            "blocks.7.attn.hook_z",
            r"\n  nearest: blocks\.\d\.attn\.hook_z, blocks\.\d\.attn\.hook_z, ",
            id="no_such_layer",
        ),
        pytest.param(
            "hook_z",
            r"\n  nearest: blocks\.0\.attn\.hook_z, blocks\.1\.attn\.hook_z\n",
            id="a_short_name",
        ),
        pytest.param(
            "hook_q",
            r"\n  a name is full; for every layer: lambda name: name\.endswith\('\.hook_q'\)\n",
            id="a_short_name_for_all",
        ),
        pytest.param(
            "blocks.0.attn.hook_result",
            r"\n  it exists on request: attach\(model, use_attn_result=True\)\n",
            id="result",
        ),
        pytest.param(
            "blocks.0.attn.hook_attn_in",
            r"\n  it exists on request: attach\(model, use_attn_in=True\)\n",
            id="attn_in",
        ),
        pytest.param(
            "blocks.0.attn.hook_k_input",
            r"\n  it exists on request: attach\(model, use_split_qkv_input=True\)\n",
            id="split",
        ),
        pytest.param(
            "blocks.0.attn.hook_compressed_kv",
            r"\n  the name is reserved \(batch block d_head: the keys and.*\), and no family",
            id="reserved",
        ),
        pytest.param(
            "zzz",
            r"\n  nearest: none\n  all: print\(list\(bridged\.hook_points\)\)$",
            id="nothing_near",
        ),
    ],
)
def test_a_hook_name_that_does_not_exist(build: Any, tokens: Tensor, name: str, words: str) -> None:
    with attach(build("llama")) as bridged, pytest.raises(UnknownHook) as caught:
        bridged.run_with_cache(tokens, names_filter=name)
    assert str(caught.value).startswith(f"there is no hook point '{name}'\n")
    assert re.search(words, str(caught.value))


@pytest.mark.parametrize("where", ["in_hooks", "in_run_with_hooks", "in_run_with_cache"])
def test_hooks_on_a_bridge_that_was_detached(build: Any, tokens: Tensor, where: str) -> None:
    with attach(build("llama")) as bridged:
        pass
    run = {
        "in_hooks": lambda: bridged.hooks([(Z, look)]).__enter__(),
        "in_run_with_hooks": lambda: bridged.run_with_hooks(tokens, fwd_hooks=[(Z, look)]),
        "in_run_with_cache": lambda: bridged.run_with_cache(tokens),
    }[where]
    message = says(
        "the bridge was detached, by detach() or at the end of its with block, and its hooks cannot"
        " fire",
        "  attach again: bridged = attach(model)",
    )
    with pytest.raises(AttachError, match=message):
        run()
    assert not bridged.hook_points[Z].watched


def test_hooks_that_never_fired_are_named(build: Any) -> None:
    message = (
        r"^2 of 2 requested hooks never fired: blocks\.0\.attn\.hook_z, blocks\.1\.attn\.hook_z\n "
        r" clause FIRE-3: run the model"
    )
    with (
        attach(build("llama")) as bridged,
        pytest.raises(HookNeverFired, match=message),
        bridged.hooks([(lambda name: name.endswith("hook_z"), look)]),
    ):
        pass


def test_an_error_inside_a_hook_is_the_users_own_and_leaves_no_hook(
    build: Any, tokens: Tensor
) -> None:
    def fail(tensor: Tensor, hook: Any) -> None:
        raise ZeroDivisionError(hook.name)

    with attach(build("llama")) as bridged, torch.no_grad():
        wanted = bridged(tokens).logits
        with pytest.raises(ZeroDivisionError, match=r"blocks\.1\.attn\.hook_pattern"):
            bridged.run_with_hooks(
                tokens,
                fwd_hooks=[
                    (Z, lambda tensor, hook: tensor * 2),
                    ("blocks.1.attn.hook_pattern", fail),
                ],
            )
        assert not any(point.watched for point in bridged.hook_points.values())
        assert torch.equal(bridged(tokens).logits, wanted)


def test_an_error_inside_a_backward_hook_is_the_users_own_and_leaves_no_hook(
    build: Any, tokens: Tensor
) -> None:
    def fail(gradient: Tensor, hook: Any) -> None:
        raise ZeroDivisionError(hook.name)

    with attach(build("llama")) as bridged:
        with pytest.raises(ZeroDivisionError), bridged.hooks(bwd_hooks=[(Z, fail)]):
            bridged(tokens, labels=tokens).loss.backward()
        assert not bridged.hook_points[Z].watched
        bridged(tokens, labels=tokens).loss.backward()


# ---- inputs ----


def test_position_embeddings_that_are_missing(llama: Any, inputs: Any) -> None:
    message = says(
        "'blocks.0.attn' was given no position_embeddings, and its layer rotates; clause CFG-3"
        " requires (cos, sin)",
        "  pass position_embeddings=rotary_emb(hidden_states, position_ids), or build the bridge"
        " with requires_position_embeddings=False",
    )
    with pytest.raises(ContractError, match=message):
        llama(**{**inputs, "position_embeddings": None})


@pytest.mark.parametrize(
    "shape",
    [(1, 4, 20), (1, 5, 10), (3, 5, 20), (20,), (1, 1, 5, 20)],
    ids=["pos", "width", "batch", "one_axis", "four_axes"],
)
def test_a_rotary_table_of_the_wrong_shape(llama: Any, inputs: Any, shape: tuple[int, ...]) -> None:
    message = says(
        f"'blocks.0.attn' was given a rotary table of shape {shape}; clause POS-2 requires (1 or 2,"
        " 5, 20)",
        "  axes: table_batch pos rotary_dim",
        "  with: batch=2, pos=5, rotary_dim=20",
    )
    with pytest.raises(ContractError, match=message):
        llama(
            **{
                **inputs,
                "position_embeddings": (inputs["position_embeddings"][0], torch.zeros(shape)),
            }
        )


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(torch.zeros(1, 5, 20), id="one_tensor"),
        pytest.param((torch.zeros(1, 5, 20),), id="one_table"),
        pytest.param((torch.zeros(1, 5, 20),) * 3, id="three_tables"),
        pytest.param("cos sin", id="a_string"),
        pytest.param((1.0, 0.0), id="two_numbers"),
    ],
)
def test_position_embeddings_that_are_no_pair_of_tables(
    llama: Any, inputs: Any, given: object
) -> None:
    with pytest.raises(
        ContractError,
        match=(
            r"'blocks\.0\.attn' was given position_embeddings of .*; clause CFG-3 requires a pair"
            r" of tensors \(cos, sin\)"
        ),
    ):
        llama(**{**inputs, "position_embeddings": given})


@pytest.mark.parametrize(
    "shape", [(2, 5, 61), (5, 60), (2, 5, 3, 60)], ids=["width", "no_batch", "four_axes"]
)
def test_hidden_states_of_the_wrong_shape(llama: Any, inputs: Any, shape: tuple[int, ...]) -> None:
    message = (
        rf"was given hidden_states of shape {re.escape(str(shape))}; clause IN-2 requires \(batch,"
        r" pos, 60\)\n  axes: batch pos d_model\n"
    )
    with pytest.raises(ContractError, match=message):
        llama(**{**inputs, "hidden_states": torch.zeros(shape)})


def test_hidden_states_that_are_missing(llama: Any) -> None:
    with pytest.raises(
        ContractError,
        match=r"was given no hidden_states; clause IN-1 requires a tensor \(batch, pos, 60\)",
    ):
        llama()


def test_a_forward_before_there_is_a_module() -> None:
    message = says(
        "PositionEmbeddingsAttentionBridge 'blocks.0.attn' has no attention module yet; call"
        " set_original_component(module) first"
    )
    with pytest.raises(NotBound, match=message):
        PositionEmbeddingsAttentionBridge("blocks.0.attn", None)(torch.zeros(1, 2, 60))


# ---- masks ----

FITS = (
    r"; clause MASK-4 requires None, \(batch, key\), \(batch, query, key\), \(batch, head or 1,"
    r" query, key\) or a BlockMask of that shape"
    r"\n  with: batch=2, heads=6, query=5, key=5"
)


@pytest.mark.parametrize(
    "shape",
    [
        (5,),
        (2, 4),
        (3, 5),
        (2, 4, 5),
        (2, 1, 5, 4),
        (2, 1, 4, 5),
        (2, 2, 5, 5),
        (3, 1, 5, 5),
        (1, 2, 1, 5, 5),
    ],
    ids=[
        "one_axis",
        "keys",
        "batch",
        "three_axes",
        "four_axes_keys",
        "four_axes_queries",
        "four_axes_heads",
        "four_axes_batch",
        "five_axes",
    ],
)
def test_a_mask_of_the_wrong_shape(llama: Any, inputs: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(
        MaskError, match=rf"^attention_mask has shape {re.escape(str(shape))}{FITS}$"
    ):
        llama(**{**inputs, "attention_mask": torch.zeros(shape, dtype=torch.bool)})


@pytest.mark.parametrize(
    ("mask", "kind"),
    [([[1, 1]], "list"), ({"full_attention": None}, "dict"), ("causal", "str")],
    ids=["list", "dict", "str"],
)
def test_a_mask_that_is_no_tensor(llama: Any, inputs: Any, mask: object, kind: str) -> None:
    with pytest.raises(MaskError, match=rf"^attention_mask is a {kind}{FITS}$"):
        llama(**{**inputs, "attention_mask": mask})


def test_a_four_axis_mask_of_integers(llama: Any, inputs: Any) -> None:
    """0 and 1 could mean either: a bias, or what may be seen."""
    message = says(
        "attention_mask has four axes and dtype torch.int64; clause MASK-1 requires torch.bool"
        " (True sees) or a floating-point bias"
    )
    with pytest.raises(MaskError, match=message):
        llama(**{**inputs, "attention_mask": torch.ones(2, 1, 5, 5, dtype=torch.long)})


@pytest.mark.parametrize(
    "entry",
    [2.0, -1e9, 0.5, torch.nan, torch.inf],
    ids=["two", "a_bias", "a_half", "nan", "infinity"],
)
def test_a_two_axis_mask_of_other_numbers(llama: Any, inputs: Any, entry: float) -> None:
    mask = torch.ones(2, 5)
    mask[0, 0] = entry
    message = says(
        "attention_mask has two axes and entries other than 0 and 1; clause MASK-3 requires"
        " booleans, or zeros and ones"
    )
    with pytest.raises(MaskError, match=message):
        llama(**{**inputs, "attention_mask": mask})


# ---- classes that are not served, and descriptions that are wrong ----


class MyAttention(LlamaAttention):
    """Computes what LlamaAttention computes, under another name, by a forward of its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def renamed(model: Any) -> Any:
    """The model with its attention classes renamed."""
    for layer in model.model.layers:
        layer.self_attn.__class__ = MyAttention
    return model


def test_a_class_that_is_not_known_is_refused_with_what_to_do(build: Any) -> None:
    model = renamed(build("llama"))
    with pytest.raises(UnsupportedAttention) as caught:
        attach(model)
    message = str(caught.value)
    assert message.startswith(
        "attention class 'MyAttention' is not in the table of families\n  nearest: MoshiAttention,"
        " PhiAttention, "
    )
    assert f"all {len(FAMILIES)}: print(sorted(ropebridge.FAMILIES))\n" in message
    assert "{**FAMILIES, 'MyAttention': FAMILIES['LlamaAttention']}" in message
    assert "forward" not in vars(model.model.layers[0].self_attn)


@torch.no_grad()
def test_what_that_message_says_to_do_works(build: Any, tokens: Tensor) -> None:
    model = renamed(build("llama"))
    wanted = model(tokens).logits
    with attach(model, families={**FAMILIES, "MyAttention": FAMILIES["LlamaAttention"]}) as bridged:
        torch.testing.assert_close(bridged(tokens).logits, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_variant_serves_where_nothing_is_to_be_read(build: Any, tokens: Tensor) -> None:
    model = renamed(build("llama"))
    wanted = model(tokens).logits
    variant = describe(build("llama").model.layers[0].self_attn)
    with attach(model, families={"MyAttention": variant}) as bridged:
        torch.testing.assert_close(bridged(tokens).logits, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("feature", ["q_norm", "sinks", "gate_proj", "clip_qkv"])
def test_a_feature_that_the_family_does_not_know_is_refused(build: Any, feature: str) -> None:
    model = build("llama")
    setattr(model.model.layers[0].self_attn, feature, torch.nn.Identity())
    with pytest.raises(
        UnsupportedAttention,
        match=(
            rf"^LlamaAttention has '{feature}', which its family does not have\n  to serve it:"
            r" describe it"
        ),
    ):
        attach(model)


class Bare(torch.nn.Module):
    """A projection with something around it that does not say how wide it is."""

    def __init__(self, inner: torch.nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize(
    ("family", "projection", "side"),
    [
        ("llama", "q_proj", "out"),
        ("llama", "k_proj", "out"),
        ("llama", "v_proj", "out"),
        ("phi3", "qkv_proj", "in"),
    ],
)
def test_a_projection_that_does_not_say_its_width_is_refused_by_name(
    build: Any, family: str, projection: str, side: str
) -> None:
    model = build(family)
    module = model.model.layers[0].self_attn
    setattr(module, projection, Bare(getattr(module, projection)))
    kind = type(module).__name__
    message = says(
        f"the '{projection}' of {kind} is a Bare, which has no {side}_features; the widths cannot"
        " be read",
        "  give the wrapper the in_features and out_features of what it wraps, or pass"
        f" families={{**FAMILIES, '{kind}': Variant(...)}}",
    )
    with pytest.raises(UnsupportedAttention, match=message):
        attach(model)


@torch.no_grad()
@pytest.mark.parametrize("way", ["widths_on_the_wrapper", "a_variant"])
def test_both_ways_that_message_names_work(build: Any, tokens: Tensor, way: str) -> None:
    model = build("llama")
    wanted, variant = model(tokens).logits, describe(model.model.layers[0].self_attn)
    for layer in model.model.layers:
        inner = layer.self_attn.q_proj
        layer.self_attn.q_proj = Bare(inner)
        if way == "widths_on_the_wrapper":
            layer.self_attn.q_proj.in_features, layer.self_attn.q_proj.out_features = (
                inner.in_features,
                inner.out_features,
            )
    families = {
        "widths_on_the_wrapper": FAMILIES,
        "a_variant": {**FAMILIES, "LlamaAttention": variant},
    }[way]
    with attach(model, families=families) as bridged:
        torch.testing.assert_close(bridged(tokens).logits, wanted, rtol=1e-4, atol=1e-5)


def test_a_projection_that_is_not_there_is_refused_by_name(build: Any) -> None:
    model = build("phi3")
    with pytest.raises(
        UnsupportedAttention,
        match=(
            r"^Phi3Attention has no 'q_proj', which its family has; its widths cannot be read\n "
            r" describe it by a Family"
        ),
    ):
        attach(model, families={"Phi3Attention": FAMILIES["LlamaAttention"]})


def family_with(name: str, **changes: Any) -> Family:
    known = FAMILIES[name]
    assert isinstance(known, Family)
    return replace(known, **changes)


WRONG = {
    "qwen3-interleaved_pairing": (
        "qwen3",
        "Qwen3Attention",
        {"rotary": RotaryKind(pairing="interleaved")},
    ),
    "qwen3-no_norm_weight_one_plus": (
        "qwen3",
        "Qwen3Attention",
        {"norm": NormKind(weight="one_plus")},
    ),
    "cohere-half_pairing": ("cohere", "CohereAttention", {"rotary": RotaryKind(table="repeated")}),
    "cohere-rms_norm": ("cohere", "CohereAttention", {"norm": NormKind(kind="rms", per_head=True)}),
    "gemma2-no_softcap": ("gemma2", "Gemma2Attention", {"softcap": None}),
    "gemma3-norm_weight_as_it_is": ("gemma3", "Gemma3Attention", {"norm": NormKind()}),
    "gpt_oss-interleaved_pairing": (
        "gpt_oss",
        "GptOssAttention",
        {"rotary": RotaryKind(table="half", pairing="interleaved")},
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_description_does_not_verify_and_leaves_the_model_alone(
    build: Any, tokens: Tensor, wrong: str
) -> None:
    family, name, changes = WRONG[wrong]
    model = build(family)
    parameters = {key: value.clone() for key, value in model.state_dict().items()}
    message = (
        rf"^'blocks\.\d\.attn' does not reproduce the {name} it wraps: its (pattern|output) is off"
        r" by .* times the bound\n"
        rf"  it was described as Variant\((.|\n)*  the model was left as it was; describe {name} by"
        r" its own entry: attach\(model, families="
    )
    with pytest.raises(VerificationError, match=message):
        attach(model, families={**FAMILIES, name: family_with(name, **changes)})
    assert all("forward" not in vars(module) for module in model.modules())
    assert all(torch.equal(value, parameters[key]) for key, value in model.state_dict().items())


CHANGED = {
    "scale": {"scale": 0.23},
    "no_norm": {"norm": None},
    "no_rotation": {"rotary": None},
    "a_softcap": {"softcap": 5.0},
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_wrong_variant_does_not_verify(build: Any, change: str) -> None:
    model = build("olmo2")
    variant = replace(describe(model.model.layers[0].self_attn), **CHANGED[change])
    with pytest.raises(VerificationError, match="does not reproduce the Olmo2Attention it wraps"):
        attach(model, families={"Olmo2Attention": variant})


@torch.no_grad()
def test_a_wrong_variant_is_taken_at_its_word_where_verification_is_off(
    build: Any, tokens: Tensor
) -> None:
    """So the tests above refuse by proof, not by accident."""
    model = build("olmo2")
    wanted = model(tokens).logits
    variant = replace(describe(model.model.layers[0].self_attn), **CHANGED["scale"])
    with attach(model, families={"Olmo2Attention": variant}, verify=False) as bridged:
        assert not torch.allclose(bridged(tokens).logits, wanted, atol=1e-3)


def test_a_module_that_cannot_be_run_for_proof_says_how_to_go_on(build: Any) -> None:
    class FailingAttention(LlamaAttention):
        def forward(
            self,
            hidden_states: Tensor,
            position_embeddings: Any = None,
            attention_mask: Any = None,
            **kwargs: Any,
        ) -> Any:
            raise ZeroDivisionError("no")

    model = build("llama")
    model.model.layers[1].self_attn.__class__ = FailingAttention
    message = (
        r"^'blocks\.1\.attn': FailingAttention failed on random inputs: no\n  pass verify=False to"
        r" go on unproved$"
    )
    with pytest.raises(VerificationError, match=message):
        attach(model, families={**FAMILIES, "FailingAttention": FAMILIES["LlamaAttention"]})


@pytest.mark.parametrize(
    "part",
    ["", "model.rotary_emb", "model.layers.0.self_attn.o_proj"],
    ids=["whole", "rotary", "one_projection"],
)
def test_a_model_on_meta_cannot_be_verified(build: Any, part: str) -> None:
    model = build("llama")
    model.get_submodule(part).to("meta")
    message = (
        r"^'blocks\.\d\.attn' is on the meta device \(its \S+ holds no numbers\), and cannot be"
        r" verified there\n"
        r"  load the model's weights first, or pass verify=False to go on unproved$"
    )
    with pytest.raises(AttachError, match=message):
        attach(model)
    assert all("forward" not in vars(module) for module in model.modules())


def test_what_the_message_about_meta_says_to_do_works(build: Any) -> None:
    with attach(build("llama").to("meta"), verify=False) as bridged:
        _, cache = bridged.run_with_cache(
            torch.zeros(2, 5, dtype=torch.long, device="meta"), names_filter=Z
        )
    assert cache[Z].is_meta
    assert cache[Z].shape == (2, 5, 6, 20)


def test_an_attention_module_without_a_layer_number_is_refused(build: Any) -> None:
    alone = build("llama").model.layers[0].self_attn
    alone.layer_idx = None
    with pytest.raises(
        UnsupportedAttention,
        match=r"'' has no layer_idx, so its hooks would have no name; set module\.layer_idx",
    ):
        attach(alone)


@pytest.mark.parametrize(
    "error",
    [
        ContractError,
        MaskError,
        UnknownHook,
        HookNeverFired,
        NotBound,
        UnsupportedAttention,
        VerificationError,
    ],
)
def test_every_error_is_a_ropebridge_error(error: type[Exception]) -> None:
    assert issubclass(error, RopebridgeError)


def test_a_model_that_attends_by_another_function_is_refused(build: Any) -> None:
    model = build("llama")
    model.config._attn_implementation = "mine"
    with pytest.raises(
        AttachError,
        match=(
            r"attends by 'mine', and the bridge stands for 'eager', 'sdpa' and 'flex_attention';"
            r" call model\.set_attn_implementation\('sdpa'\) first"
        ),
    ):
        attach(model)


def test_a_layer_that_cannot_know_of_bidirectional_masks_is_refused(build: Any) -> None:
    model = build("gpt_neox_japanese")
    model.config.is_causal = False
    with pytest.raises(
        UnsupportedAttention,
        match=(
            r"holds no config, and the GPTNeoXJapaneseConfig around it asks for bidirectional masks"
            r" \(is_causal=False\): without a mask the two would part\n  to go on"
        ),
    ):
        attach(model)


def test_bidirectional_attention_is_refused_at_a_call(llama: Any, inputs: Any) -> None:
    with pytest.raises(
        ContractError, match="was called with is_causal=False, and its layer is causal"
    ):
        llama(**inputs, is_causal=False)
