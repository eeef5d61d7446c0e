"""Rotary attention, from the residual stream and back. A hook point is the assignment itself: this
text is their order."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from einops import repeat
from jaxtyping import Bool, Float, Real
from torch import Tensor

from ropebridge_reference.differential import side_by_side, subtract
from ropebridge_reference.gate import gated, open_gate
from ropebridge_reference.key_bias import bias_keys, of_the_largest
from ropebridge_reference.masks import Bias, bias_of_mask, causal_bias, padding_bias, selection_bias
from ropebridge_reference.mix import exclude, mix_values, output, result, sum_of_results
from ropebridge_reference.norm import normalise
from ropebridge_reference.pattern import make_pattern
from ropebridge_reference.project import (
    adapt,
    add,
    clip,
    latent,
    multiply,
    project_heads,
    with_rotary_part,
)
from ropebridge_reference.rotary import rotate, turns
from ropebridge_reference.scores import scale_by_temperature, score_keys, unrounded
from ropebridge_reference.split import split_inputs
from ropebridge_reference.weights import Affine, Weights
from ropebridge_spec import ContractError, OptIn, Variant

T = TypeVar("T")
At = Callable[[str, Tensor], Tensor]
"""`at(name, value)` records the value of a hook point and gives back what the layer is to go on
with."""


Tables = tuple[
    Float[Tensor, "table_batch table_pos rotary_dim"],
    Float[Tensor, "table_batch table_pos rotary_dim"],
]
"""cos and sin, of the positions of this call; where another sequence comes before them, of its
positions too (KV-2)."""
QueryTables = tuple[
    Float[Tensor, "table_batch pos rotary_dim"], Float[Tensor, "table_batch pos rotary_dim"]
]
KeyTables = tuple[
    Float[Tensor, "table_batch kv_pos rotary_dim"], Float[Tensor, "table_batch kv_pos rotary_dim"]
]
Select = Callable[[Tensor, Tensor | None, Tables | None], Bool[Tensor, "batch #head query key"]]
"""A layer's own selector: of hook_in, hook_q_latent and the tables it makes which keys each query
may see (SEL-1)."""


@dataclass(frozen=True)
class Past:
    """Hold rotated keys, and values, of the positions before this call (clause CACHE-1)."""

    key: Float[Tensor, "batch past kv_head d_head"]
    value: Float[Tensor, "batch past kv_head d_head_v"]


def recall(
    past: Float[Tensor, "batch past kv_head d"], new: Float[Tensor, "batch pos kv_head d"]
) -> Float[Tensor, "batch key kv_head d"]:
    """Return (batch, key, kv_head, width): what was there before, then the own, along the key axis
    (CACHE-1)."""
    return torch.cat([past, new], dim=1)


@dataclass(frozen=True)
class Output:
    """Hold what a layer returns, and the keys and values a later call may be given as its past."""

    out: Float[Tensor, "batch pos d_model"]
    pattern: Float[Tensor, "batch head pos key"]
    past: Past


@dataclass(frozen=True)
class Stages:
    """Hold the functions the layer is composed of, and those that read its mask; a mutant replaces
    one of them."""

    causal_bias: Callable[..., Tensor] = causal_bias
    padding_bias: Callable[..., Tensor] = padding_bias
    bias_of_mask: Callable[..., Tensor] = bias_of_mask
    selection_bias: Callable[..., Tensor] = selection_bias
    split_inputs: Callable[..., tuple[Tensor, Tensor, Tensor]] = split_inputs
    latent: Callable[..., Tensor] = latent
    project: Callable[..., Tensor] = project_heads
    adapt: Callable[..., Tensor] = adapt
    with_rotary_part: Callable[..., Tensor] = with_rotary_part
    multiply: Callable[..., Tensor] = multiply
    clip: Callable[..., Tensor] = clip
    normalise: Callable[..., Tensor] = normalise
    turns: Callable[..., Tensor] = turns
    rotate: Callable[..., Tensor] = rotate
    recall: Callable[..., Tensor] = recall
    scale_by_temperature: Callable[..., Tensor] = scale_by_temperature
    key_bias: Callable[..., Tensor] = bias_keys
    scores: Callable[..., Tensor] = score_keys
    pattern: Callable[..., Tensor] = make_pattern
    gate: Callable[..., Tensor] = open_gate
    mix: Callable[..., Tensor] = mix_values
    subtract: Callable[..., Tensor] = subtract
    exclude: Callable[..., Tensor] = exclude
    gated: Callable[..., Tensor] = gated
    result: Callable[..., Tensor] = result
    output: Callable[..., Tensor] = output
    sum_of_results: Callable[..., Tensor] = sum_of_results


STAGES = Stages()


def untouched(name: str, value: Tensor) -> Tensor:
    """Return an `at` that nobody watches."""
    return value


def attention_layer(
    x: Float[Tensor, "batch pos d_model"],
    tables: Tables | None,
    bias: Bias,
    weights: Weights,
    variant: Variant,
    *,
    positions: Real[Tensor, "#batch pos"] | None = None,
    past: Past | None = None,
    select: Select | None = None,
    added_value: Float[Tensor, "batch pos kv_head d_head_v"] | None = None,
    source: Float[Tensor, "batch source d_model"] | None = None,
    opted_in: Collection[OptIn] = (),
    at: At = untouched,
    stages: Stages = STAGES,
) -> Output:
    """Return one attention layer, in any floating dtype; in float64 it is the oracle.

    Args:
        x: hidden states.
        tables: rotary cos and sin, lying as `variant.rotary.table` says; None where the layer does
            not rotate.
        bias: 0 or a number where a query may see a key, -inf where not (`causal_bias`,
            `padding_bias`, `bias_of_mask`).
        weights: the layer's learned tensors, in x's dtype.
        positions: of the queries, for a family whose query has a temperature; the temperatures,
            where they are given.
        past: rotated keys, and values, of earlier positions; in a layer whose keys and values are
            given, those of all positions.
        select, added_value, source: the layer's selector, what is added to the value, states of
            another sequence, where a family has them.
        opted_in: the hook points that are made on request only. at: sees every hook point, in
            order.
    """
    weights, variant = (
        a_key_for_every_head(weights, variant) if "attn_in" in opted_in else (weights, variant)
    )

    x = at("hook_in", x)
    x_kv = (
        joined(x, at("hook_kv_in", source), variant)
        if variant.source is not None and source is not None
        else x
    )
    c = latents(x, weights, variant, at, stages)
    made = heads(x, x_kv, c, weights, variant, added_value, opted_in, at, stages)
    tables = shown(tables, variant, at)
    q, *made_kv = rotated(made, tables, weights, variant, at, stages)
    past = kept(past, made_kv, stages)

    bias = biased(
        bias, past, None if select is None else select(x, c.q, tables), weights, variant, stages
    )
    s = stages.scores(
        stages.scale_by_temperature(q, positions, variant.temperature), past.key, bias, variant
    )
    s = unrounded(at("hook_attn_scores", s.to(x.dtype)), s)
    p = at("hook_pattern", stages.pattern(s, weights.sinks).to(x.dtype))
    g = gates(c.q if variant.gate_rises and c.q is not None else x, weights, variant, at, stages)
    z = stages.gated(
        mixed(p, past.value, weights, variant, stages), g, weights.z_norm, variant.z_norm
    )
    z = at("hook_z", stages.multiply(z, variant.z_multiplier))
    return Output(put_out(z, weights, opted_in, at, stages), p, past)


def put_out(
    z: Tensor, weights: Weights, opted_in: Collection[OptIn], at: At, stages: Stages
) -> Tensor:
    """Return the output (batch, pos, d_model) (OUT-1), from results head by head where those are
    opted in to (RES-1)."""
    if "attn_result" in opted_in:
        return at(
            "hook_out",
            stages.sum_of_results(at("hook_result", stages.result(z, weights.W_O)), weights.b_O),
        )
    return at("hook_out", stages.output(z, weights.W_O, weights.b_O))


def biased(
    bias: Bias,
    past: Past,
    picked: Tensor | None,
    weights: Weights,
    variant: Variant,
    stages: Stages,
) -> Bias:
    """Return what is added to the scores: the mask's bias, of the keys that were picked (SEL-1),
    and the keys' own (SCORE-5)."""
    bias = bias if picked is None else bias + stages.selection_bias(picked)
    if variant.key_bias is None:
        return bias
    return of_the_largest(
        stages.key_bias(past.value, weights, variant), bias, variant.key_bias.keep
    )


def mixed(p: Tensor, v: Tensor, weights: Weights, variant: Variant, stages: Stages) -> Tensor:
    """Return z (batch, pos, head, d_head_v): each head's mix of values (MIX-1), less its own
    value's part (MIX-3), in differential attention of each pair of heads the difference
    (DIFF-1)."""
    if variant.exclusive is not None:
        return stages.exclude(stages.mix(p, v), v[:, -p.shape[2] :], weights.alpha)
    if variant.differential is None:
        return stages.mix(p, v)
    return stages.subtract(
        stages.mix(p, side_by_side(v)),
        given(weights.lambdas, "lambdas", "DIFF-1"),
        variant.differential,
    )


def kept(past: Past | None, made: list[Tensor], stages: Stages) -> Past:
    """Return keys and values of all positions; a layer that makes none goes by those it is given
    (KV-1)."""
    if not made:
        return given(past, "keys and values", "KV-1")
    k, v = made
    return (
        Past(k, v)
        if past is None
        else Past(stages.recall(past.key, k), stages.recall(past.value, v))
    )


@dataclass(frozen=True)
class Latents:
    """Hold what query, and key and value, come up from; None where they are projected straight from
    hook_in."""

    q: Float[Tensor, "batch pos q_rank"] | None = None
    kv: Float[Tensor, "batch pos kv_rank"] | None = None


def latents(x: Tensor, weights: Weights, variant: Variant, at: At, stages: Stages) -> Latents:
    """Return the latents of hook_in that every head shares (LAT-1)."""
    if variant.latent is None:
        return Latents()
    kind, c_q = variant.latent, None
    if kind.q_rank is not None:
        c_q = at(
            "hook_q_latent",
            stages.latent(
                x,
                weights.W_DQ,
                weights.b_DQ,
                weights.q_latent_norm,
                kind.norm,
                kind.q_scale,
                kind.q_beside,
            ),
        )
    c_kv = at(
        "hook_kv_latent",
        stages.latent(
            x, weights.W_DKV, weights.b_DKV, weights.kv_latent_norm, kind.norm, kind.kv_scale, False
        ),
    )
    return Latents(c_q, c_kv)


def joined(
    x: Float[Tensor, "batch pos d_model"],
    source: Float[Tensor, "batch source d_model"],
    variant: Variant,
) -> Float[Tensor, "batch kv_pos d_model"]:
    """Return what key and value are projected from, in the order of the keys (KV-2)."""
    before = variant.source is not None and variant.source.place == "before"
    return torch.cat([source, x] if before else [x, source], dim=1)


def heads(
    x: Tensor,
    x_kv: Tensor,
    c: Latents,
    weights: Weights,
    variant: Variant,
    added_value: Tensor | None,
    opted_in: Collection[OptIn],
    at: At,
    stages: Stages,
) -> list[Tensor]:
    """Return query, key and value heads of this call's positions, normed unless that comes after
    rotation; the query alone where key and value are given."""
    x_q, x_k, x_v = stages.split_inputs(x, variant, opted_in, at)
    if variant.source is not None:
        x_k, x_v, _ = stages.split_inputs(x_kv, replace(variant, heads=variant.kv_heads), (), at)
    c_q, (c_k, c_v) = risen(c.q, x_q, variant), (risen(c.kv, own, variant) for own in (x_k, x_v))
    early = variant.norm is not None and not variant.norm.after_rotation
    bound = None if early else variant.clip

    adapters = weights.adapters
    made = [
        at(
            "hook_q",
            stages.clip(
                stages.adapt(stages.project(c_q, weights.W_Q, weights.b_Q), c_q, adapters.get("Q")),
                bound,
            ),
        )
    ]
    if not variant.shared_kv_argument:
        k = stages.adapt(
            stages.project(c_k, given(weights.W_K, "W_K", "PROJ-1"), weights.b_K),
            c_k,
            adapters.get("K"),
        )
        k = stages.with_rotary_part(k, x_k, weights, variant.rotary_part_norm)
        k = at("hook_k", stages.clip(stages.multiply(k, variant.k_multiplier), bound))
        v = (
            k
            if variant.value_is_key
            else stages.adapt(
                stages.project(c_v, given(weights.W_V, "W_V", "PROJ-1"), weights.b_V),
                c_v,
                adapters.get("V"),
            )
        )
        v = stages.multiply(v, 1.0 if variant.value_is_key else variant.v_multiplier)
        v = stages.clip(v, variant.clip)
        made += [k, at("hook_v", v if added_value is None else add(v, added_value))]
    if early:
        made = normed(made, weights, variant, at, stages)
    if variant.value_norm is not None and not variant.shared_kv_argument:
        made[2] = at("hook_v_normed", stages.normalise(made[2], weights.v_norm, variant.value_norm))
    return made


def risen(
    c: Float[Tensor, "batch pos rank"] | None,
    x: Float[Tensor, "batch pos head d_model"],
    variant: Variant,
) -> Float[Tensor, "batch pos head _"]:
    """Return what each head is projected from: the latent that all share, or where there is none
    its input."""
    return (
        x if c is None else repeat(c, "batch pos rank -> batch pos head rank", head=variant.heads)
    )


def normed(
    made: list[Tensor], weights: Weights, variant: Variant, at: At, stages: Stages
) -> list[Tensor]:
    """Return query and key (batch, pos, heads, d_head) after the family's norm (NORM-1), clipped
    where the family clips (CLIP-1); the value as it is."""
    assert variant.norm is not None
    bound = None if variant.norm.after_rotation else variant.clip
    q = stages.clip(stages.normalise(made[0], weights.q_norm, variant.norm), bound)
    made[0] = at("hook_q_normed", q).view_as(made[0])
    if len(made) > 1:  # a layer that is handed keys and values makes a query alone (KV-1)
        k = stages.clip(stages.normalise(made[1], weights.k_norm, variant.norm), bound)
        made[1] = at("hook_k_normed", k).view_as(made[1])
    return made


def shown(tables: Tables | None, variant: Variant, at: At) -> Tables | None:
    """Return the tables as their hooks leave them (POS-1); None in a layer that does not rotate."""
    if variant.rotary is None:
        return None
    cos, sin = given(tables, "tables (cos, sin)", "CFG-3")
    return at("hook_cos", cos), at("hook_sin", sin)


def rotated(
    made: list[Tensor],
    tables: Tables | None,
    weights: Weights,
    variant: Variant,
    at: At,
    stages: Stages,
) -> list[Tensor]:
    """Return query and key (batch, pos, heads, d_head) rotated (ROT-1), and normalised where that
    comes after (NORM-3); the value as it is."""
    if variant.rotary is not None and tables is not None:
        of_query, of_key = (
            stages.turns(*pair, variant.rotary) for pair in tables_apart(tables, made)
        )
        q, *turning = made[: 3 if variant.rotary.values else 2]
        turned = [
            stages.rotate(q, of_query, variant.rotary),
            *(stages.rotate(heads, of_key, variant.rotary) for heads in turning),
        ]
        made = [*turned, *made[len(turned) :]]
    roles = "qkv" if variant.rotary is not None and variant.rotary.values else "qk"
    made = [
        *(at(f"hook_rot_{role}", heads) for role, heads in zip(roles, made, strict=False)),
        *made[len(roles) :],
    ]
    late = variant.norm is not None and variant.norm.after_rotation
    return normed(made, weights, variant, at, stages) if late else made


def tables_apart(tables: Tables, made: list[Tensor]) -> tuple[QueryTables, KeyTables]:
    """Return the tables of the query's positions, the last there are, and those of the key's: a
    sequence that comes after is not rotated (KV-2)."""
    pos, kv_pos = made[0].shape[1], made[-1].shape[1]
    cos, sin = tables
    beyond = kv_pos - cos.shape[1]
    ones, zeros = (
        filled(cos.shape[0], max(beyond, 0), cos.shape[2])
        for filled in (cos.new_ones, cos.new_zeros)
    )
    return (cos[:, -pos:], sin[:, -pos:]), (torch.cat([cos, ones], 1), torch.cat([sin, zeros], 1))


def gates(x: Tensor, weights: Weights, variant: Variant, at: At, stages: Stages) -> Tensor | None:
    """Return the gate (batch, pos, head, d_head_v), or (batch, pos, head) where there is one per
    head (GATE-1), of hook_in, whatever inputs are split, or of the query's latent; None where the
    family has none."""
    if variant.gate is None:
        return None
    every_head = repeat(x, "batch pos d_model -> batch pos head d_model", head=variant.heads)
    logits = stages.project(every_head, weights.W_G, weights.b_G)
    g = stages.gate(at("hook_q_gate", logits) if variant.gate.in_query else logits, variant.gate)
    return at("hook_gate", g if variant.gate.per == "channel" else g[..., 0])


def given(value: T | None, what: str, clause: str) -> T:
    """Return what a layer cannot do without."""
    if value is None:
        raise ContractError(f"the layer was given no {what}; clause {clause} requires them")
    return value


def a_key_for_every_head(weights: Weights, variant: Variant) -> tuple[Weights, Variant]:
    """Return the weights with those of a kv head once for each query head that shares it (SPLIT-3),
    and the variant, in which kv_head is then head."""

    def spread(w: Tensor) -> Tensor:
        return repeat(w, "kv_head ... -> (kv_head group) ...", group=variant.group)

    spread_out = replace(
        weights,
        W_K=None if weights.W_K is None else spread(weights.W_K),
        W_V=None if weights.W_V is None else spread(weights.W_V),
        b_K=None if weights.b_K is None else spread(weights.b_K),
        b_V=None if weights.b_V is None else spread(weights.b_V),
        k_norm=key_norm_for_every_head(weights.k_norm, variant),
    )
    return spread_out, replace(variant, kv_heads=variant.heads)


def key_norm_for_every_head(affine: Affine, variant: Variant) -> Affine:
    """Return the key norm's weight and bias, where they tell heads apart, once for each query
    head."""
    if variant.norm is None or (variant.norm.over == "head" and not variant.norm.per_head):
        return affine

    def spread(rows: Tensor | None) -> Tensor | None:
        if rows is None:
            return None
        by_head = rows.reshape(variant.kv_heads, -1)
        return repeat(
            by_head, "kv_head d_head -> (kv_head group) d_head", group=variant.group
        ).reshape(-1, *rows.shape[1:])

    return Affine(spread(affine.weight), spread(affine.bias))
