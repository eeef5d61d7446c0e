"""Views of the weights by head."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ropebridge import SubmoduleError, attach
from ropebridge_conformance.zoo.builder import build_model, inputs_of
from ropebridge_conformance.zoo.specimens import attention_layer, randomise
from ropebridge_spec import UnsupportedAttention, describe

pytestmark = pytest.mark.slow

VIEWS = {
    "W_Q": ("q_proj", (6, 60, 20)),
    "W_K": ("k_proj", (2, 60, 20)),
    "W_V": ("v_proj", (2, 60, 20)),
    "W_O": ("o_proj", (6, 20, 60)),
}
BIASES = {
    "b_Q": ("q_proj", (6, 20)),
    "b_K": ("k_proj", (2, 20)),
    "b_V": ("v_proj", (2, 20)),
    "b_O": ("o_proj", (60,)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_weight_has_a_head_axis(bridge: Any, name: str) -> None:
    assert getattr(bridge, name).shape == VIEWS[name][1]


@pytest.mark.parametrize("name", BIASES)
def test_a_bias_has_a_head_axis_where_there_is_one(llama: Any, name: str) -> None:
    assert getattr(llama, name).shape == BIASES[name][1]


@pytest.mark.parametrize("name", BIASES)
def test_a_bias_that_does_not_exist_is_none(bridge_layer: Any, name: str) -> None:
    assert getattr(bridge_layer("mistral"), name) is None


@pytest.mark.parametrize("name", {**VIEWS, **BIASES})
@torch.no_grad()
def test_an_edit_in_place_reaches_the_module_and_only_that_head(llama: Any, name: str) -> None:
    projection = llama.original_component.get_submodule({**VIEWS, **BIASES}[name][0])
    stored = projection.weight if name.startswith("W") else projection.bias
    before = stored.clone()
    getattr(llama, name)[1] += 1.0
    share = getattr(llama, name)[1].numel()
    assert int((stored != before).sum()) == share


@pytest.mark.parametrize("name", ["W_Q", "W_K", "W_V"])
@torch.no_grad()
def test_an_input_weight_multiplies_the_input_of_its_head(llama: Any, name: str) -> None:
    role = name[-1].lower()
    x = torch.randn(2, 5, 60, generator=torch.Generator().manual_seed(0))
    wanted = llama.submodule(role)(x).unflatten(-1, (-1, 20))
    given = torch.einsum("bpm,hmn->bphn", x, getattr(llama, name)) + getattr(
        llama, name.replace("W", "b")
    )
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_output_weight_multiplies_the_z_of_its_head(llama: Any) -> None:
    z = torch.randn(2, 5, 6, 20, generator=torch.Generator().manual_seed(0))
    wanted = llama.submodule("o")(z.flatten(-2))
    torch.testing.assert_close(
        torch.einsum("bphn,hnm->bpm", z, llama.W_O) + llama.b_O, wanted, rtol=1e-5, atol=1e-5
    )


def test_a_gradient_through_a_view_reaches_the_module(llama: Any) -> None:
    llama.W_Q[2].sum().backward()
    grad = llama.submodule("q").weight.grad.unflatten(0, (6, 20))
    assert grad.flatten(1).any(1).tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("name", ["phi3", "gpt_neox", "falcon"])
def test_kv_heads_of_a_fused_projection_are_what_its_rows_leave(build: Any, name: str) -> None:
    """Whatever the config names: GPT-NeoX does not read `num_key_value_heads`."""
    model = build(name)
    layer = attention_layer(model, 0)
    wanted = describe(layer)
    model.config.num_key_value_heads = 3 if wanted.kv_heads != 3 else 1
    assert describe(layer) == wanted


@pytest.mark.parametrize("name", ["phi3", "gpt_neox"], ids=["blocks", "heads"])
@torch.no_grad()
def test_the_weights_in_a_fused_projection_are_each_roles_own(bridge_layer: Any, name: str) -> None:
    """And views of it: what is written to one arrives in the module."""
    bridge = bridge_layer(name)
    inputs, kept = bridge.get_random_inputs(2, 5, seed=0), {}
    handles = [
        bridge.hook_points[f"hook_{role}"].add_hook(
            lambda tensor, hook: kept.__setitem__(hook.spec.name, tensor)
        )
        for role in "qkv"
    ]
    bridge(**inputs)
    for handle in handles:
        handle.remove()
    for role in "QKV":
        weight, bias = getattr(bridge, f"W_{role}"), getattr(bridge, f"b_{role}")
        given = torch.einsum("bpm,hmn->bphn", inputs["hidden_states"], weight) + (
            0 if bias is None else bias
        )
        torch.testing.assert_close(given, kept[f"hook_{role.lower()}"], rtol=1e-5, atol=1e-5)
        assert (
            weight.untyped_storage().data_ptr()
            == bridge.submodule("qkv").weight.untyped_storage().data_ptr()
        )


class Wrapped(nn.Module):
    """A projection with something around it, as LoRA puts it; its weight, if it shows one, is not
    all of it."""

    def __init__(self, inner: nn.Linear, shows_weight: bool) -> None:
        super().__init__()
        self.inner = inner
        if shows_weight:
            self.weight, self.bias = inner.weight, inner.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x.mean()


class Packed(nn.Linear):
    """A projection that keeps its weight in other numbers, as quantisation does."""


def wrapped(projection: nn.Linear, how: str) -> nn.Module:
    if how.startswith("wrapped"):
        return Wrapped(projection, how == "wrapped_with_a_weight")
    projection.__class__ = Packed
    stored = {
        "packed": projection.weight.to(torch.int8).reshape(-1, 1),
        "int8": projection.weight.to(torch.int8),
        "float8": projection.weight.to(torch.float8_e4m3fn),
    }
    projection.weight = nn.Parameter(stored[how].detach(), requires_grad=False)
    return projection


WRAPPED, QUANTISED = ("wrapped", "wrapped_with_a_weight"), ("packed", "int8", "float8")


@pytest.mark.parametrize(
    ("name", "how"), [*product({**VIEWS, **BIASES}, WRAPPED), *product(VIEWS, QUANTISED)]
)
def test_a_weight_that_is_not_there_in_full_is_refused_by_name(
    llama: Any, name: str, how: str
) -> None:
    attribute = {**VIEWS, **BIASES}[name][0]
    module = wrapped(llama.original_component.get_submodule(attribute), how)
    setattr(llama.original_component, attribute, module)
    message = (
        rf"^'blocks\.0\.attn' has no {name} to show: '{attribute}' is a {type(module).__name__},"
        rf" and {name} is read off a torch\.nn\.Linear\n"
        r"  merge or dequantise it first \(.*\), or run it as it is:"
        rf" bridge\.submodule\('{attribute[0]}'\)\(x\)$"
    )
    with pytest.raises(SubmoduleError, match=message):
        getattr(llama, name)


@pytest.mark.parametrize("how", QUANTISED)
@pytest.mark.parametrize("name", BIASES)
def test_a_bias_beside_a_quantised_weight_is_shown(llama: Any, name: str, how: str) -> None:
    before = getattr(llama, name).clone()
    wrapped(llama.original_component.get_submodule(BIASES[name][0]), how)
    assert torch.equal(getattr(llama, name), before)


@pytest.mark.parametrize("name", ["W_Q", "b_V"])
def test_a_weight_in_a_wrapped_fused_projection_is_refused_by_name(
    bridge_layer: Any, name: str
) -> None:
    bridge = bridge_layer("phi3")
    bridge.original_component.qkv_proj = Wrapped(
        bridge.original_component.qkv_proj, shows_weight=False
    )
    with pytest.raises(SubmoduleError, match=rf"has no {name} to show: 'qkv_proj' is a Wrapped"):
        getattr(bridge, name)


def test_a_parametrised_projection_shows_the_weight_it_multiplies_by(llama: Any) -> None:
    projection = llama.submodule("q")
    before = llama.W_Q.clone()
    nn.utils.parametrize.register_parametrization(projection, "weight", nn.Hardtanh(0.0, torch.inf))
    assert torch.equal(llama.W_Q, before.clamp(min=0))


FUSED = (
    "codegen",
    "falcon",
    "falcon_mqa",
    "falcon_mha",
    "persimmon",
    "gpt_neox_japanese",
    "qwen3_next",
    "modernbert",
    "gptj",
)


@pytest.mark.parametrize("name", FUSED)
@torch.no_grad()
def test_views_of_weights_give_what_the_hooks_hold_however_the_rows_lie(name: str) -> None:
    """In blocks, kv head by kv head, in quarters, or with a gate between them."""
    model = build_model(name)
    randomise(model)
    with attach(model) as bridged:
        layer = bridged.layers[0]
        names = {role: f"{layer.name}.hook_{role}" for role in ("in", "q", "k", "v")}
        _, cache = bridged.run_with_cache(
            **inputs_of(name, model.config), names_filter=list(names.values())
        )
        for role in "qkv":
            made = torch.einsum(
                "bpd,hde->bphe", cache[names["in"]], getattr(layer, f"W_{role.upper()}")
            )
            bias = getattr(layer, f"b_{role.upper()}")
            torch.testing.assert_close(
                made if bias is None else made + bias, cache[names[role]], rtol=1e-4, atol=1e-5
            )


def test_what_comes_up_from_a_latent_has_no_one_weight() -> None:
    """LAT-1."""
    with (
        attach(build_model("deepseek_v3"), verify=False) as bridged,
        pytest.raises(SubmoduleError, match=r"has no W_K to show: its heads come up from a latent"),
    ):
        _ = bridged.layers[0].W_K


def test_inputs_of_heads_that_share_a_latent_are_not_split() -> None:
    """LAT-1."""
    with pytest.raises(
        UnsupportedAttention,
        match=(
            r"use_attn_in gives each head an input of its own, and the heads of DeepseekV3Attention"
            r" share a latent"
        ),
    ):
        attach(build_model("deepseek_v3"), use_attn_in=True)


def test_a_layer_whose_output_is_projected_by_the_layer_around_has_the_identity_for_it() -> None:
    with attach(build_model("esm"), verify=False) as bridged:
        layer = bridged.layers[0]
        assert torch.equal(layer.W_O.flatten(0, 1), torch.eye(60))
        assert layer.b_O is None
