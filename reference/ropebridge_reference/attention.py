"""Rotary attention, from the residual stream and back. A hook point is the assignment itself: this text is their order."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from einops import repeat
from jaxtyping import Float, Real
from torch import Tensor

from ropebridge_reference.gate import gate, gated
from ropebridge_reference.masks import Bias, bias_of_mask, causal_bias, padding_bias
from ropebridge_reference.mix import mix, output, result, sum_of_results
from ropebridge_reference.norm import normalise
from ropebridge_reference.pattern import pattern
from ropebridge_reference.project import clip, latent, multiply, project, with_rotary_part
from ropebridge_reference.rotary import rotate, turns
from ropebridge_reference.scores import scores, temper
from ropebridge_reference.split import split_inputs
from ropebridge_reference.weights import Affine, Weights
from ropebridge_spec import ContractError, OptIn, Variant

T = TypeVar("T")
At = Callable[[str, Tensor], Tensor]
"""`at(name, value)` records the value of a hook point and gives back what the layer is to go on with."""


Tables = tuple[Float[Tensor, "table_batch pos rotary_dim"], Float[Tensor, "table_batch pos rotary_dim"]]
"""cos and sin."""


@dataclass(frozen=True)
class Past:
    """Rotated keys, and values, of the positions before this call (clause CACHE-1)."""

    key: Float[Tensor, "batch past kv_head d_head"]
    value: Float[Tensor, "batch past kv_head d_head_v"]


def recall(past: Float[Tensor, "batch past kv_head d"], new: Float[Tensor, "batch pos kv_head d"]) -> Float[Tensor, "batch key kv_head d"]:
    """CACHE-1: along the key axis, what was there before comes first."""
    return torch.cat([past, new], dim=1)


@dataclass(frozen=True)
class Output:
    """What a layer returns, and the keys and values a later call may be given as its past."""

    out: Float[Tensor, "batch pos d_model"]
    pattern: Float[Tensor, "batch head pos key"]
    past: Past


@dataclass(frozen=True)
class Stages:
    """The functions the layer is composed of, and those that read its mask; a mutant replaces one of them."""

    causal_bias: Callable[..., Tensor] = causal_bias
    padding_bias: Callable[..., Tensor] = padding_bias
    bias_of_mask: Callable[..., Tensor] = bias_of_mask
    split_inputs: Callable[..., tuple[Tensor, Tensor, Tensor]] = split_inputs
    latent: Callable[..., Tensor] = latent
    project: Callable[..., Tensor] = project
    with_rotary_part: Callable[..., Tensor] = with_rotary_part
    multiply: Callable[..., Tensor] = multiply
    clip: Callable[..., Tensor] = clip
    normalise: Callable[..., Tensor] = normalise
    turns: Callable[..., Tensor] = turns
    rotate: Callable[..., Tensor] = rotate
    recall: Callable[..., Tensor] = recall
    temper: Callable[..., Tensor] = temper
    scores: Callable[..., Tensor] = scores
    pattern: Callable[..., Tensor] = pattern
    gate: Callable[..., Tensor] = gate
    mix: Callable[..., Tensor] = mix
    gated: Callable[..., Tensor] = gated
    result: Callable[..., Tensor] = result
    output: Callable[..., Tensor] = output
    sum_of_results: Callable[..., Tensor] = sum_of_results


STAGES = Stages()


def untouched(name: str, value: Tensor) -> Tensor:
    """An `at` that nobody watches."""
    return value


def attention(
    x: Float[Tensor, "batch pos d_model"],
    tables: Tables | None,
    bias: Bias,
    weights: Weights,
    variant: Variant,
    *,
    positions: Real[Tensor, "#batch pos"] | None = None,
    past: Past | None = None,
    opted_in: Collection[OptIn] = (),
    at: At = untouched,
    stages: Stages = STAGES,
) -> Output:
    """One attention layer, in any floating dtype; in float64 it is the oracle.

    Args:
        x: hidden states.
        tables: rotary cos and sin, lying as `variant.rotary.table` says; None where the layer does not rotate.
        bias: 0 or a number where a query may see a key, -inf where not (`causal_bias`, `padding_bias`, `bias_of_mask`).
        weights: the layer's learned tensors, in x's dtype.
        positions: of the queries, for a family whose query has a temperature; the temperatures, where they are given.
        past: rotated keys, and values, of earlier positions; in a layer whose keys and values are given, those of all positions.
        opted_in: the hook points that are made on request only.
        at: sees every hook point, in order.
    """
    weights, variant = a_key_for_every_head(weights, variant) if "attn_in" in opted_in else (weights, variant)

    x = at("hook_in", x)
    made = heads(x, weights, variant, opted_in, at, stages)
    q, *made_kv = rotated(made, tables, weights, variant, at, stages)
    past = kept(past, made_kv, stages)

    s = shown_in(x.dtype, "hook_attn_scores", stages.scores(stages.temper(q, positions, variant.temperature), past.key, bias, variant), at)
    p = at("hook_pattern", stages.pattern(s, weights.sinks).to(x.dtype))
    g = gates(x, weights, variant, at, stages)
    z = at("hook_z", stages.gated(stages.mix(p, past.value), g, weights.z_norm, variant.z_norm))

    if "attn_result" in opted_in:
        return Output(at("hook_out", stages.sum_of_results(at("hook_result", stages.result(z, weights.W_O)), weights.b_O)), p, past)
    return Output(at("hook_out", stages.output(z, weights.W_O, weights.b_O)), p, past)


def shown_in(dtype: torch.dtype, name: str, value: Tensor, at: At) -> Tensor:
    """A value that hooks are shown rounded to `dtype`; where nobody touches it, the layer goes on with it as it was."""
    rounded = value.to(dtype)
    left = at(name, rounded)
    return value if left is rounded else left


def kept(past: Past | None, made: list[Tensor], stages: Stages) -> Past:
    """Keys and values of all positions; a layer that makes none goes by those it is given (KV-1)."""
    if not made:
        return given(past, "keys and values", "KV-1")
    k, v = made
    return Past(k, v) if past is None else Past(stages.recall(past.key, k), stages.recall(past.value, v))


def heads(x: Tensor, weights: Weights, variant: Variant, opted_in: Collection[OptIn], at: At, stages: Stages) -> list[Tensor]:
    """Query, key and value heads of this call's positions, normed unless that comes after rotation; the query alone where key and value are given."""
    x_q, x_k, x_v = stages.split_inputs(x, variant, opted_in, at)
    c_q, c_k, c_v = latents(x, (x_q, x_k, x_v), weights, variant, at, stages)
    early = variant.norm is not None and not variant.norm.after_rotation
    bound = None if early else variant.clip

    made = [at("hook_q", stages.clip(stages.project(c_q, weights.W_Q, weights.b_Q), bound))]
    if not variant.kv_given:
        k = stages.with_rotary_part(stages.project(c_k, given(weights.W_K, "W_K", "PROJ-1"), weights.b_K), x_k, weights)
        k = at("hook_k", stages.clip(stages.multiply(k, variant.k_multiplier), bound))
        v = k if variant.value_is_key else stages.multiply(stages.project(c_v, given(weights.W_V, "W_V", "PROJ-1"), weights.b_V), variant.v_multiplier)
        made += [k, at("hook_v", stages.clip(v, variant.clip))]
    if early:
        made = normed(made, weights, variant, at, stages)
    if variant.value_norm is not None and not variant.kv_given:
        made[2] = at("hook_v_normed", stages.normalise(made[2], weights.v_norm, variant.value_norm))
    return made


def latents(x: Tensor, inputs: tuple[Tensor, Tensor, Tensor], weights: Weights, variant: Variant, at: At, stages: Stages) -> tuple[Tensor, Tensor, Tensor]:
    """What query, key and value are projected from: their inputs, or the latents of hook_in that every head shares (LAT-1)."""
    if variant.latent is None:
        return inputs
    c_q, norm = inputs[0], variant.latent.norm
    if variant.latent.q_rank is not None:
        c_q = shared(at("hook_q_latent", stages.latent(x, weights.W_DQ, weights.b_DQ, weights.q_latent_norm, norm, variant.latent.q_scale)), variant)
    c_kv = at("hook_kv_latent", stages.latent(x, weights.W_DKV, weights.b_DKV, weights.kv_latent_norm, norm, variant.latent.kv_scale))
    return c_q, shared(c_kv, variant), shared(c_kv, variant)


def shared(c: Float[Tensor, "batch pos rank"], variant: Variant) -> Float[Tensor, "batch pos head rank"]:
    """A latent as each head reads it."""
    return repeat(c, "batch pos rank -> batch pos head rank", head=variant.heads)


def normed(made: list[Tensor], weights: Weights, variant: Variant, at: At, stages: Stages) -> list[Tensor]:
    """Query and key after the family's norm (NORM-1), clipped where the family clips (CLIP-1); the value as it is."""
    assert variant.norm is not None
    bound = None if variant.norm.after_rotation else variant.clip
    for place, (role, affine) in enumerate((("q", weights.q_norm), ("k", weights.k_norm))[: len(made)]):
        normal = stages.clip(stages.normalise(made[place], affine, variant.norm), bound)
        made[place] = at(f"hook_{role}_normed", normal).view_as(made[place])
    return made


def rotated(made: list[Tensor], tables: Tables | None, weights: Weights, variant: Variant, at: At, stages: Stages) -> list[Tensor]:
    """Query and key rotated (ROT-1), and normed where that comes after (NORM-3); the value as it is."""
    if variant.rotary is not None:
        cos, sin = given(tables, "tables (cos, sin)", "CFG-3")
        turn = stages.turns(at("hook_cos", cos), at("hook_sin", sin), variant.rotary)
        made = [*(stages.rotate(heads, turn, variant.rotary) for heads in made[:2]), *made[2:]]
    made = [*(at(f"hook_rot_{role}", heads) for role, heads in zip("qk", made, strict=False)), *made[2:]]
    late = variant.norm is not None and variant.norm.after_rotation
    return normed(made, weights, variant, at, stages) if late else made


def gates(x: Tensor, weights: Weights, variant: Variant, at: At, stages: Stages) -> Tensor | None:
    """The gate (GATE-1), which reads hook_in whatever inputs are split; None where the family has none."""
    if variant.gate is None:
        return None
    every_head = repeat(x, "batch pos d_model -> batch pos head d_model", head=variant.heads)
    logits = stages.project(every_head, weights.W_G, weights.b_G)
    g = stages.gate(at("hook_q_gate", logits) if variant.gate.in_query else logits, variant.gate)
    return at("hook_gate", g if variant.gate.per == "channel" else g[..., 0])


def given(value: T | None, what: str, clause: str) -> T:
    """What a layer cannot do without."""
    if value is None:
        raise ContractError(f"the layer was given no {what}; clause {clause} requires them")
    return value


def a_key_for_every_head(weights: Weights, variant: Variant) -> tuple[Weights, Variant]:
    """Clause SPLIT-3: the weights of a kv head, once for each query head that shares it; kv_head is then head."""

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
    """The key norm's weight and bias, where they tell heads apart, once for each query head."""
    if variant.norm is None or (variant.norm.over == "head" and not variant.norm.per_head):
        return affine

    def spread(rows: Tensor | None) -> Tensor | None:
        if rows is None:
            return None
        by_head = rows.reshape(variant.kv_heads, -1)
        return repeat(by_head, "kv_head d_head -> (kv_head group) d_head", group=variant.group).reshape(-1, *rows.shape[1:])

    return Affine(spread(affine.weight), spread(affine.bias))
