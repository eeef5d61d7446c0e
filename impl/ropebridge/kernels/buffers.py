"""Memory for patterns and scores, which costs more to get than to fill: it is lent again as soon as
nobody holds it."""

from __future__ import annotations

import math
import mmap
import os
import sys
import threading

import torch
from torch import Tensor

FROM = 2**20
"""Bytes from which memory is lent here; what is smaller torch's own allocator keeps."""

MOST = 2
"""Tensors whose memory is kept for the next: scores and pattern of one layer."""

UNSHARED = 3
"""References to pages that no tensor holds: the one kept, the one that asks, and its argument."""


class Buffers(threading.local):
    """Lend memory to one thread: that of the last tensors again, once nobody holds it.

    Fresh memory is slow: each page of 4 kB is a fault of the processor. A model whose hooks look at
    a pattern and let it go takes the pages of one layer for the next. A tensor that somebody keeps
    is never written to again.
    """

    def __init__(self) -> None:
        self._pages: list[mmap.mmap] = []

    def __reduce__(self) -> tuple[type[Buffers], tuple[()]]:
        return Buffers, ()

    def lend(self, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> tuple[Tensor, bool]:
        """Return a contiguous tensor that nobody else holds, on the device of another, and whether
        it holds 0 everywhere; else it holds anything."""
        size = math.prod(shape) * dtype.itemsize
        # no inference tensor: what hooks write into it is counted
        with torch.inference_mode(False):
            if like.device.type != "cpu" or size < FROM or os.name != "posix":
                return torch.zeros(shape, dtype=dtype, device=like.device), True
            pages, used = self._take(size)
            memory = torch.frombuffer(pages, dtype=dtype, count=math.prod(shape))
            strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
            # no view of another tensor either: autograd lets hooks write into it
            tensor = torch.empty(0, dtype=dtype).set_(memory.untyped_storage(), 0, shape, strides)
            return tensor, not used

    def release(self) -> None:
        """Keep no memory for a next tensor."""
        self._pages = []

    def _take(self, size: int) -> tuple[mmap.mmap, bool]:
        """Return pages that hold so many bytes, and whether they were used before."""
        for pages in self._pages:
            if size <= len(pages) <= 2 * size and sys.getrefcount(pages) <= UNSHARED:
                return pages, True
        fresh = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._pages = [*self._pages[1 - MOST :], fresh]
        return fresh, False
