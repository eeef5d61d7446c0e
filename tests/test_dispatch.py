"""Models on several devices, in parts, and side by side: accelerate's hooks stay around the bridge,
offloaded weights are brought in, and layers may be chosen."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ropebridge import AttachError, UnsupportedAttention, attach

accelerate = pytest.importorskip("accelerate")
hooks = pytest.importorskip("accelerate.hooks")

pytestmark = pytest.mark.slow

Z = "blocks.1.attn.hook_z"
FAMILIES = ["llama", "qwen3", "olmo2", "gpt_oss"]
"""With norms for each head and for all, and with sinks."""


def zero(tensor: Tensor, hook: Any) -> Tensor:
    """A hook that replaces by nothing."""
    return torch.zeros_like(tensor)


def offload_to_cpu(model: nn.Module, folder: Path) -> None:
    accelerate.cpu_offload(model, execution_device="cpu")


def offload_to_disk(model: nn.Module, folder: Path) -> None:
    accelerate.disk_offload(model, folder, execution_device="cpu")


def dispatch(model: nn.Module, folder: Path) -> None:
    around = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
    where = dict.fromkeys(around, "cpu")
    where |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    accelerate.dispatch_model(model, where, main_device="cpu", offload_dir=folder, force_hooks=True)


@pytest.fixture(params=[offload_to_cpu, offload_to_disk, dispatch])
def spread(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """`spread(model)`: its weights are somewhere else."""
    return lambda model: request.param(model, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_dispatched_model_is_attached_to_beneath_accelerates_hooks(
    build: Any, tokens: Tensor, spread: Any, family: str
) -> None:
    model = build(family)
    whole = copy.deepcopy(model)
    spread(model)
    alone = model(tokens).logits
    with attach(whole) as bridged:
        wanted = bridged.run_with_hooks(tokens, fwd_hooks=[(Z, zero)]).logits
    with attach(model, use_attn_result=True) as bridged:
        assert any(weight.is_meta for weight in model.parameters())
        torch.testing.assert_close(bridged(tokens).logits, alone, rtol=1e-5, atol=1e-5)
        edited = bridged.run_with_hooks(tokens, fwd_hooks=[(Z, zero)]).logits
        torch.testing.assert_close(edited, wanted, rtol=1e-5, atol=1e-5)
        _, cache = bridged.run_with_cache(tokens)
        assert not any(tensor.is_meta for tensor in cache.values())
        layer = bridged.layers[1]
        torch.testing.assert_close(layer.W_O, whole_weight(whole, layer.W_O.shape))
        assert not layer.get_random_inputs()["hidden_states"].is_meta
    assert any(weight.is_meta for weight in model.parameters())
    assert torch.equal(model(tokens).logits, alone)


def whole_weight(model: Any, shape: torch.Size) -> Tensor:
    """W_O of the second layer, (head, d_head, d_model)."""
    return model.model.layers[1].self_attn.o_proj.weight.T.reshape(shape)


@torch.no_grad()
def test_accelerates_hooks_may_come_and_go_while_the_bridge_is_in_force(
    build: Any, tokens: Tensor, tmp_path: Path
) -> None:
    model = build("llama")
    bridged = attach(model)
    wanted = bridged.run_with_hooks(tokens, fwd_hooks=[(Z, zero)]).logits
    dispatch(model, tmp_path)
    assert torch.equal(bridged.run_with_hooks(tokens, fwd_hooks=[(Z, zero)]).logits, wanted)
    hooks.remove_hook_from_submodules(model)
    accelerate.cpu_offload(model, execution_device="cpu")
    assert torch.equal(bridged.run_with_hooks(tokens, fwd_hooks=[(Z, zero)]).logits, wanted)
    bridged.detach()
    model(tokens)


@torch.no_grad()
def test_a_model_that_accelerate_gave_back_is_attached_to(build: Any, tokens: Tensor) -> None:
    """Each instance then holds its class's own method under its own name."""
    model = build("llama")
    alone = model(tokens).logits
    for module in model.modules():
        hooks.add_hook_to_module(module, hooks.ModelHook())
    hooks.remove_hook_from_submodules(model)
    assert "forward" in vars(model.model.layers[0].self_attn)
    with attach(model) as bridged:
        torch.testing.assert_close(bridged(tokens).logits, alone, rtol=1e-5, atol=1e-5)
        assert bridged.run_with_cache(tokens, names_filter=Z)[1]
    assert torch.equal(model(tokens).logits, alone)


# ---- parts ----


def test_some_layers_are_attached_to_and_the_others_left_alone(build: Any, tokens: Tensor) -> None:
    model = build("llama", num_hidden_layers=3)
    with attach(model, layers=[0, 2]) as bridged:
        assert [layer.name for layer in bridged.layers] == ["blocks.0.attn", "blocks.2.attn"]
        assert "forward" not in vars(model.model.layers[1].self_attn)
        assert len(bridged.run_with_cache(tokens)[1]) == 24
    with pytest.raises(AttachError, match=r"layers=\[7\] names layer 7; .* are \[0, 1, 2\]"):
        attach(model, layers=[7])
    with pytest.raises(AttachError, match=r"layers=\[\] names no layer"):
        attach(model, layers=[])


class OtherAttention(nn.Module):
    """Attention that takes rotary tables, and that no family describes."""

    layer_idx = 0

    def forward(self, hidden_states: Tensor, position_embeddings: Any) -> Tensor:
        return hidden_states


def test_the_part_of_a_model_that_is_served_is_named_where_another_is_not(build: Any) -> None:
    class Both(nn.Module):
        def __init__(self, text: nn.Module) -> None:
            super().__init__()
            self.visual = nn.ModuleList([OtherAttention()])
            self.text = text

    model = Both(build("llama"))
    message = (
        r"^attention class 'OtherAttention' is not in the table(.|\n)*"
        r"it is 'visual\.0'; the layers of 'text\.model' are served: attach\(model\.text\.model\)$"
    )
    with pytest.raises(UnsupportedAttention, match=message):
        attach(model)
    with attach(model.text.model) as bridged:
        assert len(bridged.layers) == 2
    mixed = build("llama")
    mixed.model.layers[1].self_attn = OtherAttention()
    mixed.model.layers[1].self_attn.layer_idx = 1
    with pytest.raises(UnsupportedAttention, match=r"and verify=True proves it$"):
        attach(mixed)
    with attach(mixed, layers=[0]) as bridged:
        assert len(bridged.layers) == 1


# ---- side by side ----


def test_two_attached_models_do_not_see_each_other(build: Any, tokens: Tensor) -> None:
    one, other = attach(build("llama", seed=1)), attach(build("llama", seed=2))
    plain = other(tokens).logits
    with one.hooks([(Z, zero)]), other.caching(Z) as cache:
        edited = one(tokens).logits
        assert torch.equal(other(tokens).logits, plain)
    assert len(cache[Z]) == 1
    assert not torch.equal(one(tokens).logits, edited)
    one.detach()
    assert torch.equal(other.run_with_cache(tokens)[0].logits, plain)
    other.detach()


# ---- attention weights ----


def by_argument(bridged: Any, tokens: Tensor) -> Any:
    return bridged(tokens, output_attentions=True).attentions


def by_config(bridged: Any, tokens: Tensor) -> Any:
    bridged.model.config.output_attentions = True
    return bridged(tokens).attentions


def by_hooks(bridged: Any, tokens: Tensor) -> Any:
    return bridged.run_with_hooks(tokens, output_attentions=True).attentions


def by_cache(bridged: Any, tokens: Tensor) -> Any:
    output, cache = bridged.run_with_cache(tokens, output_attentions=True)
    assert all(torch.equal(cache["pattern", n], each) for n, each in enumerate(output.attentions))
    return output.attentions


def by_generation(bridged: Any, tokens: Tensor) -> Any:
    generated = bridged.model.generate(
        tokens,
        max_new_tokens=1,
        output_attentions=True,
        return_dict_in_generate=True,
        do_sample=False,
    )
    return generated.attentions[0]


@pytest.mark.parametrize("route", [by_argument, by_config, by_hooks, by_cache, by_generation])
@torch.no_grad()
def test_attention_weights_are_returned_by_every_route(
    build: Any, tokens: Tensor, route: Any
) -> None:
    model = build("llama")
    wanted = model(tokens, output_attentions=True).attentions
    with attach(model) as bridged:
        got = route(bridged, tokens)
    assert len(got) == len(wanted) == 2
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
