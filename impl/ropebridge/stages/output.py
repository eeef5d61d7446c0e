"""From each head's mix of values to what the layer returns (clauses MIX-1, RES-1, OUT-1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ropebridge.base import AttentionBridge
from ropebridge.products import head_by_head
from ropebridge.stages.differential import subtract
from ropebridge.stages.mix import exclude
from ropebridge.stages.norm import normalise
from ropebridge.stages.project import multiply


def finish_mix(z: Tensor, v: Tensor | None, gate: Tensor | None, layer: AttentionBridge) -> Tensor:
    """Return what hook_z left, (batch, pos, head, d_head_v): the mix of values subtracted,
    normalised and gated where the family does so.

    Args:
        z: (batch, pos, head, width), each head's mix. v: (batch, pos, kv_head, d_head_v), the
            values of this call, or None.
        gate: (batch, pos, head, d_head_v) or (batch, pos, head), or None.
    """
    variant = layer.variant
    if variant.differential is not None:
        z = subtract(z, layer.wrapped, variant.differential)
    if variant.exclusive is not None and v is not None:
        z = exclude(z, v, layer.wrapped, variant.exclusive)
    if variant.z_norm is not None:
        rows = z.flatten(-2) if variant.z_norm.over == "flat" else z
        z = normalise(rows, layer.submodule("z_norm"), variant.z_norm).view(z.shape)
    if gate is not None:
        z = z * (gate if gate.ndim == z.ndim else gate.unsqueeze(-1))
    return layer.hook("hook_z")(multiply(z, variant.z_multiplier))


def project_output(z: Tensor, layer: AttentionBridge) -> Tensor:
    """Return (batch, pos, d_model): what hook_out left, after hook_result where that is opted in
    to. The caller may write into it: what hooks were shown is not in it (EDIT-2)."""
    projects = "o" in layer.roles
    out: Tensor = layer.submodule("o")(z.flatten(-2)) if projects else z.flatten(-2)
    if "attn_result" in layer.opted_in and layer.hook("hook_result").watched:
        out = (out + change_of_results(z, layer)).to(out.dtype)
    left = layer.hook("hook_out")(out)
    shown = layer.hook("hook_out").watched or (not projects and layer.hook("hook_z").watched)
    return left.clone() if shown else left


def change_of_results(z: Tensor, layer: AttentionBridge) -> Tensor:
    """Return (batch, pos, d_model): what hooks added to the sum of results, exactly 0 where they
    only looked (LOOK-1)."""
    results = head_by_head(z, layer.W_O)
    wide = torch.promote_types(z.dtype, torch.float32)
    change: Tensor = layer.hook("hook_result")(results).to(wide) - results
    return change.sum(2)
