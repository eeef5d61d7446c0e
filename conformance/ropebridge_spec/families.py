"""The one table of families, and `describe`, which reads a live attention module into its `Variant`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ropebridge_spec.errors import UnsupportedAttention
from ropebridge_spec.variant import Norm, Projections, Rotary, Variant


@dataclass(frozen=True)
class NormKind:
    """What a family's q/k norm is; whether a module has it, and its eps, are read from the module."""

    kind: Literal["rms", "layer"] = "rms"
    over: Literal["head", "flat"] = "head"
    weight: Literal["scale", "one_plus"] = "scale"
    per_head: bool = False
    rounds_before_weight: bool = False


@dataclass(frozen=True)
class RotaryKind:
    """What attributes cannot show of a family's rotation; its width is read from the module."""

    pairing: Literal["half", "interleaved"] = "half"
    table: Literal["full", "repeated", "half"] = "full"
    precision: Literal["input", "float32"] = "input"


@dataclass(frozen=True)
class Family:
    """What one attention class computes, beyond what its live modules show.

    `window`, `softcap` and `sinks` are dotted attribute paths on the module: a value that the class sets but does not
    pass on (Gemma 3's softcap) has no path here. `source` is the transformers file the mathematics was read from.
    """

    source: str
    norm: NormKind | None = None
    rotary: RotaryKind = RotaryKind()
    window: str | None = None
    softcap: str | None = None
    sinks: str | None = None
    projections: Projections = field(default_factory=Projections)


FAMILIES: Mapping[str, Family | Variant] = {
    "LlamaAttention": Family("models/llama/modeling_llama.py"),
    "MistralAttention": Family("models/mistral/modeling_mistral.py", window="config.sliding_window"),
    "Gemma2Attention": Family("models/gemma2/modeling_gemma2.py", window="sliding_window", softcap="attn_logit_softcapping"),
    "Gemma3Attention": Family("models/gemma3/modeling_gemma3.py", window="sliding_window", norm=NormKind(weight="one_plus")),
    "Qwen3Attention": Family("models/qwen3/modeling_qwen3.py", window="sliding_window", norm=NormKind(rounds_before_weight=True)),
    "Olmo2Attention": Family("models/olmo2/modeling_olmo2.py", norm=NormKind(over="flat"), rotary=RotaryKind(precision="float32")),
    "CohereAttention": Family(
        "models/cohere/modeling_cohere.py",
        norm=NormKind(kind="layer", per_head=True),
        rotary=RotaryKind(pairing="interleaved", table="repeated", precision="float32"),
    ),
    "GptOssAttention": Family("models/gpt_oss/modeling_gpt_oss.py", window="sliding_window", sinks="sinks", rotary=RotaryKind(table="half")),
}
"""Class name of an attention module -> what it computes. A `Variant` serves where nothing is to be read from the module."""

FEATURES = ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "v_norm", "sinks", "gate_proj", "g_proj", "key_multiplier", "clip_qkv")
"""Attributes that change what attention computes: a family that does not know one it finds must not be used."""


def describe(module: Any, families: Mapping[str, Family | Variant] = FAMILIES) -> Variant:
    """Read what a live attention module computes.

    Args:
        module: an attention module, of Hugging Face or like it. Only its attributes are read; nothing is run.
        families: class name -> `Family`, or a `Variant` where nothing is to be read.

    Raises:
        UnsupportedAttention: the class is not in `families`, or the module has what its family does not know.
    """
    family = family_of(module, families)
    if isinstance(family, Variant):
        return family
    refuse_unknown_features(module, family)
    projections = family.projections
    q, k, v = (getattr(module, name) for name in (projections.q, projections.k, projections.v))
    kv_heads = k.out_features // module.head_dim
    return Variant(
        d_model=q.in_features,
        heads=q.out_features // module.head_dim,
        kv_heads=kv_heads,
        d_head=module.head_dim,
        d_head_v=v.out_features // kv_heads,
        scale=float(module.scaling),
        norm=read_norm(module, family.norm),
        rotary=Rotary(family.rotary.pairing, module.head_dim, family.rotary.table, family.rotary.precision),
        softcap=read_path(module, family.softcap),
        sinks=family.sinks,
        window=read_path(module, family.window),
        dropout=float(getattr(module, "attention_dropout", 0.0)),
        projections=projections,
    )


def family_of(module: Any, families: Mapping[str, Family | Variant]) -> Family | Variant:
    """The family of a module's class, by name."""
    name = type(module).__name__
    if name not in families:
        raise UnsupportedAttention(
            f"attention class {name!r} is not in the table of families\n"
            f"  known: {', '.join(sorted(families))}\n"
            f"  to add it: families={{**FAMILIES, {name!r}: Family(...)}} as attach(model, families=...), or describe(module, families=...);\n"
            f"  if it computes what a known class computes: {{**FAMILIES, {name!r}: FAMILIES['LlamaAttention']}}, and verify=True proves it"
        )
    return families[name]


def refuse_unknown_features(module: Any, family: Family) -> None:
    """Refuse a module that does more than its family says."""
    known = {family.sinks} | ({"q_norm", "k_norm"} if family.norm else set())
    extra = [name for name in FEATURES if getattr(module, name, None) is not None and name not in known]
    if extra:
        raise UnsupportedAttention(
            f"{type(module).__name__} has {', '.join(map(repr, extra))}, which its family does not have\n"
            f"  to serve it: describe it by a Family (or a Variant) of its own and pass families={{**FAMILIES, ...}}"
        )
    if not getattr(module, "is_causal", True):
        raise UnsupportedAttention(
            f"{type(module).__name__} is bidirectional (is_causal=False); this version of the contract serves causal attention only\n"
            f"  to go on: use a model whose config leaves use_bidirectional_attention off"
        )


def read_norm(module: Any, kind: NormKind | None) -> Norm | None:
    """The q/k norm of a module, or None where the family has none or this module leaves it out."""
    norm = getattr(module, "q_norm", None)
    if kind is None or norm is None:
        return None
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    return Norm(kind.kind, kind.over, float(eps), kind.weight, kind.per_head, kind.rounds_before_weight)


def read_path(module: Any, path: str | None) -> Any:
    """Follow a dotted attribute path; None where there is no path."""
    if path is None:
        return None
    value = module
    for name in path.split("."):
        value = getattr(value, name)
    return value
