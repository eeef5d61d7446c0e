"""Zoo: one tiny random attention layer for everything a served family does differently."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ropebridge_conformance.zoo.builder import build_model
from ropebridge_conformance.zoo.recipes import INSTALLED, RECIPE_BY_NAME
from ropebridge_conformance.zoo.selection import pin
from ropebridge_spec import FAMILIES, Variant, describe, own_names
from ropebridge_spec.paths import holds


@dataclass(frozen=True)
class Case:
    """Describe one layer of one family: id, the family's recipe, which layer, and what its config
    sets beside the recipe."""

    id: str
    family: str
    layer: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)


CORE: tuple[Case, ...] = (
    Case("llama", "llama"),
    Case("mistral", "mistral"),
    Case("gemma2_local", "gemma2", 0),
    Case("gemma2_global", "gemma2", 1),
    Case("gemma3_local", "gemma3", 0),
    Case("gemma3_global", "gemma3", 1),
    Case("qwen3", "qwen3"),
    Case("olmo2", "olmo2"),
    Case("cohere_normed", "cohere"),
    Case("cohere_plain", "cohere", 0, {"use_qk_norm": False, "attention_bias": True}),
    Case("gpt_oss_local", "gpt_oss", 0),
    Case("gpt_oss_global", "gpt_oss", 1),
)
"""What a run judges unless it is told otherwise: one layer for everything that served families do
differently."""

CORE_FAMILIES = {case.family for case in CORE}
BEYOND_CORE = tuple(
    Case(f"{recipe.name}_{n}", recipe.name, n)
    for recipe in INSTALLED
    if recipe.name not in CORE_FAMILIES
    for n in recipe.layers
)
"""Every kind of layer of every other family that the installed transformers has."""

CASES: tuple[Case, ...] = CORE + BEYOND_CORE
CASE_BY_ID: Mapping[str, Case] = {case.id: case for case in CASES}

FEATURED = (
    *(
        "llama4_0",
        "llama4_1",
        "nanochat_0",
        "chameleon_0",
        "bitnet_0",
        "olmo_0",
        "olmoe_0",
        "falcon_h1_0",
        "mimo_v2_flash_0",
        "afmoe_1",
        "beam_1",
    ),
    *(
        "laguna_0",
        "qwen3_next_1",
        "muse_spark_0",
        "granite_swa_1",
        "flint_0",
        "mistral4_0",
        "hunyuan_vl_0",
        "persimmon_0",
        "starcoder2_0",
        "phi3_0",
    ),
    *(
        "deepseek_v32_0",
        "axk2_0",
        "dots3_note_1",
        "minimax_m3_1",
        "qwen4_exp_1",
        "diffllama_0",
        "doge_0",
        "neomme_0",
        "zamba2_1",
        "roformer_0",
        "moshi_0",
    ),
    *("muse_glimmer_assistant_0", "t5gemma2_decoder_0"),
    *(
        "modernbert_0",
        "gte_0",
        "esm_0",
        "t5gemma_0",
        "embedding_gemma2_0",
        "openai_privacy_filter_0",
        "deepseek_v2_0",
        "longcat_flash_0",
        "bailing_hybrid_1",
    ),
    *("gemma3n_2", "gemma4_1", "dots3_note_0", "hrm_text_0", "glm_moe_dsa_1"),
)
COVER: tuple[Case, ...] = (*CORE, *(CASE_BY_ID[name] for name in FEATURED if name in CASE_BY_ID))
"""A layer for every feature of the contract, where the installed transformers has one."""


def chosen_cases(names: Sequence[str] | None) -> list[Case]:
    """Return the cases of these ids or families; "all" is every one, and None the core."""
    if not names:
        return list(CORE)
    return [case for case in CASES if "all" in names or case.id in names or case.family in names]


@dataclass(frozen=True)
class Specimen:
    """Hold an attention module to judge, its rotary module, and what it computes.

    case: the id of its case; "" for a layer that is of none.
    """

    module: nn.Module
    rotary: nn.Module
    variant: Variant
    dtype: torch.dtype
    device: torch.device
    case: str = ""

    def model(self) -> Any:
        """Return a new model of the case's family around this very module, in float32 but for that;
        None for a layer that is of no case."""
        if not self.case:
            return None
        case = CASE_BY_ID[self.case]
        model = tiny_model(case).to(self.device).eval()
        part = RECIPE_BY_NAME[case.family].part
        path = attention_path(model.get_submodule(part), case.layer)
        model.set_submodule(f"{part}.{path}" if part else path, self.module)
        return model

    @cached_property
    def names(self) -> Mapping[str, str | None]:
        """Return role -> the name that the module's class has for it (`own_names`)."""
        return own_names(type(self.module), self.variant)


def earlier_of_the_same(cases: Sequence[Case]) -> dict[str, str]:
    """Return case -> the first case that has the same layer, of those that have an earlier one:
    the same description, weights of the same shapes. Only their class is another."""
    first: dict[object, str] = {}
    again: dict[str, str] = {}
    for case in cases:
        layer = specimen(case.id, torch.float32, "cpu")
        shapes = ((name, tuple(tensor.shape)) for name, tensor in layer.module.named_parameters())
        kind = (layer.variant, tuple(shapes))
        if kind in first:
            again[case.id] = first[kind]
        first.setdefault(kind, case.id)
    return again


@lru_cache(maxsize=64)
def specimen(case_id: str, dtype: torch.dtype, device: str) -> Specimen:
    """Return a case's layer with random weights, always the same ones; norms and softmax run eager
    in Hugging Face's own forward.

    Only the attention module is cast: transformers keeps rotary frequencies in float32.
    """
    module, rotary = copy.deepcopy(layer_of(case_id))
    module = module.to(device=device, dtype=dtype).eval()
    variant = describe(module)
    pin(module, variant)
    if variant.calling.table_buffer is not None:
        rotary = Sinusoids(getattr(module, variant.calling.table_buffer))
    return Specimen(module, rotary.to(device), variant, dtype, torch.device(device), case_id)


@lru_cache(maxsize=4)
def layer_of(case_id: str) -> tuple[nn.Module, nn.Module]:
    """Return a case's layer and its rotary module, or the layer once more where it holds its tables
    itself, in float32 on the cpu. The model is built once for all dtypes: use copies."""
    case = CASE_BY_ID[case_id]
    part = tiny_model(case).get_submodule(RECIPE_BY_NAME[case.family].part)
    module = attention_layer(part, case.layer)
    holds_tables = describe(module).calling.table_buffer is not None
    return module, module if holds_tables else rotary_module(part)


class Sinusoids(nn.Module):
    """Make tables out of a buffer that holds, for every position, sin and then cos."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Buffer(rows.clone())

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin (batch or 1, pos, width / 2)."""
        sin, cos = self.rows[position_ids].chunk(2, dim=-1)
        return cos, sin


def tiny_model(case: Case) -> Any:
    """Return the model of a case, a few thousand random parameters, in float32 on the cpu."""
    model = build_model(case.family, **case.config)
    randomise(model)
    return model.requires_grad_(False)


def attention_layer(model: nn.Module, layer: int) -> nn.Module:
    """Return the rotary attention of a model's block."""
    return model.get_submodule(attention_path(model, layer))


def attention_path(model: Any, layer: int) -> str:
    """Return where the rotary attention of a model's block is."""
    layers: dict[str, nn.Module] = dict(model.named_modules())
    return next(
        path
        for path, module in layers.items()
        if served(module) and number_of(path, module) == layer
    )


def served(module: nn.Module) -> bool:
    """Return whether a module is attention that the table of families serves."""
    family = FAMILIES.get(type(module).__name__)
    return family is not None and (
        isinstance(family, Variant) or family.only is None or holds(module, family.only)
    )


def number_of(path: str, module: Any) -> int:
    """Return the number of a layer: its own, or the last in its path."""
    own = layer_number(module)
    return own if own is not None else int([p for p in path.split(".") if p.isdigit()][-1])


def layer_number(module: Any) -> int | None:
    """Return the number that a layer's module has of its own; None where it has none."""
    own = getattr(module, "layer_idx", None)
    return int(own) if own is not None and own >= 0 else None


def rotary_module(model: nn.Module) -> nn.Module:
    """Return the module that makes a model's rotary tables."""
    kinds = ("RotaryEmbedding", "SinusoidalPositionalEmbedding")
    found = next(m for m in model.modules() if type(m).__name__.endswith(kinds))
    return Rows(found) if isinstance(found, nn.Embedding) else found


class Rows(nn.Module):
    """Make tables that are rows of an embedding: for every position sin and then cos."""

    def __init__(self, rows: nn.Embedding) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        """Return (batch or 1, 1, pos, width): sin and cos, as a layer is handed them."""
        return self.rows.weight[position_ids].unsqueeze(1).to(x.dtype)


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter a value that matters: matrices keep the scale of their input, vectors
    vary around theirs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            matrix = parameter.ndim >= 2 and "norm" not in name
            parameter.copy_(
                random_matrix(parameter, generator) if matrix else around(parameter, generator)
            )


def random_matrix(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return noise at the scale at which attention neither saturates nor goes flat."""
    return torch.randn(like.shape, generator=generator) * (1.3 / math.sqrt(like.shape[-1]))


def around(initial: Tensor, generator: torch.Generator) -> Tensor:
    """Return what transformers initialised, and noise."""
    return initial.detach() + 0.4 * torch.randn(initial.shape, generator=generator)
