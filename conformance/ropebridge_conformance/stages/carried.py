"""Values that carry their error along: what a stage makes of an input that is itself off by
so much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ropebridge_reference import side_by_side
from ropebridge_spec import bounds


@dataclass(frozen=True)
class WithError:
    """Hold an exact value, and how far a computation in some dtype may be from it.

    is_exact: whether the error is 0 everywhere.
    """

    value: Tensor
    error: Tensor
    is_exact: bool = False

    def map(self, move: Callable[[Tensor], Tensor]) -> WithError:
        """Return value and error moved alike: reshaped, copied, or multiplied by what is
        positive."""
        return WithError(move(self.value), move(self.error), self.is_exact)

    def beside(self, other: WithError, join: Callable[[Tensor, Tensor], Tensor]) -> WithError:
        """Return two values and their errors, each joined."""
        joined = join(self.error, other.error)
        return WithError(join(self.value, other.value), joined, self.is_exact and other.is_exact)

    def error_through(self, stage: Callable[[Tensor], Tensor]) -> Tensor | float:
        """Return what a stage, linear in this and made of absolute values, makes of the error."""
        return 0.0 if self.is_exact else stage(self.error)


def exact(value: Tensor) -> WithError:
    """Return a value that nothing is lost of."""
    return WithError(value, value.new_zeros(()).expand_as(value), is_exact=True)


def join_parts(one: WithError, other: WithError) -> WithError:
    """Return two parts of a head side by side, with their errors."""
    return WithError(
        torch.cat([one.value, other.value], -1), torch.cat([one.error, other.error], -1)
    )


def copy_for_heads(x: WithError, heads: int) -> WithError:
    """Return one head's value, for so many heads."""
    return x.map(lambda value: value.expand(-1, -1, heads, -1))


def side_by_side_with_error(v: WithError) -> WithError:
    """Return the values of each pair of heads side by side (DIFF-1)."""
    return v.map(side_by_side)


def carry_factor(x: WithError, factor: float, dtype: str) -> WithError:
    """Return a factor, whose product is rounded unless it is 1."""
    if factor == 1:
        return x
    value = factor * x.value
    return WithError(value, abs(factor) * x.error + bounds.rounded(value, times=1, dtype=dtype))
