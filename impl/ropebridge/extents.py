"""Extents of a mask: which keys the queries of a block of rows see, read off its numbers on a CPU
(TYPE-2), so that kernels leave out what nobody sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ropebridge.readable import under_transform, unreadable

ROWS = 64
"""Query rows per block."""


@dataclass(frozen=True)
class Extents:
    """Hold for each block of query rows, over batch and heads together, two runs of keys.

    seen: outside of which no row sees a key; empty where none sees any.
    free: in which every row sees every key, with no bias; perhaps empty.
    """

    seen: tuple[slice, ...]
    free: tuple[slice, ...]

    def keys(self, rows: slice) -> slice:
        """Return a run of keys that holds all that any of these rows may see."""
        runs = [run for run in self.seen[blocks_around(rows)] if run.start < run.stop]
        if not runs:
            return slice(0, 0)
        return slice(min(run.start for run in runs), max(run.stop for run in runs))

    def everywhere(self, rows: slice) -> slice:
        """Return a run of keys that all of these rows see as they are; perhaps an empty one."""
        runs = self.free[blocks_around(rows)]
        start = max((run.start for run in runs), default=0)
        return slice(start, max(start, min((run.stop for run in runs), default=0)))


def blocks_around(rows: slice) -> slice:
    """Return the blocks that hold some rows."""
    return slice(rows.start // ROWS, -(-rows.stop // ROWS))


def read_extents(mask: object, query: int) -> Extents | None:
    """Return the extents of a mask (batch or 1, head or 1, query or 1, key), boolean or additive;
    None where its numbers cannot be read without making a device wait, it has a derivative, or
    there is one query alone, for which little is to be left out."""
    if type(mask) is not Tensor or mask.device.type != "cpu" or not mask.numel() or query == 1:
        return None
    if unreadable(mask) or under_transform() or mask.requires_grad:
        return None
    # bytes are compared many at a time, and booleans one by one
    numbers = mask.view(torch.uint8) if mask.dtype == torch.bool else mask
    blocks = [numbers[:, :, start : start + ROWS] for start in range(0, mask.shape[2], ROWS)]
    # over rows first: one axis at a time is several times as fast
    most = torch.stack([block.amax(2).amax((0, 1)) for block in blocks])  # (block, key)
    least = torch.stack([block.amin(2).amin((0, 1)) for block in blocks])
    if mask.dtype == torch.bool:
        seen, free = most != 0, least != 0
    else:
        # not `most > lowest`: NaN is seen
        seen = ~(most <= torch.finfo(mask.dtype).min / 2)
        free = (most == 0) & (least == 0)
    repeats = -(-query // ROWS) if mask.shape[2] < query else 1  # one row may speak for all
    return Extents(
        tuple(map(span, seen.numpy())) * repeats,
        tuple(map(first_run, free.numpy())) * repeats,
    )


def span(flags: Any) -> slice:
    """Return the places of (key,) booleans from the first True to the last; an empty slice where
    there is none."""
    if not flags.any():
        return slice(0, 0)
    return slice(int(flags.argmax()), len(flags) - int(flags[::-1].argmax()))


def first_run(flags: Any) -> slice:
    """Return the places of the first True of (key,) booleans, and of those that follow it without a
    gap; an empty slice where there is none."""
    start = int(flags.argmax())
    rest = flags[start:]
    return slice(start, start + (len(rest) if rest.all() else int(rest.argmin())))
