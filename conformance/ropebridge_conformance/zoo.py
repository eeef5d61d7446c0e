"""The zoo: one tiny random attention layer for everything a served family does differently."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ropebridge_spec import Variant, describe

WINDOW = 5
SIZES: Mapping[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 60,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""1 < kv heads < heads, heads * d_head != d_model, and 1/sqrt(20) is no power of two: a slip in any of them shows."""

ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 16}


@dataclass(frozen=True)
class Case:
    """One layer of one family: id, transformers' model type, which layer, and what its config sets."""

    id: str
    model_type: str
    layer: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)


CASES: tuple[Case, ...] = (
    Case("llama", "llama", 0, {"attention_bias": True}),
    Case("mistral", "mistral", 0, {"sliding_window": WINDOW}),
    Case("gemma2_local", "gemma2", 0, {**ALTERNATING, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 24}),
    Case("gemma2_global", "gemma2", 1, {**ALTERNATING, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 24}),
    Case("gemma3_local", "gemma3_text", 0, {**ALTERNATING, "query_pre_attn_scalar": 24}),
    Case("gemma3_global", "gemma3_text", 1, {**ALTERNATING, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0}),
    Case("qwen3", "qwen3", 0, {"attention_bias": True}),
    Case("olmo2", "olmo2"),
    Case("cohere_normed", "cohere", 0, {"use_qk_norm": True}),
    Case("cohere_plain", "cohere", 0, {"use_qk_norm": False, "attention_bias": True}),
    Case("gpt_oss_local", "gpt_oss", 0, {**ALTERNATING, "rope_parameters": YARN, "num_local_experts": 2, "num_experts_per_tok": 1}),
    Case("gpt_oss_global", "gpt_oss", 1, {**ALTERNATING, "rope_parameters": YARN, "num_local_experts": 2, "num_experts_per_tok": 1}),
)
CASE: Mapping[str, Case] = {case.id: case for case in CASES}


@dataclass(frozen=True)
class Specimen:
    """An attention module to judge, its rotary module, and what it computes."""

    module: nn.Module
    rotary: nn.Module
    variant: Variant
    dtype: torch.dtype
    device: torch.device


@lru_cache(maxsize=64)
def specimen(case_id: str, dtype: torch.dtype, device: str) -> Specimen:
    """A case's layer with random weights, always the same ones; norms and softmax run eager in Hugging Face's own forward.

    Only the attention module is cast: transformers keeps rotary frequencies in float32.
    """
    case = CASE[case_id]
    model = tiny_model(case)
    module = model.layers[case.layer].self_attn.to(device=device, dtype=dtype).eval()
    return Specimen(module, model.rotary_emb.to(device), describe(module), dtype, torch.device(device))


def tiny_model(case: Case) -> Any:
    """The base model of a case, a few thousand random parameters, in float32 on the cpu."""
    config = CONFIG_MAPPING[case.model_type](**{**SIZES, **case.config})
    auto: Any = AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config, attn_implementation="eager")
    randomise(model)
    return model.requires_grad_(False)


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter a value that matters: matrices keep the scale of their input, vectors vary around theirs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            matrix = parameter.ndim >= 2 and "norm" not in name
            parameter.copy_(random_matrix(parameter, generator) if matrix else around(parameter, generator))


def random_matrix(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise at the scale at which attention neither saturates nor goes flat."""
    return torch.randn(like.shape, generator=generator) * (1.3 / math.sqrt(like.shape[-1]))


def around(initial: Tensor, generator: torch.Generator) -> Tensor:
    """What transformers initialised, and noise."""
    return initial.detach() + 0.4 * torch.randn(initial.shape, generator=generator)
