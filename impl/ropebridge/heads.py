"""Heads of one call, and how the output of a projection is cut into them.

How many heads there are is said by the widths: a rank of a tensor-parallel model has its own share.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ropebridge_spec import Variant


class Heads(NamedTuple):
    """Hold query, key and value of one call's positions, and what opens its gate, each (batch, pos,
    heads, width).

    q: the query. k, v: key and value; None in a layer that is handed an earlier layer's (KV-1), and
        v where the value is the key. gate: the gate's part of the query projection (GATE-1), or
        None.
    """

    q: Tensor
    k: Tensor | None
    v: Tensor | None
    gate: Tensor | None = None


def split_heads(rows: Tensor, role: str, variant: Variant) -> Tensor:
    """Return (..., heads, width): what the projection of the key or of the value gives, (...,
    rows)."""
    width = variant.d_head_v if role == "v" else variant.d_head
    return rows.view(*rows.shape[:-1], rows.shape[-1] // width, width)


def split_query(rows: Tensor, variant: Variant) -> tuple[Tensor, Tensor | None]:
    """Return the query (..., head, d_head) in what its projection gives, (..., rows), and the gate
    (..., head, d_head_v) where it lies there too."""
    if variant.gate is None or not variant.gate.in_query:
        return split_heads(rows, "q", variant), None
    widths = [variant.d_head, variant.d_head_v]
    query, gate = rows.unflatten(-1, (-1, sum(widths))).split(widths, dim=-1)
    return query, gate.contiguous()


def split_fused(rows: Tensor, variant: Variant) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value, each (..., heads, width), in what a projection gives that they
    share, (..., rows); nothing is copied."""
    width, group = variant.d_head, variant.group
    if variant.projections.layout == "groups":
        groups = rows.unflatten(-1, (-1, group + 2, width))  # (..., kv_head, group + 2, width)
        q, k, v = groups.split([group, 1, 1], dim=-2)
        return q.flatten(-3, -2), k.squeeze(-2), v.squeeze(-2)
    if variant.projections.layout == "quarters":
        quarters = rows.unflatten(-1, (4, 3, -1, width))  # (..., quarter, part, head, width)
        q, v, k = (part.flatten(-3, -2) for part in quarters.unbind(-3))
        return q, k, v
    kv_heads = rows.shape[-1] // (group * width + width + variant.d_head_v)
    widths = [kv_heads * group * width, kv_heads * width, kv_heads * variant.d_head_v]
    q, k, v = rows.split(widths, dim=-1)
    return (
        split_heads(q, "q", variant),
        split_heads(k, "k", variant),
        split_heads(v, "v", variant),
    )
