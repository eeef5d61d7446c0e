"""Rounding errors carried through the whole layer: how far two right implementations may end up apart."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ropebridge_conformance.oracle import Expectation
from ropebridge_reference import Weights, mix, normalise, output, pattern, project, rotate, scores, turns
from ropebridge_spec import Norm, Variant, bounds


@dataclass(frozen=True)
class Sized:
    """An exact value, and how far a computation in some dtype may be from it."""

    value: Tensor
    error: Tensor


@dataclass(frozen=True)
class EndToEnd:
    """The exact pattern and output of a call, each with a bound on its error."""

    pattern: Expectation
    out: Expectation


def end_to_end(x: Tensor, tables: tuple[Tensor, Tensor] | None, bias: Tensor, weights: Weights, variant: Variant, dtype: str) -> EndToEnd:
    """The layer in float64, with a-priori error bounds for `dtype` run along with it, stage by stage."""
    q, k, v = (projected(x, getattr(weights, f"W_{r}"), getattr(weights, f"b_{r}"), dtype) for r in "QKV")
    if variant.norm is not None:
        q, k = normed(q, weights.q_norm, variant.norm, dtype), normed(k, weights.k_norm, variant.norm, dtype)
    if variant.rotary is not None and tables is not None:
        q, k = rotated(q, tables, variant, dtype), rotated(k, tables, variant, dtype)
    p, p_error = attended(q, k, bias, weights, variant, dtype)
    z = mixed(p, p_error, v, dtype)
    return EndToEnd(Expectation(p, p_error), put_out(z, weights, variant, dtype))


def projected(x: Tensor, W: Tensor, b: Tensor | None, dtype: str) -> Sized:
    """PROJ-1 from an exact input."""
    heads = x.unsqueeze(2).expand(-1, -1, W.shape[0], -1)
    value = project(heads, W, b)
    magnitude = project(heads.abs(), W.abs(), None if b is None else b.abs())
    return Sized(value, bounds.linear(value, magnitude, terms=x.shape[-1], dtype=dtype, product=magnitude))


def normed(x: Sized, weight: Tensor | None, norm: Norm, dtype: str) -> Sized:
    """NORM-1: an error along the value itself is divided out, every other is divided by the size."""
    assert weight is not None
    value = normalise(x.value, weight, norm)
    flat = (x.value.flatten(2), x.error.flatten(2)) if norm.over == "flat" else (x.value, x.error)
    centre = flat[0] - flat[0].mean(-1, keepdim=True) if norm.kind == "layer" else flat[0]
    size = (centre.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    unit, error = (centre / size).abs(), flat[1] / size
    spread = error + unit * (unit * error).mean(-1, keepdim=True) + (error.mean(-1, keepdim=True) if norm.kind == "layer" else 0)
    factor = (weight if norm.weight == "scale" else 1 + weight).abs()
    centring = factor * (1 + unit) * unit.amax(-1, keepdim=True)
    own = bounds.norm(value, centring, terms=flat[0].shape[-1], roundings=2, dtype=dtype)
    return Sized(value.reshape(x.value.shape), (factor * spread + own).reshape(x.value.shape))


def rotated(x: Sized, tables: tuple[Tensor, Tensor], variant: Variant, dtype: str) -> Sized:
    """ROT-1."""
    assert variant.rotary is not None
    turn = turns(tables[0].double(), tables[1].double(), variant.rotary)
    value, magnitude = rotate(x.value, turn, variant.rotary), rotate(x.value.abs() + x.error, turn.abs(), variant.rotary)
    own = bounds.rotate(value, magnitude, precision=variant.rotary.precision, dtype=dtype)
    return Sized(value, rotate(x.error, turn.abs(), variant.rotary) + own)


def attended(q: Sized, k: Sized, bias: Tensor, weights: Weights, variant: Variant, dtype: str) -> tuple[Tensor, Tensor]:
    """SCORE-1 and PAT-1: the score error runs through softmax, relative e^(2 delta) - 1.

    Two roundings more than the contract asks, because a witness may round scores again before it exponentiates.
    """
    bare, none = replace(variant, softcap=None, scale=abs(variant.scale)), torch.zeros_like(bias)
    s = scores(q.value, k.value, bias, variant)
    magnitude = scores(q.value.abs() + q.error, k.value.abs() + k.error, none, bare)
    carried = magnitude - scores(q.value.abs(), k.value.abs(), none, bare)
    finite = s.nan_to_num(neginf=0.0)
    own = bounds.scores(finite, magnitude, terms=variant.d_head, softcap=variant.softcap, dtype=dtype) + 2 * bounds.UNIT[dtype] * (finite.abs() + 1)
    delta = (carried + own).masked_fill(s == -torch.inf, 0).amax(-1, keepdim=True)
    p = pattern(s, weights.sinks)
    below = (s.amax(-1, keepdim=True) - s).nan_to_num(nan=0.0, posinf=0.0)
    rounding = 2 * bounds.UNIT[dtype] * below * p
    return p, p * (2 * delta).expm1() + bounds.softmax(p, below, keys=s.shape[-1] + 1, dtype=dtype) + rounding


def mixed(p: Tensor, p_error: Tensor, v: Sized, dtype: str) -> Sized:
    """MIX-1."""
    value, magnitude = mix(p, v.value), mix(p + p_error, v.value.abs() + v.error)
    carried = mix(p_error, v.value.abs() + v.error) + mix(p, v.error)
    return Sized(value, carried + bounds.linear(value, magnitude, terms=p.shape[-1], dtype=dtype))


def put_out(z: Sized, weights: Weights, variant: Variant, dtype: str) -> Expectation:
    """OUT-1."""
    b = None if weights.b_O is None else weights.b_O.abs()
    value, magnitude = output(z.value, weights.W_O, weights.b_O), output(z.value.abs() + z.error, weights.W_O.abs(), b)
    own = bounds.linear(value, magnitude, terms=variant.heads * variant.d_head_v, dtype=dtype, product=magnitude)
    return Expectation(value, output(z.error, weights.W_O.abs(), None) + own)
