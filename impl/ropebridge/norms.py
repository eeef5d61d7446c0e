"""Query and key norms (clause NORM-1)."""

from __future__ import annotations

import torch
from ropebridge_spec import Norm
from torch import Tensor, nn


def normalise(x: Tensor, module: nn.Module, norm: Norm) -> Tensor:
    """Normalise the last axis by the family's own module; in float64 by its formula, which the module would round to float32."""
    if x.dtype == torch.float64:
        return normalise_exactly(x, module.weight, norm)  # type: ignore[arg-type]
    normed: Tensor = module(x)
    return normed


def normalise_exactly(x: Tensor, weight: Tensor, norm: Norm) -> Tensor:
    """The formula of clause NORM-1 in x's dtype."""
    x = x - x.mean(-1, keepdim=True) if norm.kind == "layer" else x
    unit = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
    return unit * (weight if norm.weight == "scale" else 1.0 + weight)
