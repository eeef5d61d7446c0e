"""Rotation of query and key by position (clause ROT-1), in as few passes as elementwise operations
allow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ropebridge.base import AttentionBridge
from ropebridge.heads import Heads
from ropebridge.position import Tables
from ropebridge.readable import under_transform
from ropebridge_spec import Rotary

SHORT = 16
"""Positions up to which one rotation of query and key together is faster than two: what an
operation costs by itself then counts for more than what it computes."""


def rotate_heads(heads: Heads, tables: Tables | None, layer: AttentionBridge) -> Heads:
    """Return the heads, query and key as hook_rot_q and hook_rot_k left them, and in a family that
    rotates values the value as hook_rot_v did (ROT-3). In a layer that does not rotate the hooks
    are shown query and key as they are."""
    rotary = layer.variant.rotary
    q, k, v = heads.q, heads.k, heads.v
    if rotary is None or tables is None:
        q = layer.show("hook_rot_q", q)
        k = k if k is None else layer.show("hook_rot_k", k)
        return Heads(q, k, v, heads.gate)
    turn: Turn = layer.once.make(
        tables, (q.shape[1], q.dtype, rotary), lambda: turn_of(q, tables, rotary)
    )
    alike = k is not None and k.shape[1] == q.shape[1]
    if k is not None and alike and q.shape[1] <= SHORT:
        both = rotate(torch.cat([q, k], dim=2), turn, rotary)  # (batch, pos, head kv_head, d_head)
        # laid out as hooks are shown it, or torch's products would round otherwise where one looks;
        # one position of one row is laid out so already
        q, k = both[:, :, : q.shape[2]].contiguous(), both[:, :, q.shape[2] :].contiguous()
        q, k = layer.show("hook_rot_q", q), layer.show("hook_rot_k", k)
    else:
        q = layer.show("hook_rot_q", rotate(q, turn, rotary), fresh=True)
        turn = turn if k is None or alike else turn_of(k, tables, rotary)
        k = k if k is None else layer.show("hook_rot_k", rotate(k, turn, rotary), fresh=True)
    if rotary.values and v is not None:
        v = layer.show("hook_rot_v", rotate(v, turn, rotary), fresh=True)
    return Heads(q, k, v, heads.gate)


@dataclass(frozen=True)
class Turn:
    """Hold the tables as rotation uses them.

    cos: (batch or 1, pos, 1, width), in the dtype to work in. signed_sin: the same, negative where
        the other member of a pair is subtracted.
    """

    cos: Tensor
    signed_sin: Tensor


def turn_of(x: Tensor, tables: Tables, rotary: Rotary) -> Turn:
    """Return the tables for (batch, pos, heads, d_head), laid out as the pairing reads them."""
    cos, sin = tables_for(x.shape[1], tables)
    floor = torch.float32 if rotary.precision == "float32" else x.dtype
    work = torch.promote_types(floor, torch.promote_types(x.dtype, cos.dtype))
    # a copy: a view would keep the model's own table alive for as long as it is remembered
    cos = lay(cos, rotary).to(work, copy=True).unsqueeze(2)
    return Turn(cos, signed(lay(sin, rotary).to(work).unsqueeze(2), rotary))


def tables_for(pos: int, tables: Tables) -> Tables:
    """Return the last rows of cos and sin, (batch or 1, pos, rotary_dim), for so many positions;
    where there are fewer, rows that turn nothing after them (KV-2)."""
    cos, sin = tables
    missing = pos - cos.shape[1]
    if missing == 0:
        return tables
    if missing > 0:
        # (batch or 1, pos, rotary_dim): the positions of another sequence come last
        return pad(cos, (0, 0, 0, missing), value=1.0), pad(sin, (0, 0, 0, missing))
    return cos[:, -pos:], sin[:, -pos:]


def rotate(x: Tensor, turn: Turn, rotary: Rotary) -> Tensor:
    """Rotate (batch, pos, head, d_head) by tables (batch or 1, pos, 1, rotary_dim); the result has
    x's dtype.

    The arithmetic is that of `apply_rotary_pos_emb` in transformers' modeling_llama.py (pairs of
    halves) and modeling_cohere.py (adjacent pairs): each dimension times cos, and the other member
    of its pair times sin, subtracted for one of the two.
    """
    if rotary.width == x.shape[-1]:
        return rotate_all(x, turn, rotary)
    passing, turning = parts(x, rotary)
    turned = rotate_all(turning, turn, rotary)
    return torch.cat([turned, passing] if rotary.end == "leading" else [passing, turned], dim=-1)


def rotate_all(x: Tensor, turn: Turn, rotary: Rotary) -> Tensor:
    """Rotate (batch, pos, head, width), all of whose dimensions turn."""
    wide = x.to(turn.cos.dtype)
    crossed = partners(wide, rotary)  # a new tensor, which may be written to
    if torch.is_grad_enabled() or under_transform():
        return torch.addcmul(crossed * turn.signed_sin, wide, turn.cos).to(x.dtype)
    return crossed.mul_(turn.signed_sin).addcmul_(wide, turn.cos).to(x.dtype)


def parts(x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """Return (..., d_head - width) and (..., width): the dimensions that pass through, and those
    that rotate."""
    passing = x.shape[-1] - rotary.width
    if rotary.end == "trailing":
        return x[..., :passing], x[..., passing:]
    return x[..., rotary.width :], x[..., : rotary.width]


def partners(x: Tensor, rotary: Rotary) -> Tensor:
    """Return (..., width): each pair (a, b) as (b, a), in memory of its own."""
    if rotary.pairing == "half":
        return x.roll(x.shape[-1] // 2, dims=-1)
    pairs: Tensor = x.unflatten(-1, (-1, 2))
    return pairs.flip(-1).flatten(-2)


def signed(sin: Tensor, rotary: Rotary) -> Tensor:
    """Return sin (..., width), negative for the first member of each pair; where the rotation goes
    backward, for the second."""
    first, second = (
        sin.chunk(2, dim=-1) if rotary.pairing == "half" else (sin[..., 0::2], sin[..., 1::2])
    )
    ends = (-first, second) if rotary.direction == "forward" else (first, -second)
    if rotary.pairing == "half":
        return torch.cat(ends, dim=-1)
    return torch.stack(ends, dim=-1).flatten(-2)


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
