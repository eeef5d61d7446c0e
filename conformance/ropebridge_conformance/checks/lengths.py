"""Lengths: one position, two, around a block of 64, more than two blocks; one row and several."""

from __future__ import annotations

from ropebridge_conformance.checks.costs import on_demand
from ropebridge_conformance.checks.values import (
    across_gaps,
    axis_not_told,
    judge_unwatched,
    worst_of,
)
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.compare import compare
from ropebridge_conformance.judging.findings import Finding
from ropebridge_conformance.judging.questions import Question, check
from ropebridge_conformance.judging.verdicts import Outcome
from ropebridge_conformance.stages.context import expect

LENGTHS = ("length_1", "length_2", "length_63", "length_64", "length_65", "length_130")


@check(
    "PAT-1",
    scenarios=LENGTHS,
    dtypes=("float32", "bfloat16"),
    where=on_demand,
    also=("SCORE-1", "MIX-1", "OUT-1"),
)
def a_call_of_any_length_holds_what_its_clauses_say(bench: Bench, q: Question) -> Finding:
    """PAT-1, SCORE-1, MIX-1, OUT-1: every hook point is within its bound, and so is z where nobody
    watches scores or pattern."""
    traces, contexts = (
        bench.traces(q.specimen, q.situation, "all"),
        bench.contexts(q.specimen, q.situation),
    )
    for hook in traces[0].fired:
        pairs = zip(traces, contexts, strict=True)
        found = worst_of([compare(t.values[hook], expect(hook, c)) for t, c in pairs], hook)
        if found.outcome != Outcome.PASS:
            return found
    last = traces[0].fired[-1]  # one position's pattern is the same in all heads
    axis = axis_not_told(last, contexts)
    if axis is not None:
        return across_gaps(f"{last} turned by one along {axis} would pass", last, contexts[0])
    return judge_unwatched(bench, q)
