"""Pieces of scores and pattern: the rows and heads that somebody needs, gathered so that row blocks
make them together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ropebridge.base import AttentionBridge
from ropebridge.kernels.row_blocks import Block, RowBlocks
from ropebridge.masks import Visibility
from ropebridge.parts import Index, common, index_of, united, within
from ropebridge_spec import Selection, compact

MOST_ROWS = 4
"""How many times the usual rows a block has where heads are few: as many numbers as of many."""
USUAL_HEADS = 16


class Needing(Protocol):
    """Say what rows and heads of the pattern are needed."""

    @property
    def selection(self) -> Selection: ...


@dataclass(frozen=True)
class Piece:
    """Hold heads that share their kv heads with no others that are wanted, and the rows wanted of
    them.

    heads, kv_heads: their numbers. rows: in order. blocks: what makes them. whole: whether it is
        all rows of all heads.
    """

    heads: Sequence[int]
    kv_heads: slice
    rows: Sequence[int]
    blocks: RowBlocks
    whole: bool

    def place(self, block: Block) -> tuple[Sequence[int], ...]:
        """Return the numbers of heads, rows and keys that a block makes."""
        rows, keys = block.rows, block.keys
        return self.heads, range(rows.start, rows.stop), range(keys.start, keys.stop)

    def wanted(self, block: Block) -> tuple[Index, Index]:
        """Return those rows of a block that are wanted, by their numbers, and by their places in
        the block."""
        mine, there = common(self.rows, range(block.rows.start, block.rows.stop))
        if isinstance(mine, slice):
            return index_of(self.rows[mine]), there
        return [self.rows[place] for place in mine], there


@dataclass(frozen=True)
class Pieces:
    """Gather what is needed of a call's scores and pattern.

    q: (batch, head, query, d_head). k: (batch, kv_head, key, d_head). seen: which keys each query
        may see. layer: whose call it is.
    """

    q: Tensor
    k: Tensor
    seen: Visibility
    layer: AttentionBridge

    def of(self, parts: Sequence[Needing], *, all_keys: bool = False) -> list[Piece]:
        """Return the rows and heads that parts need, those of several kv heads together where all
        their heads need the same rows.

        Args:
            parts: what needs them.
            all_keys: whether blocks hold all keys, and not only those that a row of them may see.
        """
        kv_heads = self.k.shape[1]
        group = self.q.shape[1] // kv_heads
        pieces, first = [], 0
        while first < kv_heads:
            needing = self._needing(parts, first, group)
            stop = first + 1
            if all(part.selection.heads is None for part in needing):
                while stop < kv_heads and self._needing(parts, stop, group) == needing:
                    stop += 1
            if needing:
                own = range(first * group, stop * group)
                heads = [h for h in own if any(holds(part.selection.heads, h) for part in needing)]
                rows = united([part.selection.query for part in needing], self.seen.query)
                pieces.append(
                    self._piece(compact(heads), slice(first, stop), compact(rows), all_keys)
                )
            first = stop
        return pieces

    def _needing(self, parts: Iterable[Needing], kv_head: int, group: int) -> list[Needing]:
        """Return the parts that hold a head of this kv head."""
        own = range(kv_head * group, (kv_head + 1) * group)
        return [part for part in parts if any(holds(part.selection.heads, head) for head in own)]

    def _piece(
        self, heads: Sequence[int], kv_heads: slice, rows: Sequence[int], all_keys: bool
    ) -> Piece:
        """Return what makes some rows of some heads."""
        seen, index = self.seen, index_of(heads)
        most = max(1, min(MOST_ROWS, USUAL_HEADS // (self.q.shape[0] * len(heads))))
        many = most * self.layer.kernels.rows
        runs = [within(rows, start, start + many) for start in range(0, seen.query, many)]
        blocks = [
            Block(run, slice(0, seen.key) if all_keys else seen.keys_of(run))
            for run in runs
            if run is not None
        ]
        sinks = None if self.layer.sinks is None else self.layer.sinks[index]
        q, k, variant = self.q[:, index], self.k[:, kv_heads], self.layer.effective
        made = RowBlocks(q, k, seen, variant, sinks, blocks, index)
        whole = len(heads) == self.q.shape[1] and len(rows) == seen.query
        return Piece(heads, kv_heads, rows, made, whole)


def holds(numbers: Sequence[int] | None, number: int) -> bool:
    """Return whether a number is one of several; None holds all."""
    return numbers is None or number in numbers
