"""Clause ROT-1: rotary position embedding (RoFormer, arXiv:2104.09864, section 3.2).

A pair of dimensions (a, b) is a point in a plane; position turns it by an angle:

    (a, b)  ->  (a cos - b sin,  b cos + a sin)

Which dimensions form a pair is one pattern string, and so is how the tables lie.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from ropebridge_spec import Rotary

PAIRING = {"half": "(two pair)", "interleaved": "(pair two)"}
TABLE = {"full": "(two pair)", "repeated": "(pair two)", "half": "pair", "complex": "pair"}

Table = Float[Tensor, "table_batch pos rotary_dim"]
Turns = Float[Tensor, "table_batch pos pair 2 2"]
Heads = Float[Tensor, "batch pos head d_head"]


def turns(cos: Table, sin: Table, rotary: Rotary) -> Turns:
    """Return the 2x2 rotation of every pair at every position: rows [cos, -sin] and [sin, cos].

    Where a table holds each frequency twice, each row of the matrix reads its own copy; but
    adjacent pairs read the first half of a full table for both rows (transformers'
    modeling_glm.py and modeling_deepseek_v3.py).
    """
    sin = sin if rotary.direction == "forward" else -sin
    cos, sin = by_pair(cos, rotary), by_pair(sin, rotary)
    first = torch.stack([cos[..., 0], -sin[..., 0]], dim=-1)
    second = torch.stack([sin[..., 1], cos[..., 1]], dim=-1)
    return torch.stack([first, second], dim=-2)


def rows_for(
    pos: int,
    cos: Float[Tensor, "table_batch table_pos rotary_dim"],
    sin: Float[Tensor, "table_batch table_pos rotary_dim"],
) -> tuple[Table, Table]:
    """Return the last rows of the tables, for so many positions; where there are fewer, rows that
    turn nothing after them: a sequence that comes after is not rotated (KV-2)."""
    beyond = (cos.shape[0], max(pos - cos.shape[1], 0), cos.shape[2])
    ones, zeros = cos.new_ones(beyond), sin.new_zeros(beyond)
    return torch.cat([cos[:, -pos:], ones], dim=1), torch.cat([sin[:, -pos:], zeros], dim=1)


def by_pair(table: Table, rotary: Rotary) -> Float[Tensor, "table_batch pos pair 2"]:
    """Return the two entries of a table that the two rows of each pair's matrix read."""
    if rotary.pairing == "interleaved" and rotary.table == "full":
        first_half, _ = table.chunk(2, dim=-1)
        return repeat(first_half, "batch pos pair -> batch pos pair two", two=2)
    return repeat(table, f"batch pos {TABLE[rotary.table]} -> batch pos pair two", two=2)


def rotate(x: Heads, turn: Turns, rotary: Rotary) -> Heads:
    """Turn the pairs of the leading, or trailing, `rotary.width` dimensions; the rest pass
    through."""
    if rotary.end == "trailing":
        passing, x = x.split([x.shape[-1] - rotary.width, rotary.width], dim=-1)
        return torch.cat([passing, rotate_all(x, turn, rotary)], dim=-1)
    x, passing = x[..., : rotary.width], x[..., rotary.width :]
    return torch.cat([rotate_all(x, turn, rotary), passing], dim=-1)


def rotate_all(
    x: Float[Tensor, "batch pos head width"], turn: Turns, rotary: Rotary
) -> Float[Tensor, "batch pos head width"]:
    """Turn every pair of every vector."""
    work = torch.promote_types(x.dtype, torch.float32) if rotary.precision == "float32" else x.dtype
    plane = rearrange(
        x, f"batch pos head {PAIRING[rotary.pairing]} -> batch pos head pair two", two=2
    )
    turned = turn_planes(turn.to(work), plane.to(work)).to(x.dtype)
    return rearrange(turned, f"batch pos head pair two -> batch pos head {PAIRING[rotary.pairing]}")


def turn_planes(
    turn: Turns, plane: Float[Tensor, "batch pos head pair 2"]
) -> Float[Tensor, "batch pos head pair 2"]:
    """Return each pair times the matrix of its position, which all heads share; a table of batch 1
    serves the whole batch."""
    turn = turn.expand(plane.shape[0], *turn.shape[1:])
    return einsum(
        turn, plane, "batch pos pair out two, batch pos head pair two -> batch pos head pair out"
    )
