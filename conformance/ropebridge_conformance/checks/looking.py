"""Looking: hooks that return None leave the layer as it is, and asking for the pattern gives the
pattern."""

from __future__ import annotations

import torch

from ropebridge_conformance.checks.parity import joined, whole_call
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.compare import compare
from ropebridge_conformance.judging.findings import Finding, failed, passed
from ropebridge_conformance.judging.questions import Question, check
from ropebridge_conformance.stages.context import Expectation
from ropebridge_conformance.subjects.traces import record
from ropebridge_conformance.subjects.witness import carried_bounds, live_rows
from ropebridge_conformance.zoo.calls import calls
from ropebridge_conformance.zoo.scenarios import CORE_CALLS, OPTED


@check("LOOK-1", scenarios=(*CORE_CALLS, *OPTED))
def looking_changes_nothing(bench: Bench, q: Question) -> Finding:
    """LOOK-1: the output with every hook point watched is the output with none, within what
    rounding may carry through."""
    without, with_all = (
        joined(bench.traces(q.specimen, q.situation, watch)) for watch in ("none", "all")
    )
    call = whole_call(bench, q)
    carried = carried_bounds(q.specimen, call, q.dtype).out
    live = live_rows(q.specimen, call)
    difference = compare(
        with_all[live], Expectation(without.double()[live], 2 * carried.bound[live])
    )
    if not difference.fits:
        return failed(
            f"watching moved the output by {difference.ratio:.3g} times the bound",
            difference,
            divergent="hook_out",
        )
    return passed(difference)


@check("LOOK-1", scenarios=(*CORE_CALLS, *OPTED))
def looking_where_nothing_is_made_changes_no_bit(bench: Bench, q: Question) -> Finding:
    """LOOK-1 where the same kernel runs: watching all but scores and pattern gives the very bits of
    watching nothing."""
    without, with_some = (
        joined(bench.traces(q.specimen, q.situation, watch)) for watch in ("none", "fused")
    )
    if torch.equal(without, with_some):
        return passed()
    return failed(
        f"watching moved the output by {float((without - with_some).abs().max()):.3g}",
        divergent="hook_out",
    )


@check("PAT-3", scenarios=("prefill", "decode"))
def returned_weights_are_the_pattern(bench: Bench, q: Question) -> Finding:
    """PAT-3: the attention weights that a call returns when asked are hook_pattern, bit for bit."""
    layer = bench.layer(q.specimen, q.situation.opted_in)
    for trace in record(
        layer, calls(q.situation, q.specimen, layer), ["hook_pattern"], output_attentions=True
    ):
        if trace.weights is None:
            return failed("output_attentions=True gave no weights", divergent="hook_pattern")
        if not torch.equal(trace.weights, trace.values["hook_pattern"]):
            return failed("the returned weights are not hook_pattern", divergent="hook_pattern")
    return passed()
