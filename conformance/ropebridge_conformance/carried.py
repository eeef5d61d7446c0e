"""Values that carry their error along: what a stage makes of an input that is itself off by so much."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ropebridge_reference import Affine, gated, mix, normalise, project, rotate
from ropebridge_reference import gate as activate
from ropebridge_spec import Gate, Norm, Rotary, bounds


@dataclass(frozen=True)
class Sized:
    """An exact value, and how far a computation in some dtype may be from it."""

    value: Tensor
    error: Tensor


def exact(value: Tensor) -> Sized:
    """A value that nothing is lost of."""
    return Sized(value, torch.zeros_like(value))


def heads_of(x: Tensor, heads: int) -> Sized:
    """(batch pos n), exact, as each of so many heads reads it."""
    return exact(x.unsqueeze(2).expand(-1, -1, heads, -1))


def projected(x: Sized, W: Tensor, b: Tensor | None, dtype: str) -> Sized:
    """PROJ-1: (batch pos head n) by (head n m)."""
    value, carried = project(x.value, W, b), project(x.error, W.abs(), None)
    magnitude = project(x.value.abs() + x.error, W.abs(), None if b is None else b.abs())
    product = 0 if b is None else project(x.value, W, None).abs() + carried
    return Sized(value, carried + bounds.linear(value, magnitude, terms=W.shape[1], dtype=dtype, product=product))


def latent(x: Tensor, W: Tensor, b: Tensor | None, affine: Affine, norm: Norm, scale: float, dtype: str) -> Sized:
    """LAT-1: down, normed and scaled, with an axis of one head."""
    return scaled(normed(projected(heads_of(x, 1), W[None], None if b is None else b[None], dtype), affine, norm, dtype), scale, dtype)


def joined(one: Sized, other: Sized) -> Sized:
    """Two parts of a head side by side."""
    return Sized(torch.cat([one.value, other.value], -1), torch.cat([one.error, other.error], -1))


def copied(x: Sized, heads: int) -> Sized:
    """One head's value, for so many heads."""
    return Sized(x.value.expand(-1, -1, heads, -1), x.error.expand(-1, -1, heads, -1))


def scaled(x: Sized, factor: float, dtype: str) -> Sized:
    """A factor, whose product is rounded unless it is 1."""
    value = factor * x.value
    return x if factor == 1 else Sized(value, abs(factor) * x.error + bounds.rounded(value, times=1, dtype=dtype))


def rotated(x: Sized, turn: Tensor, rotary: Rotary, dtype: str) -> Sized:
    """ROT-1."""
    value, magnitude = rotate(x.value, turn, rotary), rotate(x.value.abs() + x.error, turn.abs(), rotary)
    return Sized(value, rotate(x.error, turn.abs(), rotary) + bounds.rotate(value, magnitude, precision=rotary.precision, dtype=dtype))


def clipped(x: Sized, bound: float | None) -> Sized:
    """CLIP-1: clipping brings two numbers no further apart."""
    return x if bound is None else Sized(x.value.clamp(-bound, bound), x.error)


def normed(x: Sized, affine: Affine, norm: Norm, dtype: str) -> Sized:
    """NORM-1: an error along the value itself is divided out, every other is divided by the size. The shape is that of x."""
    value = normalise(x.value, affine, norm)
    flat, off = (x.value.flatten(2), x.error.flatten(2)) if norm.over == "flat" else (x.value, x.error)
    centre = flat - flat.mean(-1, keepdim=True) if norm.kind == "layer" else flat
    size = (centre.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    unit, error = (centre / size).abs(), off / size
    spread = error + unit * (unit * error).mean(-1, keepdim=True) + (error.mean(-1, keepdim=True) if norm.kind == "layer" else 0)
    weight = factor_of(affine, norm, like=value)
    own = bounds.norm(value, centring(flat, weight, norm), terms=flat.shape[-1], roundings=2, dtype=dtype)
    own = own + (0 if affine.bias is None else bounds.rounded(weight * unit + affine.bias.abs(), times=1, dtype=dtype))
    return Sized(value.reshape(x.value.shape), (weight * spread + own).reshape(x.value.shape))


def factor_of(affine: Affine, norm: Norm, *, like: Tensor) -> Tensor:
    """What a norm multiplies by, made positive."""
    if affine.weight is None:
        return torch.ones_like(like)
    return (affine.weight if norm.weight == "scale" else 1 + affine.weight).abs().expand_as(like)


def centring(x: Tensor, weight: Tensor, norm: Norm) -> Tensor:
    """How large a layer norm's terms are before the mean cancels them, scaled like its result; 0 for an rms norm."""
    if norm.kind == "rms":
        return torch.zeros_like(weight)
    relative = x.abs().amax(-1, keepdim=True) / (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    return 2 * relative * (1 + relative) * weight


def opened(logits: Sized, kind: Gate, dtype: str) -> Sized:
    """GATE-1: sigmoid has slope at most 1/4, softplus at most 1."""
    value = activate(logits.value, kind)
    carried = logits.error * (0.25 if kind.activation == "sigmoid" else 1.0)
    gate = Sized(value, carried + bounds.activation(value, logits.value, dtype=dtype))
    return gate if kind.per == "channel" else Sized(gate.value[..., 0], gate.error[..., 0])


def mixed(p: Tensor, p_error: Tensor, v: Sized, dtype: str) -> Sized:
    """The mix of values by a pattern that is itself off."""
    value, magnitude = mix(p, v.value), mix(p + p_error, v.value.abs() + v.error)
    carried = mix(p_error, v.value.abs() + v.error) + mix(p, v.error)
    return Sized(value, carried + bounds.linear(value, magnitude, terms=p.shape[-1], dtype=dtype))


def finished(x: Sized, g: Sized | None, affine: Affine, norm: Norm | None, dtype: str) -> Sized:
    """MIX-1: what is mixed, normed and then gated where the family does so."""
    x = x if norm is None else normed(x, affine, norm, dtype)
    if g is None:
        return x
    none = Affine()
    value = gated(x.value, g.value, none, None)
    carried = gated(x.error, g.value.abs() + g.error, none, None) + gated(x.value.abs(), g.error, none, None)
    return Sized(value, carried + bounds.rounded(value, times=1, dtype=dtype) + bounds.UNDERFLOW[dtype])
