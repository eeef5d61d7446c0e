"""Results that all layers of one pass make of the same tensors, made once: the rotary tables as
rotation reads them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from ropebridge.readable import under_transform, version


class Once(threading.local):
    """Remember for one thread what was made last, and of which tensors; layers of one model share
    it. A copy remembers nothing."""

    def __init__(self) -> None:
        self._made_of: tuple[Any, ...] = ()
        self._tensors: tuple[
            ref[Tensor], ...
        ] = ()  # the model's own: they live as long as it wants
        self._made: Any = None

    def __reduce__(self) -> tuple[type[Once], tuple[()]]:
        return Once, ()

    def make(self, tensors: tuple[Tensor, ...], how: Any, make: Callable[[], Any]) -> Any:
        """Return what is made of tensors: what was made before of the very same ones, if nobody
        wrote to them since.

        Args:
            tensors: of which no derivative is taken; else it is made anew.
            how: what else decides on the result. make: makes it.
        """
        if torch.compiler.is_compiling() or under_transform():
            return make()
        if any(tensor.requires_grad for tensor in tensors):
            return make()
        counts = tuple(map(version, tensors))
        made_of = (how, counts, torch.is_inference_mode_enabled())
        same = len(tensors) == len(self._tensors) and all(map(is_of, self._tensors, tensors))
        if None in counts or not same or made_of != self._made_of:
            self._tensors = tuple(map(ref, tensors))
            self._made_of, self._made = made_of, make()
        return self._made

    def release(self) -> None:
        """Forget what was made last."""
        self._made_of, self._tensors, self._made = (), (), None


def is_of(reference: ref[Tensor], tensor: Tensor) -> bool:
    """Return whether a weak reference is one of this very tensor."""
    return reference() is tensor
