"""Query and key norms (clause NORM-1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ropebridge_spec import Norm


def normalise(x: Tensor, module: nn.Module, norm: Norm) -> Tensor:
    """Normalise the last axis by the family's own module; in float64 by its formula, which the module would round to float32."""
    if x.dtype == torch.float64:
        return by_formula(x, module.weight, norm)  # type: ignore[arg-type]
    normed: Tensor = module(x)
    return normed


def by_formula(x: Tensor, weight: Tensor, norm: Norm) -> Tensor:
    """The formula of clause NORM-1, in at least float32; the result has x's dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide - wide.mean(-1, keepdim=True) if norm.kind == "layer" else wide
    unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
    unit = unit.to(x.dtype) if norm.rounds_before_weight else unit
    return (unit * (weight if norm.weight == "scale" else 1.0 + weight.to(wide.dtype))).to(x.dtype)
