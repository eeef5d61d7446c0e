"""Scores, pattern and mix for one block of query rows at a time, all heads together, in memory that
every block uses again: scores are made, become the pattern, and are mixed, without leaving the
processor's cache. Keys that no row of a block may see are never touched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ropebridge.kernels.composite import row_slices
from ropebridge.kernels.demand import ROWS
from ropebridge.masks import Visibility
from ropebridge.parts import Index
from ropebridge.products import grouped_product
from ropebridge_spec import Variant


@dataclass(frozen=True)
class Block:
    """Hold some query rows, and the keys that any of them may see."""

    rows: slice
    keys: slice

    @property
    def lengths(self) -> tuple[int, int]:
        """Return how many rows and how many keys there are."""
        return self.rows.stop - self.rows.start, self.keys.stop - self.keys.start


class RowBlocks:
    """Make scores, pattern and mix of blocks of rows; autograd sees none of it.

    Args:
        q, k: (batch, head, query, d_head), (batch, kv_head, key, d_head).
        seen: which keys each query may see. variant: scale and softcap. sinks: (head,), or None.
        rows: query rows per block; or the blocks, where not all rows are wanted.
        heads: which of the heads of `seen` these are; None where they are all.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        seen: Visibility,
        variant: Variant,
        sinks: Tensor | None = None,
        rows: int | Sequence[Block] = ROWS,
        heads: Index | None = None,
    ) -> None:
        self.dtype, self.wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
        self.q, self.k, self.seen, self.variant = q, self.joined(k), seen, variant
        self.sinks = None if sinks is None else sinks.to(self.wide).reshape(-1, 1, 1)
        self.blocks = blocks_of(seen, rows) if isinstance(rows, int) else list(rows)
        self._heads = heads
        self._masks: dict[tuple[int, int, int], Tensor | None] = {}
        self._forbidden = q.new_full((), -torch.inf, dtype=self.wide)
        self._memory: Tensor | None = None

    def joined(self, shared: Tensor) -> Tensor:
        """Return keys or values (batch kv_head, key, width), in at least float32; a copy only where
        the axes cannot be joined, or the dtype is another."""
        return shared.to(self.wide).flatten(0, 1)

    def grouped(self, part: Tensor) -> Tensor:
        """Return (batch kv_head, group rows, n) of (batch, head, rows, n): what shares a key stands
        side by side."""
        return part.reshape(self.k.shape[0], -1, part.shape[-1])

    def query_of(self, block: Block, factor: float) -> Tensor:
        """Return (batch kv_head, group rows, d_head): the query of some rows, times a factor."""
        return self.grouped(self.q[:, :, block.rows].to(self.wide) * factor)

    def scratch(self, block: Block) -> Tensor:
        """Return (batch, head, rows, keys): the memory that all blocks share."""
        heads = self.q.shape[0] * self.q.shape[1]
        if self._memory is None:
            most = max(math.prod(each.lengths) for each in self.blocks)
            self._memory = self.q.new_empty(heads * most, dtype=self.wide)
        used = self._memory[: heads * math.prod(block.lengths)]
        return used.view(*self.q.shape[:2], *block.lengths)

    def score(self, block: Block) -> Tensor:
        """Return (batch, head, rows, keys), in the scratch: scaled, softcapped, masked scores
        (SCORE-1)."""
        cap = self.variant.softcap
        factor = self.variant.scale / (1.0 if cap is None else cap)
        scores = self.scratch(block)
        keys = self.k[:, block.keys].transpose(1, 2)  # (batch kv_head, d_head, keys)
        torch.bmm(self.query_of(block, factor), keys, out=self.grouped(scores))
        if cap is not None:
            scores.tanh_().mul_(cap)
        for hidden in self.seen.borders(block.rows, block.keys):
            self._forbid(scores, block, hidden)
        return scores

    def _forbid(self, scores: Tensor, block: Block, keys: slice) -> None:
        """Add the mask of some of the block's keys, those that not all rows see."""
        mask = self._mask_of(block.rows, keys)
        if mask is None:
            return
        start = block.keys.start
        part = scores[..., keys.start - start : keys.stop - start]
        if mask.dtype == torch.bool:
            torch.where(mask, part, self._forbidden, out=part)
        else:
            part.add_(mask)

    def _mask_of(self, rows: slice, keys: slice) -> Tensor | None:
        """Return the mask of some rows and keys; where the distance from key to query alone
        decides, that of the first block serves all."""
        if not self.seen.by_distance:
            mask = self.seen.block(rows, keys)
            per_head = mask is not None and mask.shape[1] > 1 and self._heads is not None
            return mask[:, self._heads] if per_head and mask is not None else mask
        alike = (rows.start - keys.start, rows.stop - rows.start, keys.stop - keys.start)
        if alike not in self._masks:
            self._masks[alike] = self.seen.block(rows, keys)
        return self._masks[alike]

    def weigh(self, scores: Tensor, edited: bool = False) -> Tensor:
        """Return the pattern (batch, head, rows, keys), in the memory of the scores: softmax over
        keys, 0 in a row that sees none, less what a sink takes (PAT-1, MASK-6); with the digits
        that the layer's dtype has. An edit may have hidden all keys of a row."""
        if self.sinks is None and not self.seen.may_hide_all and not edited:
            torch.softmax(scores, -1, out=scores)
        else:
            largest = scores.amax(-1, keepdim=True)  # (batch, head, rows, 1)
            # a row that sees no key has all its weight at the first one, and then none: one column
            # is written to and not all
            nothing, first = largest == -torch.inf, scores[..., :1]
            first.masked_fill_(nothing, 0.0)
            torch.softmax(scores, -1, out=scores)
            if self.sinks is not None:
                # the largest weight is 1 / sum(exp(score - largest)); a sink joins that sum
                below = largest - self.sinks - scores.amax(-1, keepdim=True).log()
                scores.mul_(torch.sigmoid(below))
            first.masked_fill_(nothing, 0.0)
        return scores if self.dtype == self.wide else scores.copy_(scores.to(self.dtype))

    def mix_into(self, z: Tensor, weights: Tensor, values: Tensor, rows: slice) -> None:
        """Write some rows of z (batch, query, head, width): weights (batch, head, rows, keys) times
        values (batch kv_head, keys, width)."""
        mixed = torch.bmm(self.grouped(weights), values).view(*weights.shape[:-1], -1)
        z[:, rows].copy_(mixed.transpose(1, 2))

    def new_z(self, v: Tensor) -> Tensor:
        """Return memory for z, (batch, query, head, width), whose heads lie side by side as the
        output projection reads them."""
        batch, heads, query, _ = self.q.shape
        return v.new_empty(batch, query, heads, v.shape[-1])

    def attend(self, v: Tensor) -> Tensor:
        """Return z (batch, query, head, width) of values (batch, kv_head, key, width)."""
        z, values = self.new_z(v), self.joined(v)
        for block in self.blocks:
            weights = self.weigh(self.score(block))
            self.mix_into(z, weights, values[:, block.keys], block.rows)
        return z

    def write_scores(self, scores: Tensor) -> None:
        """Write all scores (batch, head, query, key), -inf where a query may not see a key."""
        for block in self.blocks:
            write(scores, self.score(block), block, -torch.inf)

    def write_pattern(
        self, pattern: Tensor, clean: bool, scores: Tensor | None, v: Tensor | None
    ) -> Tensor | None:
        """Write the pattern (batch, head, query, key), and return z (batch, query, head, width) on
        the way, where there are values to mix.

        Args:
            pattern: the memory to write to. clean: whether it holds 0.
            scores: (batch, head, query, key) that a hook left, -inf at keys outside of the blocks;
                None makes them here.
            v: (batch, kv_head, key, width), or None.
        """
        z = None if v is None else self.new_z(v)
        values = None if v is None else self.joined(v)
        for block in self.blocks:
            if scores is None:
                weights = self.weigh(self.score(block))
            else:
                left = self.restore(scores[:, :, block.rows, block.keys], block)
                weights = self.weigh(left, edited=True)
            write(pattern, weights, block, None if clean else 0.0)
            if z is not None and values is not None:
                self.mix_into(z, weights, values[:, block.keys], block.rows)
        return z

    def restore(self, left: Tensor, block: Block) -> Tensor:
        """Return the scores (batch, head, rows, keys) that hooks left, in the scratch: where they
        left what rounding had made of a score, the score as it was before."""
        if left.dtype == self.wide:
            return self.scratch(block).copy_(left)
        scores = self.score(block)
        edited = left != scores.to(left.dtype)
        return scores.copy_(torch.where(edited, left.to(self.wide), scores))


def blocks_of(seen: Visibility, rows: int) -> list[Block]:
    """Return the blocks of all query rows, so many rows in each."""
    return [Block(part, seen.keys_of(part)) for part in row_slices(seen.query, rows)]


def mix(pattern: Tensor, v: Tensor, rows: int) -> Tensor:
    """Return z (batch, query, head, width): a pattern (batch, head, query, key), which may hold any
    number at any key, times values (batch, kv_head, key, width), so many rows at a time."""
    batch, heads, query, _ = pattern.shape
    z = v.new_empty(batch, query, heads, v.shape[-1])
    values = v.to(torch.promote_types(v.dtype, torch.float32))
    for part in row_slices(query, rows):
        weights = pattern[:, :, part].to(values.dtype)
        z[:, part] = grouped_product(weights, values).transpose(1, 2)
    return z


def is_everywhere(rows: Tensor, number: float, but: slice) -> bool:
    """Return whether (batch, head, rows, key) holds one number at all keys but some, and no NaN."""
    for part in (rows[..., : but.start], rows[..., but.stop :]):
        # two fast passes: `aminmax` and comparisons of all numbers take longer
        if part.shape[-1] and not bool(
            ((part.amin(-1) == number) & (part.amax(-1) == number)).all()
        ):
            return False
    return True


def write(whole: Tensor, part: Tensor, block: Block, elsewhere: float | None) -> None:
    """Write the rows of a block into (batch, head, query, key): its part (batch, head, rows, keys),
    and a number at other keys; None leaves them as they are."""
    rows = whole[:, :, block.rows]
    rows[..., block.keys].copy_(part)
    if elsewhere is not None:
        rows[..., : block.keys.start].fill_(elsewhere)
        rows[..., block.keys.stop :].fill_(elsewhere)
