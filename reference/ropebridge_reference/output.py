"""Clauses RES-1 and OUT-1: from each head's mix of values to the output."""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

Z = Float[Tensor, "batch query head d_head_v"]
W_O = Float[Tensor, "head d_head_v d_model"]


def result(z: Z, W: W_O) -> Float[Tensor, "batch query head d_model"]:
    """Return what each head adds to the output."""
    return einsum(z, W, "batch query head d, head d d_model -> batch query head d_model")


def project_output(
    z: Z, W: W_O, b: Float[Tensor, " d_model"] | None
) -> Float[Tensor, "batch query d_model"]:
    """Return all heads together, and the bias; summed in at least float32, rounded once."""
    wide = torch.promote_types(z.dtype, torch.float32)
    y = einsum(z.to(wide), W.to(wide), "batch query head d, head d d_model -> batch query d_model")
    return (y if b is None else y + b).to(z.dtype)


def sum_of_results(
    r: Float[Tensor, "batch query head d_model"], b: Float[Tensor, " d_model"] | None
) -> Float[Tensor, "batch query d_model"]:
    """Return the output where each head's result was made: their sum, and the bias."""
    y = einsum(
        r.to(torch.promote_types(r.dtype, torch.float32)),
        "batch query head d_model -> batch query d_model",
    )
    return (y if b is None else y + b).to(r.dtype)
