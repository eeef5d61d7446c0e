"""Parts of a hook point's tensor: some heads, positions, keys (clauses PART-1, PART-2)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ropebridge_spec.errors import ContractError
from ropebridge_spec.hooks import axis_names

Numbers = int | slice | Iterable[int] | None
"""Some numbers along an axis: one, a slice, several in any order, or None for all. The axis stays;
below 0 they count from the end."""

NARROWED = {"heads": ("head", "kv_head", "pair"), "query": ("query", "pos"), "key": ("key",)}
"""How a part is narrowed, and the axes of hook points along which that is done."""


@dataclass(frozen=True)
class Selection:
    """Hold which part of a hook point's tensor a hook was given: for heads, positions and keys the
    numbers along that axis, from 0, in the order in which they lie; None where the axis is
    whole or is not there."""

    heads: Sequence[int] | None = None
    query: Sequence[int] | None = None
    key: Sequence[int] | None = None

    def along(self, axes: str) -> tuple[Sequence[int] | None, ...]:
        """Return for each axis the numbers of the part, None where it is whole."""
        chosen: list[Sequence[int] | None] = [None] * len(axis_names(axes))
        for narrowing in NARROWED:
            numbers, axis = getattr(self, narrowing), axis_of(narrowing, axes)
            if numbers is not None and axis is not None:
                chosen[axis] = numbers
        return tuple(chosen)


@dataclass(frozen=True)
class Watch:
    """Ask for a part of what a hook point holds, in place of its name.

    name: the hook point's name, or a predicate of names; None for all hook points.
    heads: along the axis of heads, whichever it is: head, kv_head, or pair.
    query: along the axis of this call's positions, query or pos. key: along the axis key.

    Raises:
        ContractError: something that is no numbers.
    """

    name: str | Callable[[str], bool] | None
    heads: Numbers = None
    query: Numbers = None
    key: Numbers = None

    def __post_init__(self) -> None:
        for narrowing in NARROWED:
            object.__setattr__(self, narrowing, read_numbers(narrowing, getattr(self, narrowing)))

    @property
    def whole(self) -> bool:
        """Return whether nothing is narrowed."""
        return all(getattr(self, narrowing) is None for narrowing in NARROWED)

    def refuse_other_axes(self, axes: str, name: str) -> None:
        """Refuse to narrow a hook point of this name along an axis that it does not have.

        Raises:
            ContractError: so it was asked.
        """
        for narrowing in NARROWED:
            if getattr(self, narrowing) is not None and axis_of(narrowing, axes) is None:
                raise ContractError(
                    f"hook {name!r} cannot be narrowed by {narrowing}=: its axes are {axes}, and"
                    f" clause PART-1 requires one of {', '.join(NARROWED[narrowing])}"
                )

    def selection(self, axes: str, shape: Sequence[int], name: str) -> Selection:
        """Return which part of a tensor with these axes and this shape is asked for.

        Raises:
            ContractError: the tensor has no such axis, or not so many numbers along it.
        """
        self.refuse_other_axes(axes, name)
        chosen: dict[str, Sequence[int] | None] = {}
        for narrowing in NARROWED:
            numbers, axis = getattr(self, narrowing), axis_of(narrowing, axes)
            if numbers is not None and axis is not None:
                what = f"{name!r}, {narrowing}="
                chosen[narrowing] = resolve_numbers(numbers, shape[axis], what)
        return Selection(**chosen)


def axis_of(narrowing: str, axes: str) -> int | None:
    """Return the axis along which a part is narrowed; None where there is none."""
    found = [at for at, axis in enumerate(axis_names(axes)) if axis in NARROWED[narrowing]]
    return found[0] if found else None


def read_numbers(narrowing: str, numbers: Any) -> Numbers:
    """Return numbers as a slice, a tuple of int, or None.

    Raises:
        ContractError: something else, or a number twice.
    """
    if numbers is None or isinstance(numbers, slice):
        return numbers
    several = numbers if isinstance(numbers, Iterable) and not is_scalar(numbers) else [numbers]
    try:
        if isinstance(numbers, (str, bytes)):
            raise TypeError
        read = tuple(map(whole_number, several))
    except TypeError:
        raise ContractError(
            f"{narrowing}={numbers!r} names no part; it is a number, a slice, a list of numbers, or"
            " None for all (clause PART-1)"
        ) from None
    if len(set(read)) < len(read):
        raise ContractError(twice(read, f"{narrowing}="))
    return read


def is_scalar(numbers: Any) -> bool:
    """Return whether this is an array or a tensor without axes, which calls itself iterable."""
    return getattr(numbers, "ndim", None) == 0


def whole_number(number: Any) -> int:
    """Return an int; True and False, which Python takes for numbers, are refused."""
    if isinstance(number, bool) or "bool" in str(getattr(number, "dtype", "")):
        raise TypeError
    return operator.index(number)


def twice(numbers: Sequence[int], what: str) -> str:
    """Return the message for a part that holds one place twice: of two edits of it none could
    count."""
    return f"{what}{list(numbers)} names a place twice; clause PART-1 requires each number once"


def resolve_numbers(numbers: slice | tuple[int, ...], length: int, what: str) -> Sequence[int]:
    """Return numbers from 0 along an axis of this length; of a slice those that there are."""
    if isinstance(numbers, slice):
        return range(length)[numbers]
    absent = [number for number in numbers if not -length <= number < length]
    if absent:
        raise ContractError(
            f"hook {what}{list(numbers)} names {absent[0]}, and the axis is {length} long; clause"
            " PART-1 requires numbers from 0, or from -1 at the end; a slice takes those that there"
            " are"
        )
    resolved = tuple(number % length for number in numbers)
    if len(set(resolved)) < len(resolved):
        raise ContractError(twice(numbers, f"hook {what}"))
    return compact(resolved)


def compact(numbers: Sequence[int]) -> Sequence[int]:
    """Return numbers as a range where they follow one another, else as they are."""
    if isinstance(numbers, range):
        return numbers
    first = numbers[0] if numbers else 0
    run = range(first, first + len(numbers))
    return run if all(map(operator.eq, numbers, run)) else numbers


def narrowed(watch: Watch, **others: Numbers) -> Watch:
    """Return a watch that narrows what this one leaves whole, too."""
    more: dict[str, Any] = {n: v for n, v in others.items() if getattr(watch, n) is None}
    return replace(watch, **more)
