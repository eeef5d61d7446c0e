"""Gate of each head's mix of values (clause GATE-1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ropebridge.base import AttentionBridge


def open_gate(x: Tensor, rows: Tensor | None, layer: AttentionBridge) -> Tensor | None:
    """Return what hook_gate left, (batch, pos, head, d_head_v), or (batch, pos, head) where there
    is one gate per head; None in a family that has none.

    Args:
        x: (batch, pos, d_model), what a gate of its own is projected from.
        rows: (batch, pos, head, d_head_v), the gate's part of the query projection, or None.
    """
    gate = layer.variant.gate
    if gate is None:
        return None
    logits = gate_of_input(x, layer) if rows is None else layer.show("hook_q_gate", rows)
    opened = torch.sigmoid(logits) if gate.activation == "sigmoid" else F.softplus(logits)
    return layer.show("hook_gate", opened if gate.per == "channel" else opened.squeeze(-1))


def gate_of_input(x: Tensor, layer: AttentionBridge) -> Tensor:
    """Return (batch, pos, head, d_head_v or 1): the gate before its activation, by a projection of
    its own."""
    gate = layer.variant.gate
    assert gate is not None
    width = layer.variant.d_head_v if gate.per == "channel" else 1
    logits: Tensor = layer.submodule("gate")(x).unflatten(-1, (-1, width))
    return logits if gate.bias is None else logits + getattr(layer.wrapped, gate.bias).unsqueeze(-1)
