"""Exact count of the memory that tensors take while something runs: the largest of them, and the
most that lived at one time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Memory:
    """Hold what a call took, in bytes: its largest tensor, and the most that lived at one time,
    what it returned included. Tensors that it was handed are not counted."""

    largest: int = 0
    peak: int = 0


class Counter(TorchDispatchMode):
    """Count the storages that operations make, from when they are made until nobody holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()
        self._live = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tensors_in((args, kwargs)):
            self._know(tensor, counted=False)
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            self._know(tensor, counted=True)
        return result

    def _know(self, tensor: Tensor, counted: bool) -> None:
        """Count the storage of a tensor, unless it is known; what is first seen as an input was
        there before."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if counted else 0
        if key in self._known:
            return
        self._known[key] = weakref.finalize(storage, self._forget, key, size)
        self._live += size
        self.memory.largest = max(self.memory.largest, size)
        self.memory.peak = max(self.memory.peak, self._live)

    def _forget(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self._live -= size


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors among values, however nested."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def memory_of(call: Callable[[], Any]) -> Memory:
    """Return what a call takes, with what it returns alive."""
    with Counter() as counter:
        returned = call()
    del returned
    return counter.memory


@torch.no_grad()
def memory_without_gradients(call: Callable[[], Any]) -> Memory:
    """Return what a call takes under `torch.no_grad`."""
    return memory_of(call)
