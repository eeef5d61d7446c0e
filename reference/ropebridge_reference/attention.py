"""Rotary attention, from the residual stream and back. A hook point is the assignment itself: this text is their order."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from ropebridge_reference.masks import Bias, bias_of_mask, causal_bias, padding_bias
from ropebridge_reference.mix import mix, output, result, sum_of_results
from ropebridge_reference.norm import normalise
from ropebridge_reference.pattern import pattern
from ropebridge_reference.project import project
from ropebridge_reference.rotary import rotate, turns
from ropebridge_reference.scores import scores
from ropebridge_reference.split import split_inputs
from ropebridge_reference.weights import Weights
from ropebridge_spec import ContractError, OptIn, Variant

At = Callable[[str, Tensor], Tensor]
"""`at(name, value)` records the value of a hook point and gives back what the layer is to go on with."""


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
    project: Callable[..., Tensor] = project
    normalise: Callable[..., Tensor] = normalise
    turns: Callable[..., Tensor] = turns
    rotate: Callable[..., Tensor] = rotate
    recall: Callable[..., Tensor] = recall
    scores: Callable[..., Tensor] = scores
    pattern: Callable[..., Tensor] = pattern
    mix: Callable[..., Tensor] = mix
    result: Callable[..., Tensor] = result
    output: Callable[..., Tensor] = output
    sum_of_results: Callable[..., Tensor] = sum_of_results


STAGES = Stages()


def untouched(name: str, value: Tensor) -> Tensor:
    """An `at` that nobody watches."""
    return value


def attention(
    x: Float[Tensor, "batch pos d_model"],
    tables: tuple[Float[Tensor, "table_batch pos rotary_dim"], Float[Tensor, "table_batch pos rotary_dim"]] | None,
    bias: Bias,
    weights: Weights,
    variant: Variant,
    *,
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
        past: rotated keys and values of earlier positions.
        opted_in: the hook points that are made on request only.
        at: sees every hook point, in order.
    """
    weights, variant = a_key_for_every_head(weights, variant) if "attn_in" in opted_in else (weights, variant)

    q, k, v = rotated_heads(x, tables, weights, variant, opted_in, at, stages)
    past = Past(k, v) if past is None else Past(stages.recall(past.key, k), stages.recall(past.value, v))

    s = at("hook_attn_scores", stages.scores(q, past.key, bias, variant))
    p = at("hook_pattern", stages.pattern(s, weights.sinks))
    z = at("hook_z", stages.mix(p, past.value))

    if "attn_result" in opted_in:
        return Output(at("hook_out", stages.sum_of_results(at("hook_result", stages.result(z, weights.W_O)), weights.b_O)), p, past)
    return Output(at("hook_out", stages.output(z, weights.W_O, weights.b_O)), p, past)


def rotated_heads(
    x: Tensor,
    tables: tuple[Tensor, Tensor] | None,
    weights: Weights,
    variant: Variant,
    opted_in: Collection[OptIn],
    at: At,
    stages: Stages,
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value heads of this call's positions, query and key normed and rotated."""
    x = at("hook_in", x)
    x_q, x_k, x_v = stages.split_inputs(x, variant, opted_in, at)

    q = at("hook_q", stages.project(x_q, weights.W_Q, weights.b_Q))
    k = at("hook_k", stages.project(x_k, weights.W_K, weights.b_K))
    v = at("hook_v", stages.project(x_v, weights.W_V, weights.b_V))

    if variant.norm is not None:
        q = at("hook_q_normed", stages.normalise(q, weights.q_norm, variant.norm)).view_as(q)
        k = at("hook_k_normed", stages.normalise(k, weights.k_norm, variant.norm)).view_as(k)

    if variant.rotary is not None:
        cos, sin = given(tables)
        turn = stages.turns(at("hook_cos", cos), at("hook_sin", sin), variant.rotary)
        q, k = stages.rotate(q, turn, variant.rotary), stages.rotate(k, turn, variant.rotary)

    return at("hook_rot_q", q), at("hook_rot_k", k), v


def given(tables: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """The tables, which a layer that rotates cannot do without."""
    if tables is None:
        raise ContractError("a layer that rotates was given no tables; clause CFG-3 requires (cos, sin)")
    return tables


def a_key_for_every_head(weights: Weights, variant: Variant) -> tuple[Weights, Variant]:
    """Clause SPLIT-3: the weights of a kv head, once for each query head that shares it; kv_head is then head."""

    def spread(w: Tensor) -> Tensor:
        return repeat(w, "kv_head ... -> (kv_head group) ...", group=variant.group)

    spread_out = Weights(
        W_Q=weights.W_Q,
        W_K=spread(weights.W_K),
        W_V=spread(weights.W_V),
        W_O=weights.W_O,
        b_Q=weights.b_Q,
        b_K=None if weights.b_K is None else spread(weights.b_K),
        b_V=None if weights.b_V is None else spread(weights.b_V),
        b_O=weights.b_O,
        q_norm=weights.q_norm,
        k_norm=key_norm_for_every_head(weights.k_norm, variant),
        sinks=weights.sinks,
    )
    return spread_out, replace(variant, kv_heads=variant.heads)


def key_norm_for_every_head(weight: Tensor | None, variant: Variant) -> Tensor | None:
    """The key norm's weight, where it tells heads apart, once for each query head."""
    if weight is None or variant.norm is None or (variant.norm.over == "head" and not variant.norm.per_head):
        return weight
    by_head = weight.reshape(variant.kv_heads, -1)
    return repeat(by_head, "kv_head d_head -> (kv_head group) d_head", group=variant.group).reshape(-1, *weight.shape[1:])
