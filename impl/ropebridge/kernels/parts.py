"""Parts of scores and pattern (clauses PART-1, PART-2), and reductions of the pattern: made for
hooks that watch nothing else; no autograd.

Only rows and heads that somebody needs are made, by blocks of rows, and only what was asked for is
kept. z comes from a kernel that makes no pattern, or where all rows of all heads are made anyway
from those. Where a hook edits its part, the rows of z that depend on it are made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ropebridge.base import AttentionBridge
from ropebridge.hooks import Hook, HookPoint
from ropebridge.kernels.pieces import Needing, Piece, Pieces
from ropebridge.kernels.reducing import Reducing
from ropebridge.kernels.row_blocks import Block
from ropebridge.masks import Visibility
from ropebridge.parts import Index, common, index_of, is_nothing, read_part, write_part
from ropebridge.stages.pattern import refuse_nan
from ropebridge.stages.scores import refuse_no_numbers, refuse_numbers_at
from ropebridge_spec import Selection

ALL = slice(None)


@dataclass(eq=False)
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


def attend_by_parts(
    beside: Callable[[], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Visibility,
    layer: AttentionBridge,
) -> Tensor:
    """Return z (batch, query, head, width) as the hooks of parts leave it.

    Args:
        beside: makes z by a kernel that makes no pattern.
        q: (batch, head, query, d_head). k, v: (batch, kv_head, key, width).
    """
    making = Making(Pieces(q, k, seen, layer), v)
    making.show_scores(layer.hook("hook_attn_scores"))
    making.show_pattern(layer.hook("hook_pattern"))
    making.show_reductions(layer.hook("hook_pattern"))
    return making.finish(beside)


class Making:
    """Make scores and pattern of the rows and heads that parts need, show them, and go on with what
    hooks left.

    Args:
        pieces: gathers what is needed. v: (batch, kv_head, key, width).

    Attributes:
        edited_scores, edited_pattern: the parts that hooks edited, in the order of the hooks.
        z: (batch, query, head, width), once it was made of all rows of all heads.
    """

    def __init__(self, pieces: Pieces, v: Tensor) -> None:
        self.pieces, self.v = pieces, v
        self.shape = (*pieces.q.shape[:3], pieces.k.shape[2])
        self.edited_scores: list[Part] = []
        self.edited_pattern: list[Part] = []
        self.z: Tensor | None = None

    @property
    def edited(self) -> list[Part]:
        """Return all parts that hooks edited."""
        return [*self.edited_scores, *self.edited_pattern]

    def show_scores(self, point: HookPoint) -> None:
        """Show each hook of a part of the scores its own.

        Raises:
            ContractError: an edit breaks SCORE-3 or SCORE-6.
        """
        parts = [self._empty(hook, point, -torch.inf) for hook in point.parts]
        for piece in self.pieces.of(parts):
            for block in piece.blocks.blocks:
                fill(parts, self.score(piece, block), piece.place(block))
        forbidden = [part.tensor == -torch.inf for part in parts]
        self.edited_scores = show(point, parts)
        for part, hidden in zip(parts, forbidden, strict=True):
            if part in self.edited_scores:
                refuse_no_numbers(part.tensor, point.name)
                refuse_numbers_at(hidden, part.tensor, point.name)

    def show_pattern(self, point: HookPoint) -> None:
        """Show each hook of a part of the pattern its own.

        Raises:
            ContractError: an edit left NaN in it.
        """
        parts = [self._empty(hook, point, 0.0) for hook in point.parts]
        self._make(parts, lambda weights, place: fill(parts, weights, place))
        self.edited_pattern = show(point, parts)
        for part in self.edited_pattern:
            if part.tensor.numel():
                refuse_nan(part.tensor, point.name)

    def show_reductions(self, point: HookPoint) -> None:
        """Show each hook of a reduction what is made of its rows of the pattern, as hooks left
        it."""
        hooks = point.reductions
        asked = [Reducing(hook, point.selection_of(hook, self.shape), self.shape) for hook in hooks]

        def reduce(weights: Tensor, place: tuple[Sequence[int], ...]) -> None:
            for one in asked:
                one.add(weights, place)

        self._make(asked, reduce)
        for one in asked:
            point.show_reduced(one.hook, one.selection, one.result(self.pieces.q))

    def _make(
        self,
        parts: Sequence[Needing],
        take: Callable[[Tensor, tuple[Sequence[int], ...]], None],
    ) -> None:
        """Make the blocks of the pattern that parts need, and hand each to a function, with its
        place. Where they are all there is, z is made of them on the way."""
        # an edited pattern may have a weight at any key
        pieces = self.pieces.of(parts, all_keys=bool(self.edited_pattern))
        whole = any(piece.whole for piece in pieces) and self._mixes_on_the_way()
        if whole:
            self.z = pieces[0].blocks.new_z(self.v)

        for piece in pieces:
            values = piece.blocks.joined(self.v) if whole else None
            for block in piece.blocks.blocks:
                weights = self.weigh(piece, block)
                if self.z is not None and values is not None:
                    piece.blocks.mix_into(self.z, weights, values[:, block.keys], block.rows)
                take(weights, piece.place(block))

    def _mixes_on_the_way(self) -> bool:
        """Return whether z comes from these blocks: not where it is there already, nor where
        another kernel is preferred, or few large operations are faster."""
        layer = self.pieces.layer
        return self.z is None and layer.kernels.prefer != "fused" and self.v.device.type == "cpu"

    def _empty(self, hook: Hook, point: HookPoint, number: float) -> Part:
        """Return a part that holds one number, which stands where no block has keys."""
        selection = point.selection_of(hook, self.shape)
        chosen = selection.along(point.spec.axes)
        lengths = [n if of is None else len(of) for n, of in zip(self.shape, chosen, strict=True)]
        q = self.pieces.q
        tensor, clean = self.pieces.layer.memory.lend(tuple(lengths), q, q.dtype)
        if number != 0 or not clean:
            tensor.fill_(number)
        return Part(hook, selection, tensor)

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

    def finish(self, beside: Callable[[], Tensor]) -> Tensor:
        """Return z (batch, query, head, width), made beside where it was not on the way; the rows
        that depend on what was edited since are made again."""
        z = beside() if self.z is None else self.z
        for piece in self.pieces.of(self.edited, all_keys=bool(self.edited_pattern)):
            values = piece.blocks.joined(self.v[:, piece.kv_heads])
            for block in piece.blocks.blocks:
                weights = piece.blocks.grouped(self.weigh(piece, block))
                mixed = torch.bmm(weights, values[:, block.keys])
                mixed = mixed.view(z.shape[0], len(piece.heads), -1, z.shape[-1]).transpose(1, 2)
                rows, there = piece.wanted(block)
                again = read_part(mixed, [ALL, there, ALL, ALL]).to(z.dtype)
                write_part(z, [ALL, rows, index_of(piece.heads), ALL], again)
        return z


def show(point: HookPoint, parts: Sequence[Part]) -> list[Part]:
    """Show each part to its hook, which sees what those before it left (PART-2), and return those
    that were edited."""
    edited: list[Part] = []
    for part in parts:
        for earlier in edited:
            copy_common(earlier.tensor, earlier.numbers, part.tensor, part.numbers)
        part.tensor, changed = point.show_part(part.hook, part.selection, part.tensor)
        if changed:
            edited.append(part)
    if edited:
        point.note_edit()
    return edited


def fill(parts: Sequence[Part], made: Tensor, place: tuple[Sequence[int], ...]) -> None:
    """Copy to each part what it holds of a block (batch, heads, rows, keys)."""
    for part in parts:
        copy_common(made, place, part.tensor, part.numbers)


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
