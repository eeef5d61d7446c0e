"""Comparison of what a subject gave with what the oracle expects, element by element."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ropebridge_conformance.stages.context import Expectation
from ropebridge_conformance.subjects.answers import WrongShape


@dataclass(frozen=True)
class Difference:
    """Hold the element furthest outside its bound, or nearest to it.

    ratio: error over bound; above 1 breaks the bound; infinite where a bound of 0, an infinity or a
        NaN is missed.
    ratios: those of all elements, kept where one breaks its bound.
    """

    ratio: float
    error: float
    bound: float
    index: tuple[int, ...]
    ratios: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def fits(self) -> bool:
        """Return whether every element is within its bound."""
        return self.ratio <= 1.0


def compare(got: Tensor, expected: Expectation) -> Difference:
    """Return the worst element of `got` against an expectation.

    Raises:
        WrongShape: it has another shape.
    """
    if got.shape != expected.value.shape:
        raise WrongShape(
            f"has shape {tuple(got.shape)}, and {tuple(expected.value.shape)} is required"
        )
    if got.numel() == 0:
        return Difference(0.0, 0.0, 0.0, ())
    ratio = ratios(got, expected)
    worst = int(ratio.argmax())
    index = unravelled(worst, tuple(ratio.shape))
    error = (got.double() - expected.value).abs()[index]
    furthest = float(ratio.flatten()[worst])
    return Difference(
        furthest,
        float(error),
        float(expected.bound.expand_as(ratio)[index]),
        index,
        ratio if furthest > 1 else None,
    )


def fits(got: Tensor, expected: Expectation) -> bool:
    """Return whether `got` has the shape, and every element is within its bound: `compare`, without
    the worst element."""
    if got.shape != expected.value.shape:
        return False
    got = got.double()
    error = (got - expected.value).abs()
    within = (error <= expected.bound) & error.isfinite() | (got == expected.value)
    return bool(within.all()) or compare(got, expected).fits


def unravelled(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the index of an element, from its place in the flattened tensor."""
    index: list[int] = []
    for length in reversed(shape):
        flat, place = divmod(flat, length)
        index.insert(0, place)
    return tuple(index)


def ratios(got: Tensor, expected: Expectation) -> Tensor:
    """Return error over bound for every element; 0 where equal, infinite where the bound cannot be
    said to hold."""
    got = got.double()
    error = (got - expected.value).abs()
    ratio = torch.where(error == 0, 0.0, error / expected.bound)
    ratio = torch.where(got == expected.value, 0.0, ratio)
    return ratio.nan_to_num(nan=torch.inf, posinf=torch.inf)
