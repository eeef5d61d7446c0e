"""Define what each query may see (clauses MASK-1 to MASK-5), for any block of query rows, without
making the whole of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask

from ropebridge.extents import ROWS, Extents
from ropebridge.readable import unreadable
from ropebridge_spec import MaskError


class Visibility(NamedTuple):
    """Hold the keys that each query of one call may see.

    mask: (batch or 1, head or 1, query or 1, key), boolean, additive or a flex mask: the whole
        truth (MASK-1); or None. extents: what its numbers say of blocks of rows; None where there
        is no mask, or they cannot be read.
    padding: (batch or 1, key) booleans, True for a real key (MASK-3); or None.
    query, key: how many; first_query, first_key: the positions of the first of them, which differ
        when a cache is read.
    picked: (batch, head or 1, query, key) booleans, the keys that a selector picked (SEL-1); or
        None.
    key_bias: (batch, head, 1, key) numbers that are added for all queries, and keep, how many keys
        of the largest a query sees (SCORE-5); or None.
    beyond: how many of the last keys are another sequence's, which every query sees (KV-2).
    causal, window, chunk: how far a query sees by itself (MASK-2), as in `Variant`.
    """

    query: int
    key: int
    device: torch.device
    first_query: int = 0
    first_key: int = 0
    causal: bool = True
    window: int | None = None
    chunk: int | None = None
    mask: Tensor | BlockMask | None = None
    extents: Extents | None = None
    padding: Tensor | None = None
    picked: Tensor | None = None
    key_bias: Tensor | None = None
    keep: int | None = None
    beyond: int = 0

    def without_idle_mask(self) -> Visibility:
        """Return the same without its mask, where that says no more than positions do: kernels know
        what those mean without reading it."""
        if self.extents is None or not self.alone or self.beyond:
            return self
        by_position = self._replace(mask=None, extents=None)
        for start in range(0, self.query, ROWS):
            rows = slice(start, min(start + ROWS, self.query))
            if not self._says_positions(rows, by_position):
                return self
        return by_position

    def _says_positions(self, rows: slice, other: Visibility) -> bool:
        """Return whether the mask of some rows allows what positions do, and adds nothing."""
        keys, mine, theirs = other.keys_of(rows), self._middle(rows), other._middle(rows)
        free = theirs.start >= theirs.stop or (
            mine.start <= theirs.start and theirs.stop <= mine.stop
        )
        return (
            self.keys_of(rows) == keys
            and free
            and all(self._says(other, rows, border) for border in other.borders(rows, keys))
        )

    def _says(self, other: Visibility, rows: slice, keys: slice) -> bool:
        """Return whether two show some rows the same of some keys, as they are."""
        mask, wanted = self._mask_block(rows, keys), other._mask_block(rows, keys)
        assert mask is not None
        seen = mask if mask.dtype == torch.bool else mask == 0
        hidden = ~mask if mask.dtype == torch.bool else mask == -torch.inf
        if wanted is None:
            return bool(seen.all())
        return torch.equal(*torch.broadcast_tensors(seen, wanted)) and bool((seen | hidden).all())

    @property
    def plain_causal(self) -> bool:
        """Return whether the lower triangle says it all: what a fused kernel's own causal flag
        means."""
        short = self.window is None or self.window >= self.key
        one_chunk = (
            self.chunk is None
            or self.first_query // self.chunk == (self.first_query + self.query - 1) // self.chunk
        )
        aligned = self.query == self.key and self.first_query == self.first_key
        return bool(self.causal and self.by_position and short and one_chunk and aligned)

    @property
    def whole(self) -> Tensor | None:
        """Return the mask (batch or 1, head or 1, query, key), where it already lies in memory as a
        fused kernel takes it; else None."""
        return (
            self.mask
            if isinstance(self.mask, Tensor)
            and self.mask.dtype == torch.bool
            and self.picked is None
            and self.key_bias is None
            else None
        )

    @property
    def by_position(self) -> bool:
        """Return whether the positions of query and key alone say what is visible."""
        return self.mask is None and self.alone and self.padding is None

    @property
    def sees_all(self) -> bool:
        """Return whether every query sees every key, as the one query of a decode step does."""
        return self.by_position and self._sees_all(slice(0, self.query), slice(0, self.key))

    @property
    def by_distance(self) -> bool:
        """Return whether the distance from key to query alone says what is visible."""
        return self.by_position and self.chunk is None and not self.beyond

    @property
    def alone(self) -> bool:
        """Return whether a selector picks no keys, and keys have no bias of their own."""
        return self.picked is None and self.key_bias is None

    @property
    def may_hide_all(self) -> bool:
        """Return whether a query may see no key at all: by its position it sees at least
        itself, where its key is there."""
        has_own_key = (
            self.first_key <= self.first_query
            and self.first_query + self.query <= self.first_key + self.key
        )
        return not (self.by_position and has_own_key)

    def keys_of(self, rows: slice) -> slice:
        """Return the keys that any of these rows may see; never none, so that every block has a
        shape."""
        if self.key_bias is not None or self.beyond:
            return slice(0, self.key)
        if self.mask is not None:
            run = slice(0, self.key) if self.extents is None else self.extents.keys(rows)
            return run if run.start < run.stop else slice(0, 1)
        first, _ = self._span(self.first_query + rows.start)
        _, stop = self._span(self.first_query + rows.stop - 1)
        start = min(max(first - self.first_key, 0), self.key - 1)
        return slice(start, max(min(stop - self.first_key, self.key), start + 1))

    def borders(self, rows: slice, keys: slice) -> tuple[slice, ...]:
        """Return those of some keys that not all of these rows may see, or not as they are: before
        and after the ones that all of them see. Of keys between those no row needs a mask."""
        middle = self._middle(rows)
        start = min(max(middle.start, keys.start), keys.stop)
        stop = min(max(middle.stop, start), keys.stop)
        around = (slice(keys.start, start), slice(stop, keys.stop))
        return tuple(part for part in around if part.start < part.stop)

    def _middle(self, rows: slice) -> slice:
        """Return a run of keys that all of these rows see as they are; perhaps an empty one."""
        if self.by_position and not self.beyond:
            first, _ = self._span(self.first_query + rows.stop - 1)
            _, after = self._span(self.first_query + rows.start)
            start = max(first - self.first_key, 0)
            return slice(start, max(start, min(after - self.first_key, self.key)))
        if self.mask is not None and self.alone and self.extents is not None:
            return self.extents.everywhere(rows)
        return slice(0, 0)

    def _span(self, position: int) -> tuple[int, int]:
        """Return the first key position that a query sees, and the one after the last."""
        first, stop = 0, position + 1 if self.causal else self.first_key + self.key
        if self.window is not None:
            first, stop = position - self.window + 1, min(stop, position + self.window)
        if self.chunk is not None:
            start = position // self.chunk * self.chunk
            first, stop = max(first, start), min(stop, start + self.chunk)
        return first, stop

    def block(self, rows: slice, keys: slice) -> Tensor | None:
        """Return what is added to the scores of some rows and keys, (batch or 1, head or 1, rows,
        keys): booleans, or a bias with -inf; None where all of them see all."""
        visible = self._visible(rows, keys)
        return (
            visible if self.key_bias is None else with_key_bias(visible, self.key_bias, self.keep)
        )

    def _visible(self, rows: slice, keys: slice) -> Tensor | None:
        """Return the mask of some rows and keys, of those picked."""
        mask, picked = self._mask_block(rows, keys), self.picked
        if mask is None or picked is None or mask.dtype == torch.bool:
            return both(mask, None if picked is None else picked[:, :, rows, keys])
        return mask.masked_fill(~picked[:, :, rows, keys], -torch.inf)

    def _mask_block(self, rows: slice, keys: slice) -> Tensor | None:
        if isinstance(self.mask, BlockMask):
            return block_of(self.mask, rows, keys)
        if self.mask is not None:
            block = self.mask[..., rows if self.mask.shape[2] > 1 else slice(None), keys]
            return block if block.dtype == torch.bool else forbid_lowest(block)
        return both(self._reach_block(rows, keys), self._padding_block(keys))

    def _reach_block(self, rows: slice, keys: slice) -> Tensor | None:
        if self._sees_all(rows, keys):
            return None
        query = torch.arange(rows.start, rows.stop, device=self.device)[:, None] + self.first_query
        key = torch.arange(keys.start, keys.stop, device=self.device)[None] + self.first_key
        visible = query >= key if self.causal else torch.ones_like(query == key)
        if self.window is not None:
            visible &= (query - key).abs() < self.window
        if self.chunk is not None:
            visible &= query // self.chunk == key // self.chunk
        if self.beyond:
            visible |= key >= self.first_key + self.key - self.beyond
        return visible[None, None]

    def _sees_all(self, rows: slice, keys: slice) -> bool:
        """Return whether the last row sees the first key, and the first row the last key."""
        first, _ = self._span(self.first_query + max(rows.stop - 1, rows.start))
        _, stop = self._span(self.first_query + rows.start)
        return bool(first <= self.first_key + keys.start and self.first_key + keys.stop <= stop)

    def _padding_block(self, keys: slice) -> Tensor | None:
        return None if self.padding is None else self.padding[:, None, None, keys]


def with_key_bias(visible: Tensor | None, key_bias: Tensor, keep: int | None) -> Tensor:
    """Return the bias of keys (batch, head, query or 1, key), and what the mask adds to it; -inf
    where they may not be seen, nor belong to so many of the largest bias of those that may
    (SCORE-5)."""
    own = key_bias
    if visible is not None:
        own = key_bias.masked_fill(
            ~visible if visible.dtype == torch.bool else visible == -torch.inf, -torch.inf
        )
    biased = own if visible is None or visible.dtype == torch.bool else own + visible
    if keep is None or keep >= own.shape[-1]:
        return biased
    nowhere = torch.zeros_like(own, dtype=torch.bool)
    largest = nowhere.scatter(-1, own.topk(keep, dim=-1).indices, True)
    return biased.masked_fill(~largest, -torch.inf)


def both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return what two boolean masks both allow, in their common shape; None where neither is
    there."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


def forbid_lowest(bias: Tensor) -> Tensor:
    """Return a bias of the same shape, in at least float32, with -inf for every entry at most half
    the lowest number of its own dtype (MASK-5)."""
    lowest = torch.finfo(bias.dtype).min / 2
    return bias.to(torch.promote_types(bias.dtype, torch.float32)).masked_fill(
        bias <= lowest, -torch.inf
    )


def read_mask(
    mask: object, *, batch: int, heads: int, query: int, key: int
) -> tuple[Tensor | BlockMask | None, Tensor | None]:
    """Sort a mask into (the whole truth, padding), one of them or both None.

    Raises:
        MaskError: a form or a shape that does not fit (MASK-4).
    """
    if mask is None:
        return None, None
    wanted = (
        "clause MASK-4 requires None, (batch, key), (batch, query, key), (batch, head or 1, query,"
        f" key) or a BlockMask of that shape\n  with: {batch=}, {heads=}, {query=}, {key=}"
    )
    if not isinstance(mask, (Tensor, BlockMask)):
        raise MaskError(f"attention_mask is a {type(mask).__name__}; {wanted}")
    shape = shape_of(mask)
    whole = ((batch, 1), (heads, 1), (query, 1), (key,))
    fits = {4: whole, 3: (whole[0], *whole[2:]), 2: ((batch, 1), (key,))}.get(len(shape), ())
    if len(fits) != len(shape) or any(
        size not in sizes for size, sizes in zip(shape, fits, strict=True)
    ):
        raise MaskError(f"attention_mask has shape {shape}; {wanted}")
    if isinstance(mask, BlockMask):
        return mask, None
    if mask.ndim == 2:
        return None, read_padding(mask)
    if mask.ndim == 3:
        mask = mask.unsqueeze(1)  # (batch, 1, query, key)
    return read_whole(mask), None


def shape_of(mask: Tensor | BlockMask) -> tuple[int, ...]:
    """Return the lengths of a mask: batch, head, query and key, as far as it has them."""
    if isinstance(mask, Tensor):
        return tuple(mask.shape)
    batch, heads = mask.shape[:2]
    return (batch, heads, *mask.seq_lengths)


def block_of(mask: BlockMask, rows: slice, keys: slice) -> Tensor:
    """Return booleans (batch or 1, head or 1, rows, keys) of a flex mask, made for these rows and
    keys alone."""

    def shifted(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask.mask_mod(batch, head, query + rows.start, key + keys.start)

    batch, heads = mask.shape[:2]
    made: Tensor = create_mask(
        shifted,
        batch,
        heads,
        rows.stop - rows.start,
        keys.stop - keys.start,
        device=mask.kv_num_blocks.device,
    )
    return made


def read_whole(mask: Tensor) -> Tensor:
    """Return a four-axis mask (batch or 1, head or 1, query or 1, key): booleans or floating-point
    biases."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise MaskError(
            f"attention_mask has four axes and dtype {mask.dtype}; clause MASK-1 requires"
            " torch.bool (True sees) or a floating-point bias"
        )
    return mask


def read_padding(mask: Tensor) -> Tensor:
    """Return a two-axis mask (batch, key) as booleans; numbers other than 0 and 1 would be
    ambiguous and are refused."""
    if mask.dtype == torch.bool:
        return mask
    if not unreadable(mask) and not bool(((mask == 0) | (mask == 1)).all()):
        raise MaskError(
            "attention_mask has two axes and entries other than 0 and 1; clause MASK-3 requires"
            " booleans, or zeros and ones"
        )
    return mask != 0
