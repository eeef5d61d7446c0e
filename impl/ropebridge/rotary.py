"""Rotation of query and key by position (clause ROT-1), in as few passes as elementwise operations
allow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ropebridge_spec import Rotary


def rotate(x: Tensor, cos: Tensor, sin: Tensor, rotary: Rotary) -> Tensor:
    """Rotate (batch, pos, head, d_head) by tables (batch or 1, pos, rotary_dim); the result has x's
    dtype.

    The arithmetic is that of `apply_rotary_pos_emb` in transformers' modeling_llama.py (pairs of
    halves) and modeling_cohere.py (adjacent pairs): x cos + quarter_turn(x) sin.
    """
    floor = torch.float32 if rotary.precision == "float32" else x.dtype
    work = torch.promote_types(floor, torch.promote_types(x.dtype, cos.dtype))
    cos, sin = (lay(table, rotary).to(work).unsqueeze(2) for table in (cos, sin))
    passing, turning = parts(x, rotary)
    turning = turning.to(work)
    turned = (turning * cos + quarter_turn(turning, rotary) * sin).to(x.dtype)
    if rotary.width == x.shape[-1]:
        return turned
    return torch.cat([turned, passing] if rotary.end == "leading" else [passing, turned], dim=-1)


def parts(x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """Return (..., d_head - width) and (..., width): the dimensions that pass through, and those
    that rotate."""
    passing = x.shape[-1] - rotary.width
    if rotary.end == "trailing":
        return x[..., :passing], x[..., passing:]
    return x[..., rotary.width :], x[..., : rotary.width]


def quarter_turn(x: Tensor, rotary: Rotary) -> Tensor:
    """Return (..., width): each pair (a, b) turned by 90 degrees: (-b, a); backward (b, -a)."""
    a, b = x.chunk(2, dim=-1) if rotary.pairing == "half" else (x[..., 0::2], x[..., 1::2])
    turned = (-b, a) if rotary.direction == "forward" else (b, -a)
    return (
        torch.cat(turned, dim=-1)
        if rotary.pairing == "half"
        else torch.stack(turned, dim=-1).flatten(-2)
    )


def lay(table: Tensor, rotary: Rotary) -> Tensor:
    """Return (batch or 1, pos, width): a table with one entry for each rotated dimension, in the
    order in which the pairing reads them.

    Adjacent pairs read the first half of a full table for both dimensions, as
    `apply_rotary_pos_emb` in transformers' modeling_glm.py does.
    """
    if rotary.pairing == "interleaved":
        if rotary.table == "repeated":
            return table
        once = table.chunk(2, dim=-1)[0] if rotary.table == "full" else table
        return once.repeat_interleave(2, dim=-1)
    if rotary.table == "full":
        return table
    if rotary.table == "repeated":
        by_copy: Tensor = table.unflatten(-1, (-1, 2)).transpose(-1, -2)  # (..., 2, pair)
        return by_copy.flatten(-2)
    return torch.cat([table, table], dim=-1)


def fitting(tables: tuple[Tensor, Tensor], pos: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin (batch or 1, pos, rotary_dim): their last rows, for so many positions;
    where there are fewer, rows that turn nothing after them (KV-2)."""
    cos, sin = tables
    if cos.shape[1] == pos:
        return tables
    beyond = (0, 0, 0, max(pos - cos.shape[1], 0))
    return pad(cos[:, -pos:], beyond, value=1.0), pad(sin[:, -pos:], beyond)
