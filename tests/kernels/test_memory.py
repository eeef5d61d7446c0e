"""Memory follows demand, counted exactly: no tensor of size query x key where nobody watches, and
of what is watched one, beside what the fused path takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.contests import EXPLICIT, LINEAR, contest, look
from benchmarks.memory import Counter, memory_without_gradients
from ropebridge import Entropy, MeanOverQueries, TopK
from ropebridge.hooks import Look

pytestmark = pytest.mark.slow

POS = 1280
PATTERN = 16 * POS * POS * 4
"""Bytes of the pattern of 16 heads, in float32."""


def test_the_counter_counts_what_is_made_and_forgets_what_is_gone() -> None:
    given = torch.zeros(1000)
    with Counter() as counter:
        one = given + 1
        one = one * 2  # the first is gone
        held = [one, given.view(10, 100), one[:5]]
        torch.zeros(2000)
    assert counter.memory.largest == 8000
    assert counter.memory.peak == 4000 + 8000
    assert len(held) == 3


@pytest.mark.parametrize("watch", [(), LINEAR], ids=["nothing", "all_but_scores_and_pattern"])
def test_an_unwatched_layer_takes_no_more_memory_than_hugging_face(watch: Any) -> None:
    made = contest(POS, watch=watch)
    own, theirs = memory_without_gradients(made.ours), memory_without_gradients(made.theirs)
    assert own.largest < POS * POS * 4
    assert own.peak <= theirs.peak


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_softcaps_and_sinks_make_no_tensor_of_query_by_key(family: str) -> None:
    made = contest(POS, family=family, ours="eager", against="eager")
    assert memory_without_gradients(made.ours).largest < POS * POS * 4
    assert memory_without_gradients(made.theirs).largest >= PATTERN


def test_a_watched_pattern_takes_its_own_memory_beside_the_fused_path() -> None:
    made = contest(POS, watch=["hook_pattern"])
    own, fused = memory_without_gradients(made.ours), memory_without_gradients(made.theirs)
    assert own.largest == PATTERN
    assert own.peak <= 1.15 * (PATTERN + fused.peak)


@pytest.mark.parametrize(
    ("part", "numbers"),
    [
        ({"heads": 3}, POS * POS),
        ({"query": slice(-16, None)}, 16 * 16 * POS),
        ({"heads": [3, 9], "query": slice(-16, None)}, 2 * 16 * POS),
        ({"key": 0}, 16 * POS),
        ({"reduce": Entropy()}, 16 * POS),
        ({"reduce": MeanOverQueries()}, 16 * POS),
        ({"reduce": TopK(4)}, 3 * 4 * 16 * POS),
    ],
    ids=str,
)
def test_memory_grows_with_the_part_alone(part: dict[str, Any], numbers: int) -> None:
    """Beside the fused path, the part (and a copy of it, to know an edit) and two blocks of 64
    rows."""
    made = contest(POS, watch=["hook_pattern"], part=part)
    own, fused = memory_without_gradients(made.ours), memory_without_gradients(made.theirs)
    block = 16 * 64 * POS * 4
    assert own.largest <= max(block, numbers * 4, fused.largest)
    assert own.peak <= fused.peak + 2 * numbers * 4 + 2 * block


def test_a_part_that_a_cache_looks_at_is_not_copied_to_know_an_edit() -> None:
    part = {"heads": [2, 5, 11]}
    peak, peak_of_a_cache = (
        memory_without_gradients(
            contest(POS, watch=["hook_pattern"], part=part, hook=hook).ours
        ).peak
        for hook in (look, Look(look))
    )
    assert peak_of_a_cache <= peak - 2 * POS * POS * 4


def test_scores_and_pattern_take_the_memory_of_both_and_no_third() -> None:
    made = contest(POS, watch=EXPLICIT, ours="eager", against="eager")
    own, theirs = memory_without_gradients(made.ours), memory_without_gradients(made.theirs)
    assert own.peak <= 2.2 * PATTERN
    assert own.peak <= 1.01 * theirs.peak
