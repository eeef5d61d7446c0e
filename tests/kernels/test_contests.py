"""What `make bench` sets against each other computes the same: else a ratio would say nothing."""

from __future__ import annotations

import pytest
import torch

from benchmarks.contests import agree
from benchmarks.rows import ROWS, Row

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
def test_both_runs_of_a_row_give_the_same_unless_one_is_edited(row: Row) -> None:
    made = row.make(96)
    with torch.no_grad():
        assert agree(made.ours(), made.theirs()) is not made.edits
