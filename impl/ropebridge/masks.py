"""What each query may see (clauses MASK-1 to MASK-5), for any block of query rows, without making the whole of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ropebridge_spec import MaskError


@dataclass(frozen=True)
class Visibility:
    """The keys that each query of one call may see.

    mask: (batch or 1, head or 1, query or 1, key), boolean or additive: the whole truth (MASK-1); or None.
    padding: (batch or 1, key) booleans, True for a real key (MASK-3); or None.
    query, key: how many; first_query, first_key: the positions of the first of them, which differ when a cache is read.
    window: how far back a query sees, itself included; or None (MASK-2).
    """

    query: int
    key: int
    device: torch.device
    first_query: int = 0
    first_key: int = 0
    window: int | None = None
    mask: Tensor | None = None
    padding: Tensor | None = None

    @property
    def plain_causal(self) -> bool:
        """Whether the lower triangle says it all: what a fused kernel's own causal flag means."""
        short = self.window is None or self.window >= self.key
        aligned = self.query == self.key and self.first_query == self.first_key
        return self.mask is None and self.padding is None and short and aligned

    @property
    def whole(self) -> Tensor | None:
        """The mask, where it already lies in memory as a fused kernel takes it."""
        return self.mask if self.mask is not None and self.mask.dtype == torch.bool else None

    def keys_of(self, rows: slice) -> slice:
        """The keys that any of these rows may see; never none, so that every block has a shape."""
        if self.mask is not None:
            return slice(0, self.key)
        offset = self.first_query - self.first_key
        first = 0 if self.window is None else offset + rows.start - self.window + 1
        first = min(max(first, 0), self.key - 1)
        return slice(first, max(min(offset + rows.stop, self.key), first + 1))

    def block(self, rows: slice, keys: slice) -> Tensor | None:
        """The mask of some rows and keys: booleans, or a bias with -inf; None where all of them see all."""
        if self.mask is not None:
            block = self.mask[..., rows if self.mask.shape[2] > 1 else slice(None), keys]
            return block if block.dtype == torch.bool else forbid_lowest(block)
        return both(self._causal_block(rows, keys), self._padding_block(keys))

    def _causal_block(self, rows: slice, keys: slice) -> Tensor | None:
        if self._sees_all(rows, keys):
            return None
        query = torch.arange(rows.start, rows.stop, device=self.device) + self.first_query
        key = torch.arange(keys.start, keys.stop, device=self.device) + self.first_key
        distance = query[:, None] - key[None, :]
        visible = distance >= 0 if self.window is None else (distance >= 0) & (distance < self.window)
        return visible[None, None]

    def _sees_all(self, rows: slice, keys: slice) -> bool:
        """Whether the first row sees the last key and the last row the first."""
        latest = self.first_query + rows.start >= self.first_key + keys.stop - 1
        reach = self.first_query + rows.stop - 1 - (self.first_key + keys.start)
        return latest and (self.window is None or reach < self.window)

    def _padding_block(self, keys: slice) -> Tensor | None:
        return None if self.padding is None else self.padding[:, None, None, keys]


def both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """What two boolean masks both allow."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


def forbid_lowest(bias: Tensor) -> Tensor:
    """-inf for every entry at most half the lowest number of the bias's own dtype (MASK-5), in at least float32."""
    lowest = torch.finfo(bias.dtype).min / 2
    return bias.to(torch.promote_types(bias.dtype, torch.float32)).masked_fill(bias <= lowest, -torch.inf)


def read_mask(mask: object, *, batch: int, heads: int, query: int, key: int) -> tuple[Tensor | None, Tensor | None]:
    """Sort a mask into (four-axis mask, padding), one of them or both None.

    Raises:
        MaskError: a form or a shape that does not fit (MASK-4).
    """
    if mask is None:
        return None, None
    wanted = f"clause MASK-4 requires None, (batch, key) or (batch, head or 1, query, key)\n  with: {batch=}, {heads=}, {query=}, {key=}"
    if not isinstance(mask, Tensor):
        raise MaskError(f"attention_mask is a {type(mask).__name__}; {wanted}\n  for a flex BlockMask: load the model with attn_implementation='sdpa'")
    whole = ((batch, 1), (heads, 1), (query, 1), (key,))
    fits = {4: whole, 2: ((batch, 1), (key,))}.get(mask.ndim, ())
    if len(fits) != mask.ndim or any(size not in sizes for size, sizes in zip(mask.shape, fits, strict=True)):
        raise MaskError(f"attention_mask has shape {tuple(mask.shape)}; {wanted}")
    return (None, read_padding(mask)) if mask.ndim == 2 else (read_whole(mask), None)


def read_whole(mask: Tensor) -> Tensor:
    """A four-axis mask: booleans or floating-point biases."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise MaskError(f"attention_mask has four axes and dtype {mask.dtype}; clause MASK-1 requires torch.bool (True sees) or a floating-point bias")
    return mask


def read_padding(mask: Tensor) -> Tensor:
    """A two-axis mask as booleans; numbers other than 0 and 1 would be ambiguous and are refused."""
    if mask.dtype == torch.bool:
        return mask
    if not torch.compiler.is_compiling() and not mask.is_meta and not bool(((mask == 0) | (mask == 1)).all()):
        raise MaskError("attention_mask has two axes and entries other than 0 and 1; clause MASK-3 requires booleans, or zeros and ones")
    return mask != 0
