"""Cutting a graph at a tensor, and a norm whose scale is a constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ropebridge.methods.errors import MethodError

PROBE = 64.0


def leaf(tensor: Tensor, leaves: list[Tensor]) -> Tensor:
    """Return the same values, from which gradients begin anew; kept among the leaves."""
    start = tensor.detach().clone().requires_grad_()
    leaves.append(start)
    return start


def cut(output: Any, leaves: list[Tensor]) -> Any:
    """Return a branch's output cut off from what made it; of several values the first is the one
    that joins the residual stream."""
    if isinstance(output, tuple):
        return (
            leaf(output[0], leaves),
            *(x.detach() if isinstance(x, Tensor) else x for x in output[1:]),
        )
    return leaf(output, leaves)


def roundoff(tensor: Tensor) -> float:
    """Return the rounding of a value: float32's in float64 too, because the norms of transformers
    round to it whatever they are given."""
    return max(torch.finfo(tensor.dtype).eps, torch.finfo(torch.float32).eps)


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm, by the name of its class."""
    return "norm" in type(module).__name__.lower()


def freeze_norm(module: Any, x: Tensor, output: Tensor, leaves: list[Tensor]) -> Tensor:
    """Return a norm's output, with gradients as though its scale were a constant of each position,
    and its bias a leaf.

    Every norm in use is y = w (x - c mean(x)) s(x) + b. What w, c and b are is found by asking the
    norm itself, which serves root mean square and layer norms, with or without weights, whatever
    the class calls them.

    Raises:
        MethodError: the norm is none of these.
    """
    with torch.no_grad():
        weight, centred, bias = anatomy(module, x)
        scale = scale_of(x, output, weight, centred, bias)
    bias_leaf = leaf(bias.to(x.dtype).expand_as(x), leaves)
    linear = (direction(x, weight, centred) * scale).to(x.dtype) + bias_leaf
    return output.detach() + (linear - linear.detach())


def anatomy(module: Any, x: Tensor) -> tuple[Tensor, bool, Tensor]:
    """Return the weight (up to a factor) and the bias of a norm, each (d_model,) float64, and
    whether it takes the mean away."""
    width = x.shape[-1]
    signs = (1 - 2 * (torch.arange(width, device=x.device) % 2)).to(x.dtype)
    if width % 2:
        raise MethodError(
            f"{type(module).__name__} norms {width} numbers; a norm of an odd width is not served"
        )
    up, down, level = (
        module.forward(probe.expand(1, 1, -1)).double().flatten()
        for probe in (PROBE * signs, -PROBE * signs, PROBE * torch.ones_like(signs))
    )
    bias = (up + down) / 2
    weight = (up - down) / 2 * signs.double()
    return weight, bool((level - bias).norm() < 0.5 * weight.norm()), bias


def direction(x: Tensor, weight: Tensor, centred: bool) -> Tensor:
    """Return the norm of x but for scale and bias, float64, of the shape of x."""
    wide = x.double()
    return weight * (wide - wide.mean(-1, keepdim=True) if centred else wide)


def scale_of(x: Tensor, output: Tensor, weight: Tensor, centred: bool, bias: Tensor) -> Tensor:
    """Return (..., 1): the scale that a norm gave each position, fitted to its output."""
    along, given = direction(x, weight, centred), output.double() - bias
    scale = (along * given).sum(-1, keepdim=True) / along.square().sum(-1, keepdim=True).clamp_min(
        torch.finfo(torch.float64).tiny
    )
    gap, size = (given - along * scale).norm(dim=-1), given.norm(dim=-1) + bias.norm()
    if not bool((gap <= 8 * roundoff(output) * size).all()):
        raise MethodError(
            "a module whose class is named a norm does not compute weight * (x - mean) * scale +"
            " bias, and cannot be frozen"
        )
    return scale
