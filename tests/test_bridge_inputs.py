"""Random inputs, and what each flag of the constructor means (clauses CFG-1 to CFG-4)."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ropebridge import (
    AttentionBridge,
    ContractError,
    NotBound,
    PositionEmbeddingHooksMixin,
    PositionEmbeddingsAttentionBridge,
    RotaryMissing,
    SubmoduleError,
    attach,
)
from ropebridge_spec import axis_sizes, hook_order, shape_of

pytestmark = pytest.mark.slow


@pytest.fixture
def attention(build: Any) -> Any:
    return build("qwen3").model.layers[0].self_attn


# ---- the public face ----


def test_the_public_face_is_the_one_that_was_agreed_on() -> None:
    bridge = PositionEmbeddingsAttentionBridge
    assert bridge.__bases__ == (PositionEmbeddingHooksMixin, AttentionBridge)
    assert str(inspect.signature(bridge)).startswith(
        "(name: 'str', config: 'Any', submodules: 'Mapping[str, Any] | None' = None, optional:"
        " 'bool' = False, requires_attention_mask: 'bool' = True, requires_position_embeddings:"
        " 'bool' = True, **kwargs: 'Any')"
    )
    assert list(inspect.signature(bridge.get_random_inputs).parameters)[:5] == [
        "self",
        "batch_size",
        "seq_len",
        "device",
        "dtype",
    ]


# ---- get_random_inputs ----


def test_random_inputs_have_their_three_keys_and_default_sizes(bridge: Any) -> None:
    inputs = bridge.get_random_inputs()
    assert list(inputs) == ["hidden_states", "position_embeddings", "attention_mask"]
    assert (inputs["hidden_states"].shape, inputs["attention_mask"].shape) == (
        (2, 8, 60),
        (2, 1, 8, 8),
    )


def test_random_inputs_are_what_the_wrapped_module_takes(bridge: Any) -> None:
    module = bridge.original_component
    out, _ = type(module).forward(module, **bridge.get_random_inputs(3, 7))
    assert out.shape == (3, 7, 60)


def test_a_seed_repeats_the_numbers(llama: Any) -> None:
    first, again, other = (
        llama.get_random_inputs(seed=seed)["hidden_states"] for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_seed_leaves_the_global_generator_alone(llama: Any) -> None:
    state = torch.get_rng_state()
    llama.get_random_inputs(seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_is_drawn_from(llama: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = (
        llama.get_random_inputs(generator=generator),
        llama.get_random_inputs(generator=generator),
    )
    assert torch.equal(first["hidden_states"], llama.get_random_inputs(seed=3)["hidden_states"])
    assert not torch.equal(first["hidden_states"], second["hidden_states"])


def test_without_either_the_global_generator_is_drawn_from(llama: Any) -> None:
    torch.manual_seed(3)
    first = llama.get_random_inputs()["hidden_states"]
    torch.manual_seed(3)
    assert torch.equal(first, llama.get_random_inputs()["hidden_states"])


def test_a_seed_and_a_generator_together_are_refused(llama: Any) -> None:
    with pytest.raises(ValueError, match="a seed and a generator; give one of them"):
        llama.get_random_inputs(seed=1, generator=torch.Generator())


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float16, torch.float64],
    ids=["float32", "bfloat16", "float16", "float64"],
)
def test_the_dtype_is_the_modules_own_by_default(bridge: Any, dtype: torch.dtype) -> None:
    bridge.original_component.to(dtype)
    inputs = bridge.get_random_inputs()
    assert {inputs["hidden_states"].dtype, inputs["attention_mask"].dtype} == {dtype}


def test_the_dtype_can_be_asked_for(llama: Any) -> None:
    assert llama.get_random_inputs(dtype=torch.bfloat16)["hidden_states"].dtype == torch.bfloat16


def test_the_device_is_the_modules_own_by_default(bridge_layer: Any) -> None:
    bridge = bridge_layer("llama")
    bridge.original_component.to("meta")
    bridge.rotary_emb.to("meta")
    inputs = bridge.get_random_inputs(seed=0)
    assert inputs["hidden_states"].is_meta
    assert bridge(**inputs)[0].shape == (2, 8, 60)


def test_a_dtype_of_integers_among_the_parameters_is_passed_over(llama: Any) -> None:
    """A quantised projection holds its weight as integers."""
    projection = llama.submodule("q")
    projection.weight = nn.Parameter(projection.weight.detach().to(torch.int8), requires_grad=False)
    assert llama.get_random_inputs()["hidden_states"].dtype == torch.float32


def test_the_numbers_are_standard_normal(llama: Any) -> None:
    x = llama.get_random_inputs(16, 64, seed=0)["hidden_states"]
    assert float(x.mean()) == pytest.approx(0, abs=0.02)
    assert float(x.std()) == pytest.approx(1, abs=0.02)


def test_the_tables_are_those_of_the_models_own_rotary_module(build: Any) -> None:
    model: Any = build("llama")
    bridge = PositionEmbeddingsAttentionBridge("blocks.0.attn", model.config)
    bridge.set_original_component(model.model.layers[0].self_attn)
    bridge.set_rotary_emb(model.model.rotary_emb)
    inputs = bridge.get_random_inputs(2, 8, seed=0)
    wanted = model.model.rotary_emb(inputs["hidden_states"], torch.arange(8)[None])
    assert [
        torch.equal(a, b) for a, b in zip(inputs["position_embeddings"], wanted, strict=True)
    ] == [True, True]


def test_the_two_rotary_tables_of_gemma3_differ_by_layer(bridge_layer: Any) -> None:
    local, whole = (
        bridge_layer("gemma3", layer).get_random_inputs(seed=0)["position_embeddings"][0]
        for layer in (0, 1)
    )
    assert local.shape == whole.shape
    assert not torch.allclose(local, whole)


def test_the_mask_is_causal_and_windowed(bridge_layer: Any) -> None:
    mask = bridge_layer("mistral").get_random_inputs(1, 8)["attention_mask"][0, 0]
    distance = torch.arange(8)[:, None] - torch.arange(8)[None]
    assert torch.equal(mask == 0, (distance >= 0) & (distance < 5))
    assert mask.unique().tolist() == [torch.finfo(torch.float32).min, 0.0]


def test_left_padding_masks_keys_and_shifts_positions(llama: Any) -> None:
    inputs = llama.get_random_inputs(2, 8, left_padding=3)
    seen = inputs["attention_mask"][:, 0] == 0
    cos, _ = inputs["position_embeddings"]
    assert seen[0, -1].all()
    assert seen[1, -1].tolist() == [False] * 3 + [True] * 5
    assert torch.equal(cos[1, 3:], cos[0, :5])


@pytest.mark.parametrize("call", ["get_random_inputs", "make_tables"])
def test_without_a_rotary_module_tables_are_refused_never_made_up(
    attention: Any, call: str
) -> None:
    bridge = PositionEmbeddingsAttentionBridge("blocks.0.attn", None)
    bridge.set_original_component(attention)
    calls = {
        "get_random_inputs": bridge.get_random_inputs,
        "make_tables": lambda: bridge.make_tables(torch.zeros(1, 2, 60), torch.arange(2)[None]),
    }
    with pytest.raises(
        RotaryMissing,
        match=(
            r"'blocks\.0\.attn' has no rotary"
            r" module(.|\n)*set_rotary_emb\(model\.model\.rotary_emb\)"
        ),
    ):
        calls[call]()


@pytest.mark.parametrize("part", ["model.layers.0", "model.layers", "model.layers.1.self_attn"])
def test_a_part_of_a_model_without_its_rotary_module_is_told_both_ways_on(
    build: Any, part: str
) -> None:
    message = (
        r"\n  where attach was given a part of a model: give it the part that holds the rotary"
        r" module too, such as model\.model, or go on unproved:"
        r"\n  bridged = attach\(part, verify=False\); then, for each bridge in bridged\.layers,"
        r" bridge\.set_rotary_emb\(model\.model\.rotary_emb\)$"
    )
    with pytest.raises(RotaryMissing, match=message):
        attach(build("llama").get_submodule(part))


def test_both_ways_on_that_message_names_work(build: Any) -> None:
    model: Any = build("llama")
    attach(model.model).detach()
    layer = model.model.layers[0]
    with attach(layer, verify=False) as bridged:
        for bridge in bridged.layers:
            bridge.set_rotary_emb(model.model.rotary_emb)
        inputs = bridged.layers[0].get_random_inputs(2, 5, seed=0)
        _, cache = bridged.run_with_cache(
            inputs["hidden_states"], position_embeddings=inputs["position_embeddings"]
        )
    assert cache["blocks.0.attn.hook_z"].shape == (2, 5, 6, 20)


# ---- set_original_component ----


def test_the_rotary_module_is_not_taken_away_from_the_model(llama: Any) -> None:
    assert "rotary_emb" not in dict(llama.named_children())


def test_a_rotary_module_that_the_attention_owns_is_taken_from_there(build: Any) -> None:
    model: Any = build("llama")
    attention = model.model.layers[0].self_attn
    attention.rotary_emb = model.model.rotary_emb
    bridge = PositionEmbeddingsAttentionBridge("blocks.0.attn", None)
    bridge.set_original_component(attention)
    assert bridge.rotary_emb is model.model.rotary_emb


def test_another_component_can_be_set_and_brings_its_own_hook_points(build: Any) -> None:
    bridge = PositionEmbeddingsAttentionBridge("blocks.0.attn", None)
    bridge.set_original_component(build("qwen3").model.layers[0].self_attn)
    assert "hook_q_normed" in bridge.hook_points
    bridge.set_original_component(build("llama").model.layers[0].self_attn)
    assert "hook_q_normed" not in bridge.hook_points


def test_before_a_component_is_set_there_are_no_hook_points() -> None:
    assert PositionEmbeddingsAttentionBridge("blocks.0.attn", None).hook_points == {}


# ---- optional (CFG-1) ----


@pytest.mark.clause("CFG-1")
def test_an_optional_bridge_accepts_that_there_is_no_component() -> None:
    bridge = PositionEmbeddingsAttentionBridge("blocks.0.attn", None, optional=True)
    bridge.set_original_component(None)
    assert bridge.original_component is None


@pytest.mark.clause("CFG-1")
def test_a_bridge_that_is_not_optional_refuses_none() -> None:
    with pytest.raises(
        SubmoduleError,
        match=(
            r"'blocks\.0\.attn' was given None to wrap, and is not optional\n  (.|\n)*optional=True"
        ),
    ):
        PositionEmbeddingsAttentionBridge("blocks.0.attn", None).set_original_component(None)


@pytest.mark.clause("CFG-1")
def test_an_optional_bridge_without_a_component_cannot_run() -> None:
    with pytest.raises(NotBound, match="has no attention module yet"):
        PositionEmbeddingsAttentionBridge("blocks.0.attn", None, optional=True)(
            torch.zeros(1, 2, 60)
        )


# ---- requires_attention_mask (CFG-2) ----


@pytest.mark.clause("CFG-2")
def test_a_mask_is_made_where_it_is_required(llama: Any) -> None:
    assert isinstance(llama.get_random_inputs()["attention_mask"], Tensor)


@pytest.mark.clause("CFG-2")
def test_no_mask_is_made_where_it_is_not_required(bridge_layer: Any) -> None:
    assert (
        bridge_layer("llama", requires_attention_mask=False).get_random_inputs()["attention_mask"]
        is None
    )


@pytest.mark.clause("CFG-2")
def test_a_mask_is_made_for_padding_in_any_case(bridge_layer: Any) -> None:
    inputs = bridge_layer("llama", requires_attention_mask=False).get_random_inputs(left_padding=2)
    assert isinstance(inputs["attention_mask"], Tensor)


@pytest.mark.clause("CFG-2")
@pytest.mark.parametrize("required", [True, False])
@torch.no_grad()
def test_forward_takes_a_mask_or_none_either_way(bridge_layer: Any, required: bool) -> None:
    bridge = bridge_layer("mistral", requires_attention_mask=required)
    explicit = bridge_layer("mistral").get_random_inputs(seed=0)
    torch.testing.assert_close(
        bridge(**explicit)[0],
        bridge(**{**explicit, "attention_mask": None})[0],
        rtol=1e-5,
        atol=1e-6,
    )


# ---- requires_position_embeddings (CFG-3) ----


@pytest.mark.clause("CFG-3")
def test_tables_that_are_required_and_missing_are_refused(llama: Any) -> None:
    with pytest.raises(
        ContractError, match="was given no position_embeddings, and its layer rotates; clause CFG-3"
    ):
        llama(torch.zeros(1, 4, 60))


@pytest.mark.clause("CFG-3")
@torch.no_grad()
def test_tables_that_are_not_required_are_made(bridge_layer: Any, family: str) -> None:
    bridge = bridge_layer(family, requires_position_embeddings=False)
    inputs = bridge.get_random_inputs(2, 8, seed=0)
    assert torch.equal(
        bridge(inputs["hidden_states"], attention_mask=inputs["attention_mask"])[0],
        bridge(**inputs)[0],
    )


@pytest.mark.clause("CFG-3")
@torch.no_grad()
def test_position_ids_say_which_tables_to_make(bridge_layer: Any) -> None:
    bridge = bridge_layer("llama", requires_position_embeddings=False)
    inputs = bridge.get_random_inputs(2, 8, seed=0, left_padding=3)
    ids = (torch.arange(8)[None] - torch.tensor([0, 3])[:, None]).clamp(min=0)
    made = bridge(
        inputs["hidden_states"], attention_mask=inputs["attention_mask"], position_ids=ids
    )[0]
    assert torch.equal(made, bridge(**inputs)[0])


@pytest.mark.clause("CFG-3")
@torch.no_grad()
def test_tables_without_a_batch_axis_are_accepted(bridge: Any) -> None:
    inputs = bridge.get_random_inputs(2, 8, seed=0)
    flat = tuple(table[0] for table in inputs["position_embeddings"])
    assert torch.equal(bridge(**{**inputs, "position_embeddings": flat})[0], bridge(**inputs)[0])


@pytest.mark.clause("CFG-3")
@torch.no_grad()
def test_arguments_may_be_given_by_position_as_the_wrapped_class_takes_them(bridge: Any) -> None:
    inputs = bridge.get_random_inputs(2, 8, seed=0)
    assert torch.equal(bridge(*inputs.values())[0], bridge(**inputs)[0])


# ---- submodules (CFG-4) ----

ROLES = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "q_norm": "q_norm",
    "k_norm": "k_norm",
}


def declared(component: nn.Module, submodules: Any) -> PositionEmbeddingsAttentionBridge:
    bridge = PositionEmbeddingsAttentionBridge("blocks.0.attn", None, submodules)
    bridge.set_original_component(component)
    return bridge


@pytest.mark.clause("CFG-4")
@pytest.mark.parametrize(
    "wrap",
    [str, lambda name: SimpleNamespace(name=name)],
    ids=["a_string", "an_object_with_a_name"],
)
def test_declared_submodules_are_those_that_are_used(attention: Any, wrap: Any) -> None:
    attention.renamed = attention.q_proj
    bridge = declared(
        attention, {role: wrap(name) for role, name in {**ROLES, "q": "renamed"}.items()}
    )
    assert bridge.submodule("q") is attention.renamed


@pytest.mark.clause("CFG-4")
@pytest.mark.parametrize("role", ROLES)
def test_a_role_left_out_is_refused_by_name(attention: Any, role: str) -> None:
    """Left out, its stage would be too: a norm that silently does nothing."""
    with pytest.raises(
        SubmoduleError, match=rf"lacks \['{role}'\], which Qwen3Attention has\n  without them"
    ):
        declared(attention, {name: attribute for name, attribute in ROLES.items() if name != role})


@pytest.mark.clause("CFG-4")
def test_a_role_that_does_not_exist_is_refused_by_name(attention: Any) -> None:
    with pytest.raises(
        SubmoduleError,
        match=(
            r"declares submodules \['qkv'\], which Qwen3Attention does not have; its roles are"
            r" \['k', 'k_norm'"
        ),
    ):
        declared(attention, {**ROLES, "qkv": "qkv_proj"})


@pytest.mark.clause("CFG-4")
def test_an_attribute_that_is_not_there_is_refused_by_name(attention: Any) -> None:
    with pytest.raises(
        SubmoduleError,
        match=(
            r"declares o='out', and Qwen3Attention has no module 'out'\n  its modules are"
            r" \['k_norm', 'k_proj'"
        ),
    ):
        declared(attention, {**ROLES, "o": "out"})


@pytest.mark.clause("CFG-4")
@pytest.mark.parametrize(
    ("key", "value", "has"),
    [("hidden_size", 61, 60), ("num_attention_heads", 3, 6), ("num_key_value_heads", 6, 2)],
    ids=["width", "heads", "kv_heads"],
)
def test_a_config_that_speaks_of_another_model_is_refused(
    attention: Any, key: str, value: int, has: int
) -> None:
    with pytest.raises(
        SubmoduleError,
        match=(
            f"a config with {key}={value}, and the module has {has}; give it the module's own"
            " config"
        ),
    ):
        PositionEmbeddingsAttentionBridge(
            "blocks.0.attn", SimpleNamespace(**{key: value})
        ).set_original_component(attention)


# ---- inputs of no length ----


@pytest.mark.parametrize(
    ("batch", "pos"), [(0, 5), (2, 0), (0, 0)], ids=["no_batch", "no_positions", "neither"]
)
@pytest.mark.parametrize("mask", ["explicit_mask", "padding", "no_mask"])
@pytest.mark.parametrize("path", ["unwatched", "watched", "dropout"])
def test_an_empty_input_gives_an_empty_output(
    bridge_layer: Any, family: str, batch: int, pos: int, mask: str, path: str
) -> None:
    bridge = bridge_layer(family, config={"attention_dropout": 0.3 if path == "dropout" else 0.0})
    inputs = bridge.get_random_inputs(batch, pos, seed=0)
    inputs["attention_mask"] = {
        "explicit_mask": inputs["attention_mask"],
        "padding": torch.ones(batch, pos),
        "no_mask": None,
    }[mask]
    bridge.original_component.train(path == "dropout")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in bridge.hook_points if path == "watched" else ():
        bridge.hook_points[name].add_hook(
            lambda tensor, hook: shapes.__setitem__(hook.spec.name, tuple(tensor.shape))
        )
    out, _ = bridge(**{**inputs, "hidden_states": inputs["hidden_states"].requires_grad_()})
    out.sum().backward()
    assert out.shape == inputs["hidden_states"].grad.shape == (batch, pos, 60)
    sizes = axis_sizes(bridge.variant, batch=batch, pos=pos, key=pos)
    assert shapes == (
        {spec.name: shape_of(spec, sizes) for spec in hook_order(bridge.variant)}
        if path == "watched"
        else {}
    )
