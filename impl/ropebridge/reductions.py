"""Reductions of a pattern: what is often all that one wants of it, made block by block, so that the
pattern itself is never held."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ropebridge.parts import index_of, read_part
from ropebridge_spec import ContractError, Numbers
from ropebridge_spec.parts import read_numbers, resolve_numbers


class TopWeights(NamedTuple):
    """Hold the largest weights of each query, largest first.

    values: (batch, head, query, k) weights. keys: (batch, head, query, k) the keys that they are
        of, int64; -1 where the weight is 0.
    """

    values: Tensor
    keys: Tensor


Reduced = Tensor | TopWeights
"""What a reduction gives."""


class Reduction(ABC):
    """Say what is made of a pattern (batch, head, query, key), in at least float32.

    Attributes:
        axes: those of what is made; of each of several tensors.
        over_queries: one result stands for all queries, and not one for each.
    """

    axes: str = "batch head query"
    over_queries: bool = False

    @abstractmethod
    def of(self, weights: Tensor, first_key: int, keys: int) -> tuple[Tensor, ...]:
        """Return what is made of some rows, (batch, head, rows, ...); over queries their sum
        (batch, head, keys).

        Args:
            weights: (batch, head, rows, n) of n neighbouring keys, in at least float32; those of
                other keys are 0.
            first_key: the first of them. keys: how many keys there are in all.
        """

    def finish(self, made: tuple[Tensor, ...], rows: int) -> Reduced:
        """Return the result, of what was made of all rows that were asked for."""
        return made[0]

    def numbers(self, batch: int, heads: int, query: int, key: int) -> int:
        """Return how many numbers the result has in each of its tensors."""
        return batch * heads * (key if self.over_queries else query)

    def bytes_needed(self, batch: int, heads: int, query: int, key: int, dtype: torch.dtype) -> int:
        """Return how many bytes the result takes where floating-point numbers are kept so."""
        return self.numbers(batch, heads, query, key) * dtype.itemsize


@dataclass(frozen=True)
class TopK(Reduction):
    """Keep the k largest weights of each query, and the keys that they are of: `TopWeights`, with
    axes batch head query k.

    Raises:
        ContractError: k is less than 1.
    """

    k: int

    axes = "batch head query k"

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise ContractError(f"TopK({self.k!r}) must keep a whole number of weights, 1 or more")

    def of(self, weights: Tensor, first_key: int, keys: int) -> tuple[Tensor, ...]:
        """Return weights and keys, (batch, head, rows, k)."""
        values, places = weights.topk(min(self.k, weights.shape[-1]))
        found = torch.where(values > 0, places + first_key, -1)
        missing = (0, self.k - values.shape[-1])
        return (
            torch.nn.functional.pad(values, missing),
            torch.nn.functional.pad(found, missing, value=-1),
        )

    def finish(self, made: tuple[Tensor, ...], rows: int) -> Reduced:
        """Return weights and keys by name."""
        return TopWeights(*made)

    def numbers(self, batch: int, heads: int, query: int, key: int) -> int:
        """Return how many numbers each of the two tensors has."""
        return batch * heads * query * self.k

    def bytes_needed(self, batch: int, heads: int, query: int, key: int, dtype: torch.dtype) -> int:
        """Return how many bytes weights and keys take."""
        return self.numbers(batch, heads, query, key) * (dtype.itemsize + torch.int64.itemsize)


@dataclass(frozen=True)
class Entropy(Reduction):
    """Make the entropy of each query's weights, in nats: 0 where all weight is on one key, (batch,
    head, query). A sink's share is no key's, and has no part in it."""

    def of(self, weights: Tensor, first_key: int, keys: int) -> tuple[Tensor, ...]:
        """Return - sum p ln p of each row, with 0 ln 0 = 0."""
        smallest = torch.finfo(weights.dtype).tiny
        return (-(weights * weights.clamp_min(smallest).log()).sum(-1),)


@dataclass(frozen=True)
class Largest(Reduction):
    """Make the largest weight of each query, (batch, head, query)."""

    def of(self, weights: Tensor, first_key: int, keys: int) -> tuple[Tensor, ...]:
        """Return the largest of each row."""
        return (weights.amax(-1),)


@dataclass(frozen=True)
class MeanOverQueries(Reduction):
    """Make the mean weight of each key over the queries asked for, (batch, head, key)."""

    axes = "batch head key"
    over_queries = True

    def of(self, weights: Tensor, first_key: int, keys: int) -> tuple[Tensor, ...]:
        """Return the sum over rows, of all keys."""
        after = keys - first_key - weights.shape[-1]
        return (torch.nn.functional.pad(weights.sum(2), (first_key, after)),)

    def finish(self, made: tuple[Tensor, ...], rows: int) -> Reduced:
        """Return the sum over all rows, divided by their number."""
        return made[0] / rows


@dataclass(frozen=True)
class WeightOn(Reduction):
    """Make the weight that each query puts on some keys together, (batch, head, query).

    keys: one, a slice, or several, as in `Watch`.

    Raises:
        ContractError: something that is no numbers, or where it fires no such key.
    """

    keys: Numbers

    def __post_init__(self) -> None:
        if self.keys is None:
            raise ContractError("WeightOn(None) names no keys; give numbers or a slice")
        object.__setattr__(self, "keys", read_numbers("keys", self.keys))

    def of(self, weights: Tensor, first_key: int, keys: int) -> tuple[Tensor, ...]:
        """Return the sum of each row over those keys."""
        assert self.keys is not None
        asked: Any = self.keys
        numbers = resolve_numbers(asked, keys, "'hook_pattern', WeightOn ")
        here = [n - first_key for n in numbers if first_key <= n < first_key + weights.shape[-1]]
        return (weights[..., here].sum(-1),)


def reduce_whole(
    pattern: Tensor, heads: Sequence[int] | None, query: Sequence[int] | None, how: Reduction
) -> Reduced:
    """Return a reduction of some rows of some heads of a pattern (batch, head, query, key); it has
    derivatives."""
    rows = read_part(pattern, [slice(None), index_of(heads), index_of(query), slice(None)])
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return how.finish(how.of(wide, 0, pattern.shape[-1]), max(rows.shape[2], 1))
