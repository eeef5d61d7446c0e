"""Parts of tensors: read, written, and found in one another, along several axes at once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

Numbers = Sequence[int] | None
"""Numbers along one axis, each once; None for all."""
Index = slice | list[int]
"""The same, as torch takes them."""


def index_of(numbers: Numbers) -> Index:
    """Return numbers along an axis as torch takes them: a slice where they are evenly spaced."""
    if numbers is None:
        return slice(None)
    if isinstance(numbers, range) and numbers.step > 0:
        return slice(numbers.start, numbers.stop, numbers.step)
    return list(numbers)


def mesh(indices: Sequence[Index], shape: Sequence[int]) -> tuple[slice | Tensor, ...]:
    """Return one index of torch for some numbers along each axis, whose axes stay where they are.

    One list among slices torch reads so by itself. Of several it would make one axis: those, and
    the axes between them, are given axes of their own.
    """
    lists = [axis for axis, index in enumerate(indices) if isinstance(index, list)]
    if not lists:
        return tuple(index for index in indices if isinstance(index, slice))
    spanned = range(lists[0], lists[-1] + 1)
    whole: list[slice | Tensor] = []
    for axis, index in enumerate(indices):
        if axis not in spanned:
            assert isinstance(index, slice)
            whole.append(index)
            continue
        numbers = index if isinstance(index, list) else list(range(shape[axis])[index])
        sides = [-1 if other == axis else 1 for other in spanned]
        whole.append(torch.tensor(numbers, dtype=torch.long).view(sides))
    return tuple(whole)


def read_part(whole: Tensor, indices: Sequence[Index]) -> Tensor:
    """Return some numbers along each axis of a tensor, a view of it where all are slices."""
    return whole[mesh(indices, whole.shape)]


def write_part(whole: Tensor, indices: Sequence[Index], part: Tensor) -> None:
    """Write a part into a tensor, in place."""
    whole[mesh(indices, whole.shape)] = part


def common(one: Numbers, other: Numbers) -> tuple[Index, Index]:
    """Return where the numbers that two share lie in the one, and in the other; None stands for all
    numbers from 0."""
    if one is None or other is None:
        return index_of(other), index_of(one)
    if is_run(one) and is_run(other):
        first, stop = max(one[0], other[0]), min(one[-1], other[-1]) + 1
        stop = max(first, stop)
        return slice(first - one[0], stop - one[0]), slice(first - other[0], stop - other[0])
    place_in_other = {number: place for place, number in enumerate(other)}
    shared = [(at, place_in_other[n]) for at, n in enumerate(one) if n in place_in_other]
    return [at for at, _ in shared], [place for _, place in shared]


def is_nothing(indices: Sequence[Index]) -> bool:
    """Return whether some numbers along each axis are none along one of them."""
    return any(not index if isinstance(index, list) else is_empty(index) for index in indices)


def is_empty(index: slice) -> bool:
    """Return whether a slice from a number to a later one holds nothing."""
    return index.stop is not None and index.stop <= (index.start or 0)


def is_run(numbers: Sequence[int]) -> bool:
    """Return whether numbers follow one another."""
    return isinstance(numbers, range) and numbers.step == 1 and len(numbers) > 0


def united(several: Sequence[Numbers], length: int) -> list[int]:
    """Return in order the numbers below a length that any of several hold."""
    if any(numbers is None or len(numbers) == length for numbers in several):
        return list(range(length))
    held: set[int] = set()
    for numbers in several:
        held.update(numbers or ())
    return sorted(held)


def within(numbers: Sequence[int], start: int, stop: int) -> slice | None:
    """Return the shortest run of numbers from start to before stop that holds all those of a sorted
    sequence there; None where there are none."""
    first, after = bisect_left(numbers, start), bisect_left(numbers, stop)
    return slice(numbers[first], numbers[after - 1] + 1) if first < after else None
