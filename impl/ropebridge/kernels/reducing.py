"""Reductions of the pattern, made of its blocks of rows one after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ropebridge.hooks import Hook
from ropebridge.parts import common, is_nothing, read_part, write_part
from ropebridge.reductions import Reduced
from ropebridge_spec import Selection

ALL = slice(None)


class Reducing:
    """Make a reduction of the pattern, block by block, for one hook.

    Args:
        hook: it has a reduction. selection: the heads and rows of which.
        shape: that of the whole pattern.
    """

    def __init__(self, hook: Hook, selection: Selection, shape: Sequence[int]) -> None:
        assert hook.reduce is not None
        self.hook, self.selection, self.how = hook, selection, hook.reduce
        self.batch, heads, query, self.key = shape
        self.heads = heads if selection.heads is None else len(selection.heads)
        self.rows = query if selection.query is None else len(selection.query)
        self._made: tuple[Tensor, ...] = ()

    def add(self, weights: Tensor, place: tuple[Sequence[int], ...]) -> None:
        """Take a block (batch, heads, rows, keys) of the pattern in, of which `place` says the
        heads, rows and keys."""
        heads, rows, keys = place
        my_heads, their_heads = common(self.selection.heads, heads)
        my_rows, their_rows = common(self.selection.query, rows)
        if is_nothing([my_heads, my_rows]):
            return
        part = read_part(weights, [ALL, their_heads, their_rows, ALL])
        made = self.how.of(part, keys[0], self.key)
        self._made = self._made or self._empty(made)
        for whole, new in zip(self._made, made, strict=True):
            if self.how.over_queries:
                there = [ALL, my_heads, ALL]
                write_part(whole, there, read_part(whole, there) + new)
            else:
                write_part(whole, [ALL, my_heads, my_rows, *[ALL] * (new.ndim - 3)], new)

    def _empty(self, made: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return memory for the whole result, of which this is what one block gives."""
        front = (
            (self.batch, self.heads)
            if self.how.over_queries
            else (self.batch, self.heads, self.rows)
        )
        return tuple(new.new_zeros((*front, *new.shape[len(front) :])) for new in made)

    def result(self, like: Tensor) -> Reduced:
        """Return the whole result, on the device of another tensor; of no rows, what there is of
        none."""
        if not self._made:
            wide = torch.promote_types(like.dtype, torch.float32)
            nothing = like.new_zeros(self.batch, self.heads, self.rows, self.key, dtype=wide)
            self._made = self.how.of(nothing, 0, self.key)
        return self.how.finish(self._made, max(self.rows, 1))
