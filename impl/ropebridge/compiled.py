"""Hooks in a compiled graph: one operator that torch does not look into, and that calls whatever
hooks the point has when the graph runs.

So a new function, or a new closure of one, is no new graph. The graph holds the number of the hook
point in a tensor, as an input: layers that compute the same share one graph.
"""

from __future__ import annotations

from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

POINTS: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""Number -> hook point, while it lives. It says who is called, and holds no hook."""
NUMBERS = count()


def register(point: Any) -> Tensor:
    """Return a number of its own for a hook point, as a tensor of no axes."""
    number = next(NUMBERS)
    POINTS[number] = point
    return torch.tensor(number, device="cpu")


@torch.library.custom_op("ropebridge::show", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def show(tensor: Tensor, number: Tensor) -> Tensor:
    """Return what the hooks of a point leave of a tensor. They may keep what they are shown, and a
    graph may write over what it is given: neither is the other's."""
    left: Tensor = POINTS[int(number)](tensor.clone(memory_format=torch.contiguous_format))
    return left.clone(memory_format=torch.contiguous_format)


@show.register_fake
def _shape(tensor: Tensor, number: Tensor) -> Tensor:
    """Return a tensor of the shape that hooks must leave."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
