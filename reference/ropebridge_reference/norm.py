"""Clause NORM-1: query and key norms (RMSNorm, arXiv:1910.07467; LayerNorm, arXiv:1607.06450)."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ropebridge_reference.weights import Affine
from ropebridge_spec import Norm

Heads = Float[Tensor, "batch pos head d_head"]
Normed = Float[Tensor, "batch pos *axes"]


def normalise(x: Heads, affine: Affine, norm: Norm) -> Normed:
    """Normalise the last axis in at least float32, multiply by the weight, add the bias, return to
    x's dtype.

    A flat norm takes all heads of a position as one axis, and shows it flat.
    """
    x = (
        rearrange(x, "batch pos head d_head -> batch pos (head d_head)")
        if norm.over == "flat"
        else x
    )
    work = torch.promote_types(x.dtype, torch.float32)
    unit = centred(x.to(work), norm) * inverse_size(x.to(work), norm)
    unit = unit.to(x.dtype) if norm.rounds_before_weight else unit
    scaled = unit if affine.weight is None else factor(affine.weight.to(work), norm) * unit
    return (scaled if affine.bias is None else scaled + affine.bias).to(x.dtype)


def factor(weight: Float[Tensor, "..."], norm: Norm) -> Float[Tensor, "..."]:
    """Return w, or 1 + w."""
    return weight if norm.weight == "scale" else 1.0 + weight


def centred(x: Tensor, norm: Norm) -> Tensor:
    """Return x (..., width), less its mean in a layer norm."""
    return x - x.mean(-1, keepdim=True) if norm.kind == "layer" else x


def inverse_size(x: Tensor, norm: Norm) -> Tensor:
    """Return (..., 1): 1 / sqrt(mean square + eps), or 1 / sqrt(variance + eps) in a layer norm."""
    return torch.rsqrt(centred(x, norm).square().mean(-1, keepdim=True) + norm.eps)
