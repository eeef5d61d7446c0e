"""Rounding errors carried through the whole layer: how far two right implementations may end up
apart."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ropebridge_conformance.stages.carried import (
    WithError,
    carry_adapter,
    carry_clip,
    carry_difference,
    carry_exclusion,
    carry_factor,
    carry_gate,
    carry_key_bias,
    carry_latent,
    carry_mix,
    carry_norm,
    carry_norm_and_gate,
    carry_projection,
    carry_rotary_part,
    carry_rotation,
    copy_for_heads,
    exact,
    heads_of,
    join_parts,
)
from ropebridge_conformance.stages.oracle import Expectation
from ropebridge_reference import (
    Affine,
    Past,
    Weights,
    make_pattern,
    of_the_largest,
    project_output,
    rows_for,
    scale_by_temperature,
    score_keys,
    side_by_side,
    turns,
)
from ropebridge_spec import Rotary, Variant, bounds

Tables = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class EndToEnd:
    """Hold the exact pattern and output of a call, each with a bound on its error."""

    pattern: Expectation
    out: Expectation


def end_to_end(
    x: Tensor,
    x_kv: Tensor,
    tables: Tables | None,
    positions: Tensor,
    given_kv: Past | None,
    added_value: Tensor | None,
    bias: Tensor,
    weights: Weights,
    variant: Variant,
    dtype: str,
) -> EndToEnd:
    """Return the layer in float64, with a-priori error bounds for `dtype` run along with it, stage
    by stage."""
    c_q, c_k = latents(x, x_kv, weights, variant, dtype)
    q = carry_norm_and_rotation(
        carry_adapter(
            carry_projection(c_q, weights.W_Q, weights.b_Q, dtype),
            c_q,
            weights.adapters.get("Q"),
            dtype,
        ),
        weights.q_norm,
        tables,
        variant,
        dtype,
    )
    k, v = (
        keys_and_values(x_kv, c_k, tables, weights, variant, dtype)
        if given_kv is None
        else (exact(given_kv.key.double()), exact(given_kv.value.double()))
    )
    v = (
        v
        if added_value is None
        else WithError(
            v.value + added_value,
            v.error + bounds.rounded(v.value.abs() + added_value.abs(), times=2, dtype=dtype),
        )
    )
    own = None if variant.key_bias is None else carry_key_bias(v, weights, variant, dtype)
    p = carry_softmax(
        carry_temperature(q, positions, variant, dtype), k, bias, own, weights, variant, dtype
    )
    g = carry_gate_projection(
        c_q if variant.gate_rises else heads_of(x, variant.heads), weights, variant, dtype
    )
    z = carry_mix_of_pairs(p, v, weights, variant, dtype)
    z = z if weights.alpha is None else carry_exclusion(z, v, weights.alpha, dtype)
    z = carry_norm_and_gate(z, g, weights.z_norm, variant.z_norm, dtype)
    z = carry_factor(z, variant.z_multiplier, dtype)
    return EndToEnd(Expectation(p.value, p.error), carry_output(z, weights, variant, dtype))


def carry_mix_of_pairs(
    p: WithError, v: WithError, weights: Weights, variant: Variant, dtype: str
) -> WithError:
    """Carry value and error through MIX-1; where heads come in pairs, through their difference too
    (DIFF-1)."""
    if variant.differential is None or weights.lambdas is None:
        return carry_mix(p, v, dtype)
    both = carry_mix(p, WithError(side_by_side(v.value), side_by_side(v.error)), dtype)
    return carry_difference(both, weights.lambdas, variant.differential, dtype)


def keys_and_values(
    x: Tensor, c: WithError, tables: Tables | None, weights: Weights, variant: Variant, dtype: str
) -> tuple[WithError, WithError]:
    """Carry value and error through LAT-1, PROJ-1: key, normed and rotated, and value, normed where
    the family does so."""
    assert weights.W_K is not None
    k = carry_adapter(
        carry_projection(c, weights.W_K, weights.b_K, dtype), c, weights.adapters.get("K"), dtype
    )
    if weights.W_KR is not None:
        k = join_parts(
            k,
            carry_rotary_part(
                heads_of(x, variant.kv_heads), weights, variant.rotary_part_norm, dtype
            ),
        )
    k = carry_factor(k, variant.k_multiplier, dtype)
    v = (
        k
        if weights.W_V is None
        else carry_adapter(
            carry_projection(c, weights.W_V, weights.b_V, dtype),
            c,
            weights.adapters.get("V"),
            dtype,
        )
    )
    v = v if weights.W_V is None else carry_factor(v, variant.v_multiplier, dtype)
    v = carry_clip(v, variant.clip)
    v = (
        v
        if not (variant.rotary and variant.rotary.values and tables)
        else carry_rotation_by_tables(v, tables, variant.rotary, dtype)
    )
    v = (
        v
        if variant.value_norm is None
        else carry_norm(v, weights.v_norm, variant.value_norm, dtype)
    )
    return carry_norm_and_rotation(k, weights.k_norm, tables, variant, dtype), v


def latents(
    x: Tensor, x_kv: Tensor, weights: Weights, variant: Variant, dtype: str
) -> tuple[WithError, WithError]:
    """Return what query, and key and value, are projected from."""
    c_q, c_kv = heads_of(x, variant.heads), heads_of(x_kv, variant.kv_heads)
    if variant.latent is None:
        return c_q, c_kv
    kind = variant.latent
    if weights.W_DQ is not None:
        c_q = copy_for_heads(
            carry_latent(
                x,
                weights.W_DQ,
                weights.b_DQ,
                weights.q_latent_norm,
                kind.norm,
                kind.q_scale,
                kind.q_beside,
                dtype,
            ),
            variant.heads,
        )
    assert weights.W_DKV is not None
    return c_q, copy_for_heads(
        carry_latent(
            x,
            weights.W_DKV,
            weights.b_DKV,
            weights.kv_latent_norm,
            kind.norm,
            kind.kv_scale,
            False,
            dtype,
        ),
        variant.heads,
    )


def carry_norm_and_rotation(
    x: WithError, affine: Affine, tables: Tables | None, variant: Variant, dtype: str
) -> WithError:
    """Carry value and error through NORM-1, CLIP-1 and ROT-1: of query or key, in the family's
    order."""
    norm, late = variant.norm, variant.norm is not None and variant.norm.after_rotation
    if norm is not None and not late:
        x = carry_norm(x, affine, norm, dtype)
    x = carry_clip(x, variant.clip)
    if variant.rotary is not None and tables is not None:
        x = carry_rotation_by_tables(x, tables, variant.rotary, dtype)
    return carry_norm(x, affine, norm, dtype) if norm is not None and late else x


def carry_rotation_by_tables(x: WithError, tables: Tables, rotary: Rotary, dtype: str) -> WithError:
    """Carry value and error through ROT-1, ROT-3: the stage on the value, and its bound."""
    cos, sin = rows_for(x.value.shape[1], *tables)
    return carry_rotation(x, turns(cos.double(), sin.double(), rotary), rotary, dtype)


def carry_temperature(q: WithError, positions: Tensor, variant: Variant, dtype: str) -> WithError:
    """Carry value and error through SCORE-4: the factor may be rounded, and so is the product."""
    if variant.temperature is None:
        return q
    value = scale_by_temperature(q.value, positions, variant.temperature)
    return WithError(
        value,
        scale_by_temperature(q.error, positions, variant.temperature)
        + bounds.rounded(value, times=2, dtype=dtype),
    )


def carry_softmax(
    q: WithError,
    k: WithError,
    bias: Tensor,
    own: WithError | None,
    weights: Weights,
    variant: Variant,
    dtype: str,
) -> WithError:
    """Carry value and error through SCORE-1 and PAT-1: the score error runs through softmax,
    relative e^(2 delta) - 1.

    Two roundings more than the contract asks, because a witness may round scores again before it
    exponentiates.
    """
    bare, none = replace(variant, softcap=None, scale=abs(variant.scale)), torch.zeros_like(bias)
    if own is not None and variant.key_bias is not None:
        bias = of_the_largest(own.value, bias, variant.key_bias.keep)
    s = score_keys(q.value, k.value, bias, variant)
    magnitude = score_keys(q.value.abs() + q.error, k.value.abs() + k.error, none, bare)
    carried = magnitude - score_keys(q.value.abs(), k.value.abs(), none, bare)
    finite = s.nan_to_num(neginf=0.0)
    rounding = bounds.scores(
        finite, magnitude, terms=variant.d_head, softcap=variant.softcap, dtype=dtype
    ) + 2 * bounds.UNIT[dtype] * (finite.abs() + 1)
    carried = (
        carried
        if own is None
        else carried + own.error + bounds.rounded(own.value, times=2, dtype=dtype)
    )
    delta = (carried + rounding).masked_fill(s == -torch.inf, 0).amax(-1, keepdim=True)
    p = make_pattern(s, weights.sinks)
    below = (s.amax(-1, keepdim=True) - s).nan_to_num(nan=0.0, posinf=0.0)
    rounding = 2 * bounds.UNIT[dtype] * below * p
    return WithError(
        p,
        p * (2 * delta).expm1()
        + bounds.softmax(p, below, keys=s.shape[-1] + 1, dtype=dtype)
        + rounding,
    )


def carry_gate_projection(
    x: WithError, weights: Weights, variant: Variant, dtype: str
) -> WithError | None:
    """Carry value and error through GATE-1: the stage on the value, and its bound."""
    if variant.gate is None:
        return None
    assert weights.W_G is not None
    return carry_gate(carry_projection(x, weights.W_G, weights.b_G, dtype), variant.gate, dtype)


def carry_output(z: WithError, weights: Weights, variant: Variant, dtype: str) -> Expectation:
    """Carry value and error through OUT-1: the stage on the value, and its bound."""
    b = None if weights.b_O is None else weights.b_O.abs()
    value, magnitude = (
        project_output(z.value, weights.W_O, weights.b_O),
        project_output(z.value.abs() + z.error, weights.W_O.abs(), b),
    )
    own = bounds.linear(
        value, magnitude, terms=variant.z_heads * variant.d_z, dtype=dtype, product=magnitude
    )
    return Expectation(value, project_output(z.error, weights.W_O.abs(), None) + own)
