"""Contests: one layer or model, bridged and watched in some way, against what Hugging Face runs on
the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GptOssConfig, LlamaConfig, LlamaForCausalLM, MistralConfig
from transformers.models.gemma2.modeling_gemma2 import (
    Gemma2Attention,
    Gemma2Config,
    Gemma2RotaryEmbedding,
)
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention, GptOssRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRotaryEmbedding

from ropebridge import PositionEmbeddingsAttentionBridge, Watch, attach
from ropebridge.hooks import Look
from ropebridge.owners import this_thread

Run = Callable[[], Any]
Against = Literal["sdpa", "eager", "layer"]
SIZES = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 32768,
}
WINDOW = 256
CACHED = 4096
LINEAR = ("hook_in", "hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k", "hook_z", "hook_out")
CACHES = ("past_key_values", "cache")
"""What transformers calls the argument for a cache: until 5.23, and since."""
EXPLICIT = ("hook_attn_scores", "hook_pattern")


@dataclass(frozen=True)
class Contest:
    """Hold two runs of the same computation: the bridge's, and the one that it is set against.

    ours, theirs: return the output, or what else the two must agree in. edits: ours is edited on
        the way, and gives something else.
    """

    ours: Run
    theirs: Run
    edits: bool = False


def agree(one: Tensor, other: Tensor) -> bool:
    """Return whether two outputs are the same but for rounding, which many terms add up."""
    most = 1e-4 if one.dtype == torch.float32 else 5e-2
    return float((one - other).abs().max()) <= most * float(other.abs().max())


def look(tensor: Tensor, hook: Any) -> None:
    """Change nothing."""


def edit(tensor: Tensor, hook: Any) -> None:
    """Take a tenth away, in place."""
    tensor.mul_(0.9)


def llama(attn: str, **more: Any) -> tuple[nn.Module, nn.Module]:
    """A Llama attention layer and its rotary module."""
    config = LlamaConfig(**SIZES, **more)
    config._attn_implementation = attn
    return LlamaAttention(config, 0), LlamaRotaryEmbedding(config)


def mistral(attn: str, **more: Any) -> tuple[nn.Module, nn.Module]:
    """A layer with a window of 256 keys."""
    config = MistralConfig(**SIZES, sliding_window=WINDOW, **more)
    config._attn_implementation = attn
    return MistralAttention(config, 0), MistralRotaryEmbedding(config)


def gemma2(attn: str, **more: Any) -> tuple[nn.Module, nn.Module]:
    """A layer that caps its scores, without a window."""
    sizes = {**SIZES, "query_pre_attn_scalar": 64, "layer_types": ["full_attention"] * 26}
    config = Gemma2Config(**sizes, **more)
    config._attn_implementation = attn
    return Gemma2Attention(config, 0), Gemma2RotaryEmbedding(config)


def gpt_oss(attn: str, **more: Any) -> tuple[nn.Module, nn.Module]:
    """A layer with sinks, without a window."""
    config = GptOssConfig(**{**SIZES, "layer_types": ["full_attention"] * 36}, **more)
    config._attn_implementation = attn
    return GptOssAttention(config, 0), GptOssRotaryEmbedding(config)


FAMILIES = {"llama": llama, "mistral": mistral, "gemma2": gemma2, "gpt_oss": gpt_oss}


def layer(
    family: str, attn: str, dtype: torch.dtype, trained: bool, device: str = "cpu"
) -> tuple[Any, nn.Module]:
    """An attention layer of a family with the same numbers each time, and its rotary module."""
    torch.manual_seed(0)
    module, rotary = FAMILIES[family](attn)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.03)
    return module.eval().requires_grad_(trained).to(device, dtype), rotary.to(device)


def bridged(module: nn.Module, rotary: nn.Module) -> PositionEmbeddingsAttentionBridge:
    """A bridge around an attention layer."""
    bridge = PositionEmbeddingsAttentionBridge("blocks.0.attn", None)
    bridge.set_original_component(module)
    bridge.set_rotary_emb(rotary)
    return bridge


def contest(
    pos: int,
    *,
    family: str = "llama",
    against: Against = "sdpa",
    ours: str = "sdpa",
    watch: Sequence[str] = (),
    hook: Callable[..., Any] = look,
    dtype: torch.dtype = torch.float32,
    batch: int = 1,
    padding: int = 0,
    backward: bool = False,
    part: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Contest:
    """A layer over so many positions, watched whole or in part, against the layer alone.

    Each is handed the mask that its model would hand it: eager always one, sdpa where positions are
    padded or a window says more than causality.
    """
    module, rotary = layer(family, ours, dtype, backward, device)
    other, _ = layer(family, "sdpa" if against == "layer" else against, dtype, backward, device)
    bridge = bridged(module, rotary)
    for name in watch:
        point, narrowed = bridge.hook_points[name], Watch(name, **(part or {}))
        looks = isinstance(hook, Look)
        point.place(hook, "fwd", this_thread(), watch=narrowed, looks=looks)
    inputs = bridge.get_random_inputs(batch, pos, dtype=dtype, seed=0, left_padding=padding)
    mask = inputs.pop("attention_mask")

    def mask_for(attn: str) -> Tensor | None:
        if attn == "eager":
            return mask
        return mask == 0 if padding or bridge.variant.window is not None else None

    def run(call: Any, attn: str) -> Run:
        own = {**inputs, "attention_mask": mask_for(attn)}
        if backward:
            return lambda: differentiate(call, own)
        # without padded positions: they see no key, and eager gives them the mean of all values
        return lambda: call(**own)[0][:, padding:]

    theirs = run(other, other.config._attn_implementation)
    return Contest(run(bridge, ours), theirs, edits=hook is edit)


def differentiate(call: Any, inputs: dict[str, Any]) -> Tensor:
    """Run a layer forward and backward, and return the gradient at its input."""
    with torch.enable_grad():
        x = inputs["hidden_states"].detach().requires_grad_()
        call(**{**inputs, "hidden_states": x})[0].square().mean().backward()
    assert x.grad is not None
    return x.grad


def decode_layer(
    watch: Sequence[str] = (), dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Contest:
    """One step of decoding of one layer, after 4096 cached positions."""
    module, rotary = layer("llama", "sdpa", dtype, False, device)
    bridge = bridged(module, rotary)
    for name in watch:
        bridge.hook_points[name].add_hook(look)
    inputs = bridge.get_random_inputs(1, CACHED + 1, dtype=dtype, seed=0)
    cos, sin = inputs["position_embeddings"]
    step = {
        "hidden_states": inputs["hidden_states"][:, -1:],
        "position_embeddings": (cos[:, -1:], sin[:, -1:]),
        "attention_mask": None,
    }

    def run(call: Any) -> Run:
        cache = DynamicCache(config=module.config)
        keys = torch.randn(1, 4, CACHED, 64, generator=torch.Generator().manual_seed(1))
        keys = keys.to(device, dtype)
        cache.update(keys, keys, 0)
        (name,) = (n for n in bridge.signature.parameters if n in CACHES)

        def once() -> Tensor:
            out: Tensor = call(**step, **{name: cache})[0]
            cache.crop(-1)
            return out

        return once

    return Contest(run(bridge), run(module))


def decode_model(watch: Sequence[str] = ()) -> Contest:
    """One step of decoding of a model of 12 layers of width 256, after 24 cached positions."""

    def model() -> LlamaForCausalLM:
        torch.manual_seed(0)
        sizes = {**SIZES, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = LlamaConfig(**sizes, num_hidden_layers=12, intermediate_size=512, vocab_size=256)
        config._attn_implementation = "sdpa"
        return LlamaForCausalLM(config).eval()

    def run(model: LlamaForCausalLM) -> Run:
        cache = DynamicCache(config=model.config)
        (name,) = (n for n in signature(model.forward).parameters if n in CACHES)
        model(torch.arange(24)[None], **{name: cache})
        token = torch.tensor([[7]])

        def once() -> Tensor:
            logits: Tensor = model(token, **{name: cache}).logits
            cache.crop(-1)
            return logits

        return once

    watched, plain = model(), model()
    attached = attach(watched)
    for name in watch:
        attached.add_hook(lambda full, name=name: full.endswith(f".{name}"), look)
    return Contest(run(watched), run(plain))
