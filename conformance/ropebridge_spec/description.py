"""`describe`, which reads a live attention module into its `Variant`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

from ropebridge_spec.errors import UnsupportedAttention
from ropebridge_spec.family import (
    Family,
    GateKind,
    LatentKind,
    NormKind,
    RotaryKind,
    SelectorKind,
    TemperatureKind,
)
from ropebridge_spec.paths import any_holds, holds, read_path
from ropebridge_spec.recognise import known_as
from ropebridge_spec.rows import FAMILIES
from ropebridge_spec.variant import (
    Calling,
    Differential,
    Gate,
    KeyBias,
    Latent,
    Norm,
    Projections,
    Rotary,
    Selector,
    Temperature,
    Variant,
)

LATENT_NAMES = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
"""The projections of multi-head latent attention, whose names are the same everywhere."""

FEATURES = (
    *(
        "q_norm",
        "k_norm",
        "qk_norm",
        "q_layernorm",
        "k_layernorm",
        "q_layer_norm",
        "k_layer_norm",
        "query_layernorm",
        "key_layernorm",
    ),
    *(
        "v_norm",
        "attn_sub_norm",
        "o_norm",
        "sinks",
        "gate_proj",
        "g_proj",
        "gate_bias",
        "q_gate_proj",
        "key_multiplier",
        "v_scale",
        "clip_qkv",
    ),
    *(
        "lambda_init",
        "rotary_value",
        "keep_window_size",
        "exclusive_self_attention",
        "output_projection",
        "indexer",
    ),
    *LATENT_NAMES,
)
"""Attributes that change what attention computes: a family that does not know one it finds must not
be used."""


def describe(module: Any, families: Mapping[str, Family | Variant] = FAMILIES) -> Variant:
    """Read what a live attention module computes.

    Args:
        module: an attention module, of Hugging Face or like it. Only its attributes are read;
            nothing is run.
        families: class name -> `Family`, or a `Variant` where nothing is to be read.

    Raises:
        UnsupportedAttention: the class is not in `families`, nor a copy of one that is; or the
            module has what its family does not know.
    """
    known = names_of(module, families)
    told = {name: read(module, families[name]) for name in known}
    if len(set(told.values())) > 1:
        kind = type(module).__name__
        raise UnsupportedAttention(
            f"attention class {kind!r} has the source of {' and of '.join(known)}, and what the"
            " models around those do with it differs\n  say which: families={**FAMILIES,"
            f" {kind!r}: FAMILIES[{known[0]!r}]}}, and verify=True proves it"
        )
    return told[known[0]]


def read(module: Any, family: Family | Variant) -> Variant:
    """Return what a module of this family computes."""
    if isinstance(family, Variant):
        return family
    if family.before is not None and read_path(module, f"{family.since}?") is None:
        return read(module, family.before)
    refuse_unknown_features(module, family)
    refuse_other_attention(module, family)
    widths = read_latent_widths(module) if family.latent else read_widths(module, family)
    found = read_path(module, family.causal)
    causal = found is None or bool(found)
    encoder = causal and is_made_encoder(module)
    causal = causal and not encoder
    return Variant(
        **widths,
        scale=read_scale(module, family.scale, widths["d_head"]),
        norm=read_norm(module, family.norm),
        value_norm=read_norm(module, family.value_norm),
        z_norm=read_norm(module, family.z_norm),
        value_is_key=getattr(module, family.projections.v, module) is None,
        shared_kv_argument=read_shared_kv_argument(module, family),
        k_multiplier=read_factor(module, family.k_multiplier),
        v_multiplier=read_factor(module, family.v_multiplier),
        clip=read_path(module, family.clip),
        latent=read_latent(module, family.latent),
        gate=read_gate(module, family.gate, widths["heads"]),
        source=family.source_states,
        added_value=family.added_value,
        exclusive=family.exclusive,
        differential=read_differential(module, family.differential),
        key_bias=read_key_bias(module, family.key_bias),
        selector=read_selector(module, family.selector),
        temperature=read_temperature(module, family.temperature),
        rotary=read_rotary(module, family.rotary, widths["d_head"]),
        softcap=read_path(module, family.softcap),
        sinks=family.sinks if family.sinks and getattr(module, family.sinks) is not None else None,
        causal=causal,
        window=None if encoder else read_window(module, family, causal),
        chunk=None if encoder else read_path(module, family.chunk),
        dropout=float(read_path(module, family.dropout) or 0.0),
        output_dropout=float(read_path(module, family.output_dropout) or 0.0),
        d_out=read_d_out(module, family, widths["d_model"]),
        projections=read_projections(module, family),
        calling=read_calling(module, family),
    )


def read_scale(module: Any, paths: Sequence[str], d_head: int) -> float:
    """Return what scores are multiplied by: the product of the numbers at these paths, or
    1 / sqrt(d_head) where there are none."""
    if not paths:
        return float(d_head**-0.5)
    return math.prod(float(read_path(module, path)) for path in paths)


def read_key_bias(module: Any, path: str | None) -> KeyBias | None:
    """Return how keys are biased by their values; None where they are not."""
    return None if path is None else KeyBias(int(read_path(module, path)))


def read_shared_kv_argument(module: Any, family: Family) -> str | None:
    """Return the argument through which an earlier layer's keys and values arrive; None in a layer
    that makes its own."""
    shared = family.shared
    return shared.through if shared and holds(module, shared.takes) else None


def read_calling(module: Any, family: Family) -> Calling:
    """Return how the module is called, and through which argument it leaves its keys and values for
    later layers, where it does."""
    shared = family.shared
    if shared is None or not holds(module, shared.leaves):
        return family.calling
    return replace(family.calling, kept_kv_argument=shared.through)


def read_widths(module: Any, family: Family) -> dict[str, int]:
    """Return head counts and widths, from the shapes of the projections; of a fused one from the
    module's own counts or the config's."""
    names, d_head = family.projections, head_width(module)
    if names.fused is not None:
        heads = query_heads(module)
        return {
            "d_model": features(module, names.fused, "in_features"),
            "heads": heads,
            "kv_heads": fused_kv_heads(module, names.fused, heads, d_head),
            "d_head": d_head,
            "d_head_v": d_head,
        }
    width = partial(features, module, within=names.within)
    q, d_model = width(names.q, "out_features"), width(names.q, "in_features")
    heads = q // (2 * d_head if family.gate and family.gate.in_query else d_head)
    if family.shared is not None and holds(module, family.shared.takes):
        return {
            "d_model": d_model,
            "heads": heads,
            "kv_heads": heads // int(module.num_key_value_groups),
            "d_head": d_head,
            "d_head_v": d_head,
        }
    k = width(names.k, "out_features")
    v = k if getattr(module, names.v, module) is None else width(names.v, "out_features")
    return {
        "d_model": d_model,
        "heads": heads,
        "kv_heads": k // d_head,
        "d_head": d_head,
        "d_head_v": v // (k // d_head),
    }


def read_d_out(module: Any, family: Family, d_model: int) -> int | None:
    """Return the width of what a layer gives back, where it is not that of what it is given."""
    if family.projections.o is None:
        return None
    width = features(module, family.projections.o, "out_features", family.projections.within)
    return None if width == d_model else width


def read_projections(module: Any, family: Family) -> Projections:
    """Return where a family's projections are found, with adapters beside them where this module
    has those."""
    names = family.projections
    there = names.beside is not None and hasattr(module, names.beside.format("q"))
    return names if there else replace(names, beside=None)


def features(module: Any, name: str, side: str, within: str | None = None) -> int:
    """Return the width of a projection, or of the linear map within it: `in_features` or
    `out_features`."""
    kind, projection = type(module).__name__, read_path(module, f"{name}?")
    projection = projection if within is None else getattr(projection, within, None)
    if projection is None:
        raise UnsupportedAttention(
            f"{kind} has no {name!r}, which its family has; its widths cannot be read\n  describe"
            " it by a Family with its own names, projections=ropebridge_spec.Projections(...), and"
            f" pass families={{**FAMILIES, {kind!r}: ...}}"
        )
    width = getattr(projection, side, None)
    if not isinstance(width, int):
        raise UnsupportedAttention(
            f"the {name!r} of {kind} is a {type(projection).__name__}, which has no {side}; the"
            " widths cannot be read\n  give the wrapper the in_features and out_features of what"
            f" it wraps, or pass families={{**FAMILIES, {kind!r}: Variant(...)}}"
        )
    return width


def query_heads(module: Any) -> int:
    """Return how many query heads there are, under the names that transformers has for it."""
    for name in ("num_heads", "num_attention_heads"):
        if hasattr(module, name):
            return int(getattr(module, name))
    return int(module.config.num_attention_heads)


def fused_kv_heads(module: Any, fused: str, heads: int, d_head: int) -> int:
    """Return how many kv heads there are: what is left of the rows of a fused projection after
    those of the query. A config may name another number, which its class does not read."""
    rows = features(module, fused, "out_features")
    left = rows - heads * d_head
    if left <= 0 or left % (2 * d_head):
        raise UnsupportedAttention(
            f"the {fused!r} of {type(module).__name__} gives {rows} rows, and {heads} query heads"
            f" of {d_head} leave {left} of them, which are no keys and values of {d_head} each\n"
            "  describe it by a Variant of your own:"
            f" families={{**FAMILIES, {type(module).__name__!r}: Variant(...)}}"
        )
    return left // (2 * d_head)


def read_latent_widths(module: Any) -> dict[str, int]:
    """Return head counts and widths of multi-head latent attention, under the names it has
    everywhere."""
    heads, d_model = int(module.num_heads), features(module, "kv_a_proj_with_mqa", "in_features")
    return {
        "d_model": d_model,
        "heads": heads,
        "kv_heads": heads,
        "d_head": int(module.qk_head_dim),
        "d_head_v": int(module.v_head_dim),
    }


def head_width(module: Any) -> int:
    """Return d_head, under any of the names that transformers has for it."""
    return int(
        next(
            getattr(module, name)
            for name in ("head_dim", "head_size", "attention_head_size")
            if hasattr(module, name)
        )
    )


def names_of(module: Any, families: Mapping[str, Family | Variant]) -> list[str]:
    """Return the names that a module's class stands under: its own, or those of classes whose
    forward, or source, it has."""
    kind, name = type(module), type(module).__name__
    if name in families and families[name] is not FAMILIES.get(name):
        return [name]  # somebody says what it is
    known = known_as(kind, families)
    if not known and name in families:
        raise UnsupportedAttention(another_of_the_name(name))
    if not known:
        raise UnsupportedAttention(
            f"attention class {name!r} is not in the table of families\n  nearest:"
            f" {', '.join(get_close_matches(name, families, n=3)) or 'none'}; all {len(families)}:"
            f" print(sorted(ropebridge.FAMILIES))\n  to add it: families={{**FAMILIES, {name!r}:"
            " Family(...)} as attach(model, families=...), or describe(module, families=...);\n "
            f" if it computes what a known class computes: {{**FAMILIES, {name!r}:"
            " FAMILIES['LlamaAttention']}, and verify=True proves it"
        )
    return known


def another_of_the_name(name: str) -> str:
    """Return the message for a class that only bears the name of a known one."""
    family = FAMILIES[name]
    return (
        f"attention class {name!r} is not the one of transformers/{family.source}: its forward, or"
        " a function that it calls, has another source (a patch, or a class of the same name)\n"
        "  undo the patch; or say that it computes the same, and verify=True proves it as far as"
        f" random inputs reach: families={{**FAMILIES, {name!r}: dataclasses.replace("
        f"FAMILIES[{name!r}], source='')}}"
    )


def refuse_unknown_features(module: Any, family: Family) -> None:
    """Refuse a module that does more than its family says."""
    known = set(words(family))
    extra = [
        name for name in FEATURES if getattr(module, name, None) is not None and name not in known
    ]
    if extra:
        raise UnsupportedAttention(
            f"{type(module).__name__} has {', '.join(map(repr, extra))}, which its family does not"
            " have\n  to serve it: describe it by a Family (or a Variant) of its own and pass"
            " families={**FAMILIES, ...}"
        )


def refuse_other_attention(module: Any, family: Family) -> None:
    """Refuse a module of a known class that attends to something else."""
    if family.only is not None and not holds(module, family.only):
        raise UnsupportedAttention(
            f"this {type(module).__name__} is cross-attention, and does not rotate: only those with"
            f" {family.only} are served\n  attach(model) leaves it alone; to see inside it, hook"
            " the module itself"
        )


def words(data: Any) -> Iterator[str]:
    """Yield every name that a family speaks of; of a path all."""
    if is_dataclass(data):
        for item in fields(data):
            yield from words(getattr(data, item.name))
        yield from LATENT_NAMES if isinstance(data, LatentKind) else ()
    elif isinstance(data, tuple):
        for item in data:
            yield from words(item)
    elif isinstance(data, str):
        yield from data.removesuffix("?").split(".")


def is_made_encoder(module: Any) -> bool:
    """Return whether the config makes an encoder of a causal layer: the model around then hands it
    a mask that says all, window and chunk included, or none, and every query sees every key."""
    return getattr(getattr(module, "config", None), "is_causal", None) is False


def read_factor(module: Any, path: str | None) -> float:
    """Return the factor at a path; 1 where there is none."""
    return 1.0 if path is None else float(read_path(module, path))


def read_window(module: Any, family: Family, causal: bool) -> int | None:
    """Return how far a layer sees, itself included."""
    window: int | None = read_path(module, family.window)
    return (
        window + 1 if window is not None and family.window_excludes_self and not causal else window
    )


def read_norm(module: Any, kind: NormKind | None) -> Norm | None:
    """Return a norm of a module, or None where the family has none or this module leaves it out."""
    norm = getattr(module, kind.k, None) or getattr(module, kind.q, None) if kind else None
    if kind is None or norm is None:
        return None
    return Norm(
        kind=kind.kind,
        over="flat" if kind.flat_if and holds(module, kind.flat_if) else kind.over,
        eps=epsilon(norm),
        weight=kind.weight,
        bias=kind.bias,
        per_head=kind.per_head,
        module_per_head=kind.module_per_head,
        rounds_before_weight=kind.rounds_before_weight,
        after_rotation=kind.after_rotation,
        q=kind.q,
        k=kind.k,
    )


def epsilon(norm: Any) -> float:
    """Return what a norm adds under its root, under any of the names that transformers has for
    it."""
    norm = norm.norms[0] if hasattr(norm, "norms") else norm
    return float(
        next(
            getattr(norm, name)
            for name in ("eps", "variance_epsilon", "norm_eps")
            if hasattr(norm, name)
        )
    )


def read_latent(module: Any, kind: LatentKind | None) -> Latent | None:
    """Return the latents of a module."""
    if kind is None:
        return None
    norm = read_norm(module, kind.norm)
    assert norm is not None
    direct = getattr(module, "q_a_proj", None) is None
    return Latent(
        kv_rank=int(module.kv_lora_rank),
        q_rank=None if direct else int(module.q_lora_rank),
        norm=norm,
        rotary_norm=read_norm(module, kind.rotary_norm),
        q_scale=read_factor(module, kind.q_scale),
        kv_scale=read_factor(module, kind.kv_scale),
        q_beside=kind.q_beside,
        q_up=kind.q_up,
    )


def read_gate(module: Any, kind: GateKind | None, heads: int) -> Gate | None:
    """Return the gate of a module, or None where it has none; its width says what it is for."""
    projection = read_path(module, f"{kind.module}?") if kind else None
    if kind is None or projection is None:
        return None
    by_head = not kind.in_query and projection.out_features == heads
    return Gate(
        kind.module, kind.activation, "head" if by_head else "channel", kind.in_query, kind.bias
    )


def read_differential(module: Any, path: str | None) -> Differential | None:
    """Return how a module's heads are subtracted from each other, or None where they are not."""
    return None if path is None else Differential(float(read_path(module, path)))


def read_selector(module: Any, kind: SelectorKind | None) -> Selector | None:
    """Return what picks a layer's keys, or None where nothing does."""
    if kind is None:
        return None
    own = getattr(module, kind.module, None) is not None
    if not own and kind.through is None:
        return None
    return Selector(
        kind.module,
        kind.picks,
        int(read_path(module, kind.block) or 1),
        None if own else kind.through,
    )


def read_temperature(module: Any, kind: TemperatureKind | None) -> Temperature | None:
    """Return the query's temperature, or None where this layer has none."""
    if kind is None or not all(holds(module, condition) for condition in kind.where):
        return None
    beta, length = read_path(module, kind.beta), read_path(module, kind.length)
    return Temperature(
        float(beta or 0.0), float(length or 1.0), kind.shift, kind.counted, kind.factor_argument
    )


def read_rotary(module: Any, kind: RotaryKind, d_head: int) -> Rotary | None:
    """Return how a module rotates, or None where its layer does not."""
    if not any_holds(module, kind.where):
        return None
    width = int(read_path(module, kind.width) or getattr(module, "qk_rope_head_dim", d_head))
    pairs = (int(width * partial_factor(module)) + 1) // 2 if kind.partial else width // 2
    pairing = (
        "interleaved"
        if kind.interleaved_if and holds(module, kind.interleaved_if)
        else kind.pairing
    )
    values = kind.values is not None and holds(module, kind.values)
    return Rotary(pairing, 2 * pairs, kind.table, kind.precision, kind.end, kind.direction, values)


def partial_factor(module: Any) -> float:
    """Return the share of a head that rotates, as transformers' configs say it: for the model, or
    for each type of layer."""
    parameters = getattr(module.config, "rope_parameters", None) or {}
    by_type = parameters.get(layer_type(module), parameters)
    return float(by_type.get("partial_rotary_factor", 1.0))


def layer_type(module: Any) -> str | None:
    """Return the type of a layer, as the module or its config names it; None where neither does."""
    named = getattr(module, "layer_type", None)
    types = getattr(getattr(module, "config", None), "layer_types", None)
    if named is not None or not types or getattr(module, "layer_idx", None) is None:
        return named
    return str(types[module.layer_idx])


def shared_key(module: Any) -> Any:
    """Return the key under which the keys and values lie that layers share (KV-1): the layer's
    type, or in older transformers the number of the layer that left them."""
    if not hasattr(module, "kv_shared_layer_index"):
        return layer_type(module)
    return (
        module.layer_idx if module.kv_shared_layer_index is None else module.kv_shared_layer_index
    )


def position_axes(rotary: Any, variant: Variant) -> int:
    """Return how many rows of position ids a rotary module is given: one for each axis it rotates
    by (M-RoPE, arXiv:2409.12191: time, height, width), else one.

    The module's own sections say it (one list, or one for each layer type), then its config's; then
    the family.
    """
    own = getattr(rotary, "mrope_section", None)
    of_module = list(own.values()) if isinstance(own, Mapping) else [own]
    parameters = getattr(getattr(rotary, "config", None), "rope_parameters", None) or {}
    of_types = [parameters, *(value for value in parameters.values() if isinstance(value, Mapping))]
    sections = [*of_module, *(entry.get("mrope_section") for entry in of_types)]
    return max(variant.calling.position_axes, *(len(section or (0,)) for section in sections))
