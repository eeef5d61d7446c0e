"""What `make bench` sets against each other computes the same: else a ratio would say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.contests import agree
from benchmarks.rows import ROWS, Row

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
def test_both_runs_of_a_row_give_the_same_unless_one_is_edited(row: Row) -> None:
    made = row.make(96)
    with torch.no_grad():
        assert agree(made.ours(), made.theirs()) is not made.edits


@pytest.mark.every
def test_the_table_of_an_accelerator_is_made_on_a_cpu_as_well() -> None:
    """Where there is no accelerator its code runs all the same."""
    lines = list(gpu.table("cpu", lengths=(32,), dtypes=(torch.bfloat16,)))
    assert [line.watched for line in lines] == [
        *(watched for watched, _ in gpu.ROWS),
        "nothing, a step after 4096",
    ]
    assert all(line.ms > 0 and line.kernels for line in lines)
    page = gpu.as_markdown("heading", lines)
    assert len(page.splitlines()) == 4 + len(lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
def test_without_an_accelerator_nothing_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main([str(tmp_path)]) == 2
    assert "torch.cuda.is_available() is False; nothing was run" in capsys.readouterr().out
