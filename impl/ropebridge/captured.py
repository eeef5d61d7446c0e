"""Activations of a data set on disk: an index, shards, and what reads them by name and row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ropebridge.reductions import TopWeights
from ropebridge_spec import ContractError

INDEX = "index.json"
PARTS_OF_ONE = TopWeights._fields
"""What stands after the name where one hook point gave several tensors."""


@dataclass(frozen=True)
class Batch:
    """Hold what is known of one batch before it runs.

    rows, pos: its sizes. digest: of its tensors. bytes: of what is kept of it. shard: the number of
        the file that holds it.
    """

    rows: int
    pos: int
    digest: str
    bytes: int
    shard: int


@dataclass(frozen=True)
class Index:
    """Hold what is captured, of what, and where it lies.

    model: a digest of the configuration and of numbers of each weight. watches: what of which hook
        points. dtype: in which floating-point numbers are kept; None leaves them as they are.
    batches: in the order of the data set. names: the full names of the hook points.
    """

    model: str
    watches: tuple[str, ...]
    names: tuple[str, ...]
    dtype: str | None
    batches: tuple[Batch, ...]

    def write(self, folder: Path) -> None:
        """Write the index into a folder."""
        text = json.dumps(asdict(self), indent=1)
        (folder / INDEX).write_text(text, encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> Index:
        """Return the index that lies in a folder.

        Raises:
            ContractError: there is none, or it is another program's.
        """
        try:
            held = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            return Index(
                held["model"],
                tuple(held["watches"]),
                tuple(held["names"]),
                held["dtype"],
                tuple(Batch(**batch) for batch in held["batches"]),
            )
        except FileNotFoundError:
            raise ContractError(
                f"{str(folder)!r} holds no capture: there is no {INDEX} in it; make one: capture("
                "bridged, batches, names, folder)"
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ContractError(
                f"{str(folder / INDEX)!r} is no index of a capture: {error}; give the folder that"
                " capture(...) wrote"
            ) from error

    def other(self, index: Index) -> str:
        """Return in what another index differs from this; nothing where they are alike."""
        return ", ".join(
            field.name
            for field in fields(self)
            if getattr(self, field.name) != getattr(index, field.name)
        )

    @property
    def shards(self) -> tuple[int, ...]:
        """Return the numbers of the files, in order."""
        return tuple(dict.fromkeys(batch.shard for batch in self.batches))


def shard_path(folder: Path, number: int) -> Path:
    """Return where a shard lies."""
    return folder / f"{number:05d}.safetensors"


def key_of(batch: int, name: str) -> str:
    """Return the key of a tensor in its shard."""
    return f"{batch}/{name}"


class Captured(Mapping[str, "Rows"]):
    """Read activations that `capture` wrote: full name of a hook point -> its rows, read from disk
    when they are asked for.

    Args:
        folder: that of `capture`; some shards may not be there yet.

    Raises:
        ContractError: there is no capture in it.

    Attributes:
        rows: how many rows of the data set there will be.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.index = Index.read(self.folder)
        self.rows = sum(batch.rows for batch in self.index.batches)

    @property
    def missing(self) -> tuple[int, ...]:
        """Return the numbers of the shards that are not written yet."""
        return tuple(n for n in self.index.shards if not shard_path(self.folder, n).exists())

    def __getitem__(self, name: str) -> Rows:
        if name not in self.index.names:
            near = get_close_matches(name, self.index.names, n=3, cutoff=0.5)
            raise KeyError(f"{name!r} was not captured; nearest: {', '.join(near) or 'none'}")
        return Rows(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.index.names)

    def __len__(self) -> int:
        return len(self.index.names)

    def __repr__(self) -> str:
        shards = len(self.index.shards)
        there = shards - len(self.missing)
        return (
            f"Captured({str(self.folder)!r}: {len(self)} hook points, {self.rows} rows, {there} of"
            f" {shards} shards)"
        )


class Rows(Sequence[Any]):
    """Read the rows of one hook point: `rows[17]` is what it held for row 17 of the data set,
    without the axis of the batch; `rows[10:20]` and `rows[[3, 8]]` stand several on top of each
    other."""

    def __init__(self, captured: Captured, name: str) -> None:
        self.captured, self.name = captured, name

    def __len__(self) -> int:
        return self.captured.rows

    def __getitem__(self, at: Any) -> Any:
        """Return one row, or several stacked.

        Raises:
            IndexError: there is no such row.
            ContractError: several rows of different shapes, or a shard that is not written yet.
        """
        if isinstance(at, slice):
            return self._stacked(range(len(self))[at])
        if isinstance(at, (Sequence, Tensor)):
            return self._stacked([int(number) for number in at])
        number = at + len(self) if at < 0 else at
        if not 0 <= number < len(self):
            raise IndexError(f"{self.name!r} has {len(self)} rows, and {at} is none of them")
        batch, row = self._places[number]
        return self._read(batch, lambda part: part[row if part.get_shape()[0] > 1 else 0])

    def batch(self, number: int) -> Any:
        """Return all rows of one batch of the data set, with its axis."""
        return self._read(number, lambda part: part[:])

    @cached_property
    def _places(self) -> list[tuple[int, int]]:
        """Return for each row its batch, and its place in it."""
        batches = self.captured.index.batches
        return [(number, row) for number, batch in enumerate(batches) for row in range(batch.rows)]

    def _read(self, batch: int, take: Any) -> Any:
        """Return what is taken of the tensor of a batch, or of each of several."""
        index, folder = self.captured.index, self.captured.folder
        path = shard_path(folder, index.batches[batch].shard)
        if not path.exists():
            raise ContractError(
                f"batch {batch} of {self.name!r} is not captured yet: {path.name} is missing in"
                f" {str(folder)!r}; call capture(...) again, which goes on where it was interrupted"
            )
        key = key_of(batch, self.name)
        with safe_open(path, framework="pt") as shard:
            if key in shard.keys():  # noqa: SIM118
                return take(shard.get_slice(key))
            return TopWeights(*(take(shard.get_slice(f"{key}/{part}")) for part in PARTS_OF_ONE))

    def _stacked(self, numbers: Sequence[int]) -> Any:
        """Return several rows on top of each other."""
        rows = [self[number] for number in numbers]
        if rows and isinstance(rows[0], TopWeights):
            columns = zip(*rows, strict=True)
            return TopWeights(*(self._stack(list(column), numbers) for column in columns))
        return self._stack(rows, numbers)

    def _stack(self, rows: list[Tensor], numbers: Sequence[int]) -> Tensor:
        shapes = {tuple(row.shape) for row in rows}
        if len(shapes) > 1:
            raise ContractError(
                f"rows {numbers[0]} to {numbers[-1]} of {self.name!r} have the shapes"
                f" {sorted(shapes)}, and cannot be stacked; read them one by one"
            )
        return torch.stack(rows) if rows else torch.empty(0)
