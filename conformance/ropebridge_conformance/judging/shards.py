"""Shards: a plan shared out among machines that know nothing of each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

T = TypeVar("T")


class ShardError(Exception):
    """Report a shard that cannot be; the message says what was given and what is required."""


@dataclass(frozen=True)
class Shard:
    """Hold the `index`-th of `count` parts of a plan; they are disjoint, and their union is the
    plan."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, items: Sequence[T], key: Callable[[T], str]) -> list[T]:
        """Return this shard's part, in the order of the plan.

        Items are dealt out like cards, in the order of the hashes of their keys: equally many to
        each, whatever order they come in, and the same on every machine.

        Raises:
            ShardError: there are more shards than items, so that one would have nothing to show.
        """
        if self.count > len(items):
            raise ShardError(
                f"{len(items)} parts of the plan cannot be shared out among {self.count} shards\n "
                f" give a shard i/n with n at most {len(items)}"
            )
        dealt = sorted(items, key=lambda item: sha256(key(item).encode()).digest())
        mine = {key(item) for item in dealt[self.index - 1 :: self.count]}
        return [item for item in items if key(item) in mine]


def read_shard(text: str) -> Shard:
    """Return the shard that `i/n` says.

    Raises:
        ShardError: it says none.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = (int(group) for group in match.groups()) if match else (0, 0)
    if not 1 <= index <= count:
        raise ShardError(f"no shard {text!r}\n  a shard is i/n, i from 1 to n: 2/4")
    return Shard(index, count)
