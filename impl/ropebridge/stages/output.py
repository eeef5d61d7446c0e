"""From each head's mix of values to what the layer returns (clauses RES-1, OUT-1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ropebridge.base import AttentionBridge
from ropebridge.products import head_by_head


def project_output(z: Tensor, layer: AttentionBridge) -> Tensor:
    """Return (batch, pos, d_model): what hook_out left, after hook_result where that is opted in
    to. The caller may write into it: what hooks were shown is not in it (EDIT-2)."""
    projects = "o" in layer.roles
    out: Tensor = layer.submodule("o")(z.flatten(-2)) if projects else z.flatten(-2)
    if "attn_result" in layer.opted_in and layer.hook("hook_result").watched:
        out = (out + change_of_results(z, layer)).to(out.dtype)
    left = layer.show("hook_out", out, made_by="o")
    shown = layer.hook("hook_out").watched or (not projects and layer.hook("hook_z").watched)
    return left.clone() if shown else left


def change_of_results(z: Tensor, layer: AttentionBridge) -> Tensor:
    """Return (batch, pos, d_model): what hooks added to the sum of results, exactly 0 where they
    only looked (LOOK-1)."""
    results = head_by_head(z, layer.W_O)
    wide = torch.promote_types(z.dtype, torch.float32)
    change: Tensor = layer.show("hook_result", results).to(wide) - results
    return change.sum(2)
