"""Time of each row of the table: `make bench`. Every round times both runs, one after the other, so
that what disturbs the machine disturbs both."""

from __future__ import annotations

import gc
from statistics import median
from time import perf_counter
from typing import Any

import pytest
import torch

from benchmarks.contests import agree, contest
from benchmarks.memory import memory_of
from benchmarks.rows import ROWS, Row

CASES = [(row, pos) for row in ROWS for pos in row.targets]
WARM_UP = 3


def rounds_for(pos: int, row: Row) -> int:
    """Return how many rounds: fewer where one takes seconds."""
    if pos >= 8192:
        return 5
    return 15 if pos >= 2048 else 40 if pos > 8 else 200


FAR = 32_768
"""Positions at which a full pattern of 16 heads would take 69 GB."""
FAR_BYTES = 1.5e9


def test_the_last_row_of_every_head_at_32768_positions(benchmark: Any) -> None:
    """Runs, in less than 1.5 GB beside its inputs; there is nothing to set it against."""
    made = contest(FAR, watch=["hook_pattern"], part={"query": -1})
    with torch.no_grad():
        own = memory_of(made.ours)
        benchmark.pedantic(made.ours, rounds=1)
    assert own.peak < FAR_BYTES
    benchmark.extra_info.update(
        row="the last row of every head",
        against="-",
        pos=FAR,
        target=None,
        theirs=None,
        ratio=None,
        peak=own.peak,
        peak_of_theirs=None,
        largest=own.largest,
    )


@pytest.mark.parametrize(("row", "pos"), CASES, ids=[f"{row.id}-{pos}" for row, pos in CASES])
def test_row(benchmark: Any, row: Row, pos: int) -> None:
    torch.manual_seed(0)
    made = row.make(pos)
    theirs: list[float] = []

    def opponent() -> None:
        start = perf_counter()
        made.theirs()
        theirs.append(perf_counter() - start)

    with torch.no_grad():
        assert agree(made.ours(), made.theirs()) is not made.edits
    gc.collect()
    rounds = rounds_for(pos, row)
    with torch.no_grad():
        benchmark.pedantic(made.ours, setup=opponent, rounds=rounds, warmup_rounds=WARM_UP)
        own, other = memory_of(made.ours), memory_of(made.theirs)
    benchmark.extra_info.update(
        row=row.name,
        against=row.against,
        pos=pos,
        target=row.targets[pos],
        theirs=median(theirs[-rounds:]),
        ratio=benchmark.stats.stats.median / median(theirs[-rounds:]),
        peak=own.peak,
        peak_of_theirs=other.peak,
        largest=own.largest,
    )
