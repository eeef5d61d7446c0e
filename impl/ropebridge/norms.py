"""Norms of query, key, value, latents and z (clause NORM-1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ropebridge_spec import Norm


def normalise(x: Tensor, module: Any, norm: Norm) -> Tensor:
    """Normalise the last axis of (batch, pos, head, width), or (batch, pos, head width), by the
    family's own module.

    In float64 it goes by the formula, because the module would round to float32.
    """
    if x.dtype == torch.float64:
        return by_formula(x, *affine(module, norm), norm)
    normed: Tensor = head_by_head(x, module) if norm.module_per_head else module(x)
    return normed


def affine(module: Any, norm: Norm) -> tuple[Tensor | None, Tensor | None]:
    """Return weight and bias of a norm, (width,), or (head, width) where each head has a module of
    its own; None where there is none."""
    if norm.module_per_head:
        parts = list(module.norms)
        return torch.stack([part.weight for part in parts]), (
            torch.stack([part.bias for part in parts]) if norm.bias else None
        )
    return None if norm.weight == "none" else module.weight, module.bias if norm.bias else None


def head_by_head(x: Tensor, module: Any) -> Tensor:
    """Return each head by its own norm: the module takes (batch, head, pos, width). Several heads
    may share a norm, side by side."""
    batch, pos, heads, width = x.shape
    kept = len(module.norms)
    grouped = x.reshape(batch, pos, kept, heads // kept, width).permute(0, 2, 1, 3, 4)
    normed: Tensor = module(grouped.flatten(2, 3))
    return normed.reshape(grouped.shape).permute(0, 2, 1, 3, 4).reshape(x.shape)


def by_formula(x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm) -> Tensor:
    """Return the formula of clause NORM-1, in at least float32; the result has the shape and the
    dtype of x."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide - wide.mean(-1, keepdim=True) if norm.kind == "layer" else wide
    unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
    unit = unit.to(x.dtype) if norm.rounds_before_weight else unit
    if weight is not None:
        unit = unit * (weight if norm.weight == "scale" else 1.0 + weight.to(wide.dtype))
    return (unit if bias is None else unit + bias).to(x.dtype)
