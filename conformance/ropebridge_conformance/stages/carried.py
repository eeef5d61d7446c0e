"""Values that carry their error along: what a stage makes of an input that is itself off by so
much."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ropebridge_reference import (
    Affine,
    Weights,
    bias_keys,
    exclude,
    mix_values,
    norm_and_gate,
    normalise,
    project_heads,
    rotate,
    side_by_side,
    strength,
    subtract,
)
from ropebridge_reference import open_gate as activate
from ropebridge_spec import Differential, Gate, Norm, Rotary, Variant, bounds


@dataclass(frozen=True)
class WithError:
    """Hold an exact value, and how far a computation in some dtype may be from it.

    is_exact: whether the error is 0 everywhere.
    """

    value: Tensor
    error: Tensor
    is_exact: bool = False

    def map(self, move: Callable[[Tensor], Tensor]) -> WithError:
        """Return value and error moved alike: reshaped, copied, or multiplied by what is
        positive."""
        return WithError(move(self.value), move(self.error), self.is_exact)

    def beside(self, other: WithError, join: Callable[[Tensor, Tensor], Tensor]) -> WithError:
        """Return two values and their errors, each joined."""
        joined = join(self.error, other.error)
        return WithError(join(self.value, other.value), joined, self.is_exact and other.is_exact)

    def error_through(self, stage: Callable[[Tensor], Tensor]) -> Tensor | float:
        """Return what a stage, linear in this and made of absolute values, makes of the error."""
        return 0.0 if self.is_exact else stage(self.error)


def exact(value: Tensor) -> WithError:
    """Return a value that nothing is lost of."""
    return WithError(value, value.new_zeros(()).expand_as(value), is_exact=True)


def carry_projection(
    x: WithError, W: Tensor, b: Tensor | None, dtype: str, value: Tensor | None = None
) -> WithError:
    """Carry value and error through PROJ-1: (batch pos head n) by (head n m); `value` is what the
    stage makes of the value, where it is known already, here and below."""
    value = project_heads(x.value, W, b) if value is None else value
    carried = x.error_through(lambda error: project_heads(error, W.abs(), None))
    magnitude = project_heads(x.value.abs() + x.error, W.abs(), None if b is None else b.abs())
    product = 0 if b is None else project_heads(x.value, W, None).abs() + carried
    return WithError(
        value,
        carried + bounds.linear(value, magnitude, terms=W.shape[1], dtype=dtype, product=product),
    )


def carry_adapter(
    y: WithError, x: WithError, adapter: tuple[Tensor, Tensor] | None, dtype: str
) -> WithError:
    """Carry value and error through PROJ-1: a projection, and what its adapter adds."""
    if adapter is None:
        return y
    down, up = adapter
    more = carry_projection(
        carry_projection(x, down.expand(x.value.shape[2], -1, -1), None, dtype), up, None, dtype
    )
    total = y.value.abs() + y.error + more.value.abs() + more.error
    return WithError(
        y.value + more.value, y.error + more.error + bounds.rounded(total, times=1, dtype=dtype)
    )


def carry_latent(
    x: WithError,
    W: Tensor,
    b: Tensor | None,
    affine: Affine,
    norm: Norm,
    scale: float,
    beside: bool,
    dtype: str,
) -> WithError:
    """Carry value and error through LAT-1: down, normed and scaled, and as it was beside that where
    the family brings it up too; with an axis of one head."""
    one_head = x.map(lambda value: value.unsqueeze(2))
    down = carry_projection(one_head, W[None], None if b is None else b[None], dtype)
    risen = carry_factor(carry_norm(down, affine, norm, dtype), scale, dtype)
    return join_parts(risen, down) if beside else risen


def carry_rotary_part(x: WithError, weights: Weights, norm: Norm | None, dtype: str) -> WithError:
    """Carry value and error through PROJ-1: the part of a key that all heads share, normed where
    the family does so."""
    assert weights.W_KR is not None
    part = carry_projection(x, weights.W_KR, weights.b_KR, dtype)
    return part if norm is None else carry_norm(part, weights.k_rotary_norm, norm, dtype)


def join_parts(one: WithError, other: WithError) -> WithError:
    """Return two parts of a head side by side, with their errors."""
    return WithError(
        torch.cat([one.value, other.value], -1), torch.cat([one.error, other.error], -1)
    )


def copy_for_heads(x: WithError, heads: int) -> WithError:
    """Return one head's value, for so many heads."""
    return x.map(lambda value: value.expand(-1, -1, heads, -1))


def side_by_side_with_error(v: WithError) -> WithError:
    """Return the values of each pair of heads side by side (DIFF-1)."""
    return v.map(side_by_side)


def carry_factor(x: WithError, factor: float, dtype: str) -> WithError:
    """Return a factor, whose product is rounded unless it is 1."""
    value = factor * x.value
    return (
        x
        if factor == 1
        else WithError(value, abs(factor) * x.error + bounds.rounded(value, times=1, dtype=dtype))
    )


def carry_rotation(
    x: WithError, turn: Tensor, rotary: Rotary, dtype: str, value: Tensor | None = None
) -> WithError:
    """Carry value and error through ROT-1: the stage on the value, and its bound."""
    value, steps = rotate(x.value, turn, rotary) if value is None else value, turn.abs()
    magnitude = rotate(x.value.abs() + x.error, steps, rotary)
    carried = x.error_through(lambda error: rotate(error, steps, rotary))
    return WithError(
        value,
        carried + bounds.rotate(value, magnitude, precision=rotary.precision, dtype=dtype),
    )


def carry_clip(x: WithError, bound: float | None) -> WithError:
    """Carry value and error through CLIP-1: clipping brings two numbers no further apart."""
    return x if bound is None else WithError(x.value.clamp(-bound, bound), x.error, x.is_exact)


def carry_norm(
    x: WithError, affine: Affine, norm: Norm, dtype: str, value: Tensor | None = None
) -> WithError:
    """Carry value and error through NORM-1: an error along the value itself is divided out, every
    other is divided by the size. The shape is that of x."""
    value = normalise(x.value, affine, norm) if value is None else value
    flat, off = (
        (x.value.flatten(2), x.error.flatten(2)) if norm.over == "flat" else (x.value, x.error)
    )
    centre = flat - flat.mean(-1, keepdim=True) if norm.kind == "layer" else flat
    size = (centre.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    unit, error = (centre / size).abs(), off / size
    spread = (
        error
        + unit * (unit * error).mean(-1, keepdim=True)
        + (error.mean(-1, keepdim=True) if norm.kind == "layer" else 0)
    )
    weight = factor_of(affine, norm, like=value)
    own = bounds.norm(
        value, centring(flat, weight, norm), terms=flat.shape[-1], roundings=2, dtype=dtype
    )
    own = own + (
        0
        if affine.bias is None
        else bounds.rounded(weight * unit + affine.bias.abs(), times=1, dtype=dtype)
    )
    return WithError(value.reshape(x.value.shape), (weight * spread + own).reshape(x.value.shape))


def factor_of(affine: Affine, norm: Norm, *, like: Tensor) -> Tensor:
    """Return what a norm multiplies by, made positive."""
    if affine.weight is None:
        return torch.ones_like(like)
    return (affine.weight if norm.weight == "scale" else 1 + affine.weight).abs().expand_as(like)


def centring(x: Tensor, weight: Tensor, norm: Norm) -> Tensor:
    """Return how large a layer norm's terms are before the mean cancels them, scaled like its
    result; 0 for an rms norm."""
    if norm.kind == "rms":
        return torch.zeros_like(weight)
    relative = (
        x.abs().amax(-1, keepdim=True) / (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    )
    return 2 * relative * (1 + relative) * weight


def carry_gate(logits: WithError, kind: Gate, dtype: str) -> WithError:
    """Carry value and error through GATE-1: sigmoid has slope at most 1/4, softplus at most 1."""
    value = activate(logits.value, kind)
    carried = logits.error * (0.25 if kind.activation == "sigmoid" else 1.0)
    gate = WithError(value, carried + bounds.activation(value, logits.value, dtype=dtype))
    return gate if kind.per == "channel" else WithError(gate.value[..., 0], gate.error[..., 0])


def carry_mix(p: WithError, v: WithError, dtype: str, value: Tensor | None = None) -> WithError:
    """Return the mix of values by a pattern; either may itself be off."""
    value = mix_values(p.value, v.value) if value is None else value
    largest = v.value.abs() + v.error
    magnitude = mix_values(p.value + p.error, largest)
    of_pattern = p.error_through(lambda error: mix_values(error, largest))
    of_values = v.error_through(lambda error: mix_values(p.value, error))
    bound = bounds.linear(value, magnitude, terms=p.value.shape[-1], dtype=dtype)
    return WithError(value, of_pattern + of_values + bound)


def carry_key_bias(v: WithError, weights: Weights, variant: Variant, dtype: str) -> WithError:
    """Carry value and error through SCORE-5: (batch, head, 1, key); softplus has slope at most 1,
    and each step may be rounded."""
    assert weights.W_dt is not None
    assert weights.A is not None
    value, u = bias_keys(v.value, weights, variant), bounds.UNIT[dtype]
    every = replace(weights, A=torch.ones_like(weights.A))
    soft = bias_keys(v.value, every, variant).log()
    magnitude = torch.einsum("bkhd,ghd->bgk", v.value.abs() + v.error, weights.W_dt.abs()) + (
        0 if weights.b_dt is None else weights.b_dt.abs()[:, None]
    )
    carried = torch.einsum("bkhd,ghd->bgk", v.error, weights.W_dt.abs())
    terms = weights.W_dt.shape[1] * weights.W_dt.shape[2]
    off = carried + bounds.linear(magnitude, magnitude, terms=terms, dtype=dtype, product=magnitude)
    inside = weights.A.abs().repeat_interleave(variant.group)[:, None] * (
        off.repeat_interleave(variant.group, 1) + 2 * u * soft[:, :, 0]
    )
    return WithError(value, value * (inside.unsqueeze(2).expm1() * (1 + u) + 2 * u))


def carry_exclusion(x: WithError, v: WithError, alpha: Tensor, dtype: str) -> WithError:
    """Carry value and error through MIX-3: the unit value, the part along it and what is taken of
    it may each be rounded."""
    value, group, u = (
        exclude(x.value, v.value, alpha),
        x.value.shape[2] // v.value.shape[2],
        bounds.UNIT[dtype],
    )
    length = v.value.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    unit = (v.value / length).abs().repeat_interleave(group, 2)
    unit_off = (
        (2 * (v.error / length)).repeat_interleave(group, 2)
        + bounds.growth(v.value.shape[-1] + 4, dtype) * unit
        + 2 * u * unit
    )
    size = x.value.abs() + x.error
    along = (size * (unit + unit_off)).sum(-1, keepdim=True)
    along_off = (x.error * unit + size * unit_off).sum(-1, keepdim=True) + (
        bounds.growth(x.value.shape[-1] + 2, dtype) + 2 * u
    ) * along
    much = alpha.tanh().abs()[:, None]
    taken_off = much * (along_off * (unit + unit_off) + along * unit_off) + bounds.rounded(
        much * along * (unit + unit_off), times=4, dtype=dtype
    )
    return WithError(
        value,
        x.error
        + taken_off
        + bounds.rounded(size + much * along * unit, times=1, dtype=dtype)
        + bounds.UNDERFLOW[dtype],
    )


def carry_difference(x: WithError, lambdas: Tensor, kind: Differential, dtype: str) -> WithError:
    """Carry value and error through DIFF-1: the strength may be rounded at each of its steps, and
    so are product and difference."""
    value, half = subtract(x.value, lambdas, kind), x.value.shape[2] // 2
    q1, k1, q2, k2 = lambdas
    parts = [(q * k).abs().sum().item() for q, k in ((q1, k1), (q2, k2))]
    terms = [
        math.exp(float(q @ k)) * (1 + part)
        for q, k, part in ((q1, k1, parts[0]), (q2, k2, parts[1]))
    ]
    strong, off = (
        abs(float(strength(lambdas, kind))),
        4 * bounds.UNIT[dtype] * (sum(terms) + abs(kind.init)),
    )
    first, second = (
        x.value[:, :, :half].abs() + x.error[:, :, :half],
        x.value[:, :, half:].abs() + x.error[:, :, half:],
    )
    carried = x.error[:, :, :half] + strong * x.error[:, :, half:] + off * second
    return WithError(
        value, carried + bounds.rounded(first + (strong + off) * second, times=2, dtype=dtype)
    )


def carry_norm_and_gate(
    x: WithError, g: WithError | None, affine: Affine, norm: Norm | None, dtype: str
) -> WithError:
    """Carry value and error through MIX-1: what is mixed, normed and then gated where the family
    does so."""
    x = x if norm is None else carry_norm(x, affine, norm, dtype)
    if g is None:
        return x
    none = Affine()
    value = norm_and_gate(x.value, g.value, none, None)
    carried = norm_and_gate(x.error, g.value.abs() + g.error, none, None) + norm_and_gate(
        x.value.abs(), g.error, none, None
    )
    return WithError(
        value, carried + bounds.rounded(value, times=1, dtype=dtype) + bounds.UNDERFLOW[dtype]
    )
