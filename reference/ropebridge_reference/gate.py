"""Clauses GATE-1 and MIX-1: what each head's mix of values goes through before the output
projection."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from ropebridge_reference.norm import normalise
from ropebridge_reference.weights import Affine
from ropebridge_spec import Gate, Norm

Heads = Float[Tensor, "batch pos head width"]
Z = Float[Tensor, "batch pos head d_head_v"]

ACTIVATION: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softplus": softplus,
}


def open_gate(logits: Heads, kind: Gate) -> Heads:
    """Return the activation, in at least float32, rounded once."""
    return ACTIVATION[kind.activation](
        logits.to(torch.promote_types(logits.dtype, torch.float32))
    ).to(logits.dtype)


def norm_and_gate(
    z: Z, g: Float[Tensor, "batch pos head *d_head_v"] | None, affine: Affine, norm: Norm | None
) -> Z:
    """Return the mix of values, normalised, then multiplied by the gate; either only where the
    family does so."""
    if norm is not None:
        z = normalise(z, affine, norm).reshape(z.shape)
    if g is not None and g.ndim < z.ndim:
        g = rearrange(g, "batch pos head -> batch pos head 1")
    return z if g is None else z * g
