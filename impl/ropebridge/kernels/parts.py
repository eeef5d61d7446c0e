"""Parts of scores and pattern (clauses PART-1, PART-2): made for hooks that watch nothing else,
beside a z that comes from a kernel which makes neither; no autograd.

Only rows and heads that some part needs are made, by blocks of rows, and only the parts are kept.
Where a hook edits its part, the rows of z that depend on it are made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ropebridge.base import AttentionBridge
from ropebridge.hooks import Hook, HookPoint
from ropebridge.kernels.row_blocks import Block, RowBlocks
from ropebridge.masks import Visibility
from ropebridge.parts import (
    Index,
    common,
    index_of,
    is_nothing,
    read_part,
    united,
    within,
    write_part,
)
from ropebridge.stages.pattern import refuse_nan
from ropebridge.stages.scores import refuse_no_numbers, refuse_numbers_at
from ropebridge_spec import Selection, compact

ALL = slice(None)


@dataclass
class Part:
    """Hold what one hook is shown, and then what it left.

    tensor: (batch, heads, query, key) of the selection.
    """

    hook: Hook
    selection: Selection
    tensor: Tensor

    @property
    def numbers(self) -> tuple[Sequence[int] | None, ...]:
        """Return the numbers along heads, rows and keys, None for all."""
        return self.selection.heads, self.selection.query, self.selection.key


@dataclass(frozen=True)
class Piece:
    """Hold heads that share their kv heads with no others that are wanted, and the rows wanted of
    them.

    heads, kv_heads: their numbers. rows: in order. blocks: what makes them.
    """

    heads: Sequence[int]
    kv_heads: slice
    rows: Sequence[int]
    blocks: RowBlocks

    def place(self, block: Block) -> tuple[Sequence[int], ...]:
        """Return the numbers of heads, rows and keys that a block makes."""
        rows, keys = block.rows, block.keys
        return self.heads, range(rows.start, rows.stop), range(keys.start, keys.stop)

    def wanted(self, block: Block) -> Sequence[int]:
        """Return those rows of a block that are wanted."""
        return compact([row for row in self.rows if block.rows.start <= row < block.rows.stop])


def attend_by_parts(
    z: Tensor, q: Tensor, k: Tensor, v: Tensor, seen: Visibility, layer: AttentionBridge
) -> Tensor:
    """Return z (batch, query, head, width) as the hooks of parts leave it.

    Args:
        z: as it is without them; written to.
        q: (batch, head, query, d_head). k, v: (batch, kv_head, key, width).
    """
    making = Making(q, k, seen, layer)
    making.edited_scores = making.show(layer.hook("hook_attn_scores"), making.score)
    making.edited_pattern = making.show(layer.hook("hook_pattern"), making.weigh)
    making.mix_again(z, v)
    return z


class Making:
    """Make scores and pattern of the rows and heads that parts need.

    Args:
        q: (batch, head, query, d_head). k: (batch, kv_head, key, d_head).

    Attributes:
        edited_scores, edited_pattern: the parts that hooks edited, in the order of the hooks.
    """

    def __init__(self, q: Tensor, k: Tensor, seen: Visibility, layer: AttentionBridge) -> None:
        self.q, self.k, self.seen, self.layer = q, k, seen, layer
        self.variant, self.sinks = layer.effective, layer.sinks
        self.edited_scores: list[Part] = []
        self.edited_pattern: list[Part] = []

    def show(self, point: HookPoint, make: Callable[[Piece, Block], Tensor]) -> list[Part]:
        """Show each hook of a part its own, made block by block, and return those that were edited.
        A hook sees what those before it left (PART-2).

        Raises:
            ContractError: an edit breaks SCORE-3 or SCORE-6, or leaves NaN in the pattern.
        """
        scores = point.spec.name == "hook_attn_scores"
        shape = (*self.q.shape[:3], self.k.shape[2])
        parts = [
            self._empty(hook, point, shape, -torch.inf if scores else 0.0) for hook in point.parts
        ]
        for piece in self.pieces(parts):
            for block in piece.blocks.blocks:
                made = make(piece, block)
                for part in parts:
                    copy_common(made, piece.place(block), part.tensor, part.numbers)
        forbidden = [part.tensor == -torch.inf if scores else None for part in parts]
        edited: list[Part] = []
        for part, hidden in zip(parts, forbidden, strict=True):
            for earlier in edited:
                copy_common(earlier.tensor, earlier.numbers, part.tensor, part.numbers)
            part.tensor, changed = point.show_part(part.hook, part.selection, part.tensor)
            if changed:
                refuse_unfit(part.tensor, hidden, point.name)
                edited.append(part)
        if edited:
            point.note_edit()
        return edited

    def _empty(self, hook: Hook, point: HookPoint, shape: Sequence[int], number: float) -> Part:
        """Return a part that holds one number, which stands where no block has keys."""
        selection = point.selection_of(hook, shape)
        chosen = selection.along(point.spec.axes)
        lengths = [n if of is None else len(of) for n, of in zip(shape, chosen, strict=True)]
        with torch.inference_mode(False):  # what hooks write into it is counted
            return Part(hook, selection, self.q.new_full(lengths, number))

    def pieces(self, parts: Sequence[Part], *, all_keys: bool = False) -> Iterator[Piece]:
        """Yield the rows and heads that parts need, those of several kv heads together where all
        their heads need the same rows.

        Args:
            parts: what needs them.
            all_keys: whether blocks hold all keys, and not only those that a row of them may see.
        """
        kv_heads = self.k.shape[1]
        group = self.q.shape[1] // kv_heads
        first = 0
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
                yield self._piece(compact(heads), slice(first, stop), compact(rows), all_keys)
            first = stop

    def _needing(self, parts: Sequence[Part], kv_head: int, group: int) -> list[Part]:
        """Return the parts that hold a head of this kv head."""
        own = range(kv_head * group, (kv_head + 1) * group)
        return [part for part in parts if any(holds(part.selection.heads, head) for head in own)]

    def _piece(
        self, heads: Sequence[int], kv_heads: slice, rows: Sequence[int], all_keys: bool
    ) -> Piece:
        """Return what makes some rows of some heads."""
        many, seen, index = self.layer.kernels.rows, self.seen, index_of(heads)
        around = (within(rows, start, start + many) for start in range(0, seen.query, many))
        blocks = [
            Block(run, slice(0, seen.key) if all_keys else seen.keys_of(run))
            for run in around
            if run is not None
        ]
        sinks = None if self.sinks is None else self.sinks[index]
        q, k = self.q[:, index], self.k[:, kv_heads]
        made = RowBlocks(q, k, seen, self.variant, sinks, blocks, index)
        return Piece(heads, kv_heads, rows, made)

    def score(self, piece: Piece, block: Block) -> Tensor:
        """Return the scores (batch, heads, rows, keys) of a block as hooks left them: where what
        they left is what rounding had made of a score, the score as it was before (PAT-1)."""
        scores = piece.blocks.score(block)
        for part in self.edited_scores:
            here, there = places(piece.place(block), part.numbers)
            if is_nothing(here):
                continue
            own, left = read_part(scores, here), read_part(part.tensor, there)
            kept = left == own.to(left.dtype)
            write_part(scores, here, torch.where(kept, own, left.to(own.dtype)))
        return scores

    def weigh(self, piece: Piece, block: Block) -> Tensor:
        """Return the pattern (batch, heads, rows, keys) of a block as hooks left it."""
        weights = piece.blocks.weigh(self.score(piece, block), edited=bool(self.edited_scores))
        for part in self.edited_pattern:
            copy_common(part.tensor, part.numbers, weights, piece.place(block))
        return weights

    def mix_again(self, z: Tensor, v: Tensor) -> None:
        """Write those rows of z (batch, query, head, width) that depend on what was edited."""
        edited = [*self.edited_scores, *self.edited_pattern]
        # an edited pattern may have a weight at any key
        for piece in self.pieces(edited, all_keys=bool(self.edited_pattern)):
            values = piece.blocks.joined(v[:, piece.kv_heads])
            for block in piece.blocks.blocks:
                weights = piece.blocks.grouped(self.weigh(piece, block))
                mixed = torch.bmm(weights, values[:, block.keys])
                mixed = mixed.view(z.shape[0], len(piece.heads), -1, z.shape[-1]).transpose(1, 2)
                wanted = piece.wanted(block)
                _, there = common(wanted, range(block.rows.start, block.rows.stop))
                rows = read_part(mixed, [ALL, there, ALL, ALL]).to(z.dtype)
                write_part(z, [ALL, index_of(wanted), index_of(piece.heads), ALL], rows)


def holds(numbers: Sequence[int] | None, number: int) -> bool:
    """Return whether a number is one of several; None holds all."""
    return numbers is None or number in numbers


def places(
    here: Sequence[Sequence[int] | None], there: Sequence[Sequence[int] | None]
) -> tuple[list[Index], list[Index]]:
    """Return where what two tensors (batch, heads, rows, keys) both hold lies in the one, and in
    the other."""
    pairs = [common(one, other) for one, other in zip(here, there, strict=True)]
    return [ALL, *(one for one, _ in pairs)], [ALL, *(other for _, other in pairs)]


def copy_common(
    source: Tensor,
    source_numbers: Sequence[Sequence[int] | None],
    target: Tensor,
    target_numbers: Sequence[Sequence[int] | None],
) -> None:
    """Copy what two tensors (batch, heads, rows, keys) both hold from the one to the other."""
    here, there = places(source_numbers, target_numbers)
    if not is_nothing(here):
        write_part(target, there, read_part(source, here).to(target.dtype))


def refuse_unfit(left: Tensor, forbidden: Tensor | None, name: str) -> None:
    """Refuse what an edit may not leave in a part of the scores (SCORE-3, SCORE-6), or of the
    pattern.

    Args:
        left: (batch, heads, rows, keys).
        forbidden: where a query may not see a key, of scores; None of a pattern.
    """
    if not left.numel() or left.is_meta:
        return
    if forbidden is None:
        refuse_nan(left, name)
    else:
        refuse_no_numbers(left, name)
        refuse_numbers_at(forbidden, left, name)
