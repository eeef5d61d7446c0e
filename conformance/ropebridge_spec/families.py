"""`describe`, which reads a live attention module into its `Variant`."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from ropebridge_spec.errors import UnsupportedAttention
from ropebridge_spec.family import Family, NormKind, RotaryKind
from ropebridge_spec.table import FAMILIES
from ropebridge_spec.variant import Norm, Projections, Rotary, Variant

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
    return Variant(
        **read_widths(module, family.projections),
        scale=float(module.scaling),
        norm=read_norm(module, family.norm),
        rotary=read_rotary(module, family.rotary),
        softcap=read_path(module, family.softcap),
        sinks=family.sinks,
        window=read_path(module, family.window),
        dropout=float(getattr(module, "attention_dropout", 0.0)),
        output_dropout=float(read_path(module, family.output_dropout) or 0.0),
        projections=family.projections,
    )


def read_widths(module: Any, names: Projections) -> dict[str, int]:
    """Head counts and widths, from the shapes of the projections; of a fused one from the config."""
    d_head = head_width(module)
    if names.fused is not None:
        heads = int(module.config.num_attention_heads)
        kv_heads = int(getattr(module.config, "num_key_value_heads", None) or heads)
        return {"d_model": features(module, names.fused, "in_features"), "heads": heads, "kv_heads": kv_heads, "d_head": d_head, "d_head_v": d_head}
    q, k, v = (features(module, name, "out_features") for name in (names.q, names.k, names.v))
    kv_heads = k // d_head
    d_model = features(module, names.q, "in_features")
    return {"d_model": d_model, "heads": q // d_head, "kv_heads": kv_heads, "d_head": d_head, "d_head_v": v // kv_heads}


def features(module: Any, name: str, side: str) -> int:
    """The width of a projection: `in_features` or `out_features`."""
    kind, projection = type(module).__name__, getattr(module, name, None)
    if projection is None:
        raise UnsupportedAttention(
            f"{kind} has no {name!r}, which its family has; its widths cannot be read\n"
            f"  describe it by a Family with its own names, projections=ropebridge_spec.Projections(...), and pass families={{**FAMILIES, {kind!r}: ...}}"
        )
    width = getattr(projection, side, None)
    if not isinstance(width, int):
        raise UnsupportedAttention(
            f"the {name!r} of {kind} is a {type(projection).__name__}, which has no {side}; the widths cannot be read\n"
            f"  give the wrapper the in_features and out_features of what it wraps, or pass families={{**FAMILIES, {kind!r}: Variant(...)}}"
        )
    return width


def head_width(module: Any) -> int:
    """d_head, under either of the names that transformers has for it."""
    return int(module.head_dim if hasattr(module, "head_dim") else module.head_size)


def family_of(module: Any, families: Mapping[str, Family | Variant]) -> Family | Variant:
    """The family of a module's class, by name."""
    name = type(module).__name__
    if name not in families:
        raise UnsupportedAttention(
            f"attention class {name!r} is not in the table of families\n"
            f"  nearest: {', '.join(get_close_matches(name, families, n=3)) or 'none'}; all {len(families)}: print(sorted(ropebridge.FAMILIES))\n"
            f"  to add it: families={{**FAMILIES, {name!r}: Family(...)}} as attach(model, families=...), or describe(module, families=...);\n"
            f"  if it computes what a known class computes: {{**FAMILIES, {name!r}: FAMILIES['LlamaAttention']}}, and verify=True proves it"
        )
    return families[name]


def refuse_unknown_features(module: Any, family: Family) -> None:
    """Refuse a module that does more than its family says."""
    known = {family.sinks} | ({family.norm.q, family.norm.k} if family.norm else set())
    extra = [name for name in FEATURES if getattr(module, name, None) is not None and name not in known]
    if extra:
        raise UnsupportedAttention(
            f"{type(module).__name__} has {', '.join(map(repr, extra))}, which its family does not have\n"
            f"  to serve it: describe it by a Family (or a Variant) of its own and pass families={{**FAMILIES, ...}}"
        )
    if not getattr(module, "is_causal", True) or getattr(getattr(module, "config", None), "is_causal", True) is False:
        raise UnsupportedAttention(
            f"{type(module).__name__} is bidirectional (is_causal=False); this version of the contract serves causal attention only\n"
            f"  to go on: use a model whose config leaves use_bidirectional_attention off"
        )


def read_norm(module: Any, kind: NormKind | None) -> Norm | None:
    """The q/k norm of a module, or None where the family has none or this module leaves it out."""
    norm = getattr(module, kind.q, None) if kind else None
    if kind is None or norm is None:
        return None
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    return Norm(kind.kind, kind.over, float(eps), kind.weight, kind.per_head, kind.rounds_before_weight, kind.q, kind.k)


def read_rotary(module: Any, kind: RotaryKind) -> Rotary | None:
    """How a module rotates, or None where its layer does not."""
    if kind.where and not any(is_true(module, path) for path in kind.where):
        return None
    d_head = head_width(module)
    pairs = (int(d_head * partial_factor(module)) + 1) // 2 if kind.partial else d_head // 2
    return Rotary(kind.pairing, 2 * pairs, kind.table, kind.precision)


def partial_factor(module: Any) -> float:
    """The share of a head that rotates, as transformers' configs say it: for the model, or for each type of layer."""
    parameters = getattr(module.config, "rope_parameters", None) or {}
    by_type = parameters.get(getattr(module, "layer_type", None), parameters)
    return float(by_type.get("partial_rotary_factor", 1.0))


def is_true(module: Any, path: str) -> bool:
    """Whether the attribute at a dotted path is true; "!" before it negates."""
    return not is_true(module, path[1:]) if path.startswith("!") else bool(read_path(module, path))


def read_path(module: Any, path: str | None) -> Any:
    """Follow a dotted attribute path; None where there is no path, or where it ends in "?" and leads nowhere."""
    if path is None:
        return None
    value = module
    for name in path.removesuffix("?").split("."):
        value = getattr(value, name, None) if path.endswith("?") else getattr(value, name)
    return value
