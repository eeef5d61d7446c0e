"""Looking: hooks that return None leave the layer as it is, and asking for the pattern gives the
pattern."""

from __future__ import annotations

from itertools import combinations, product

import torch

from ropebridge_conformance.checks.edits import GRAD_MODES, edit_in_place, replace_all
from ropebridge_conformance.checks.parity import joined, whole_call
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.compare import compare, fits
from ropebridge_conformance.judging.findings import Finding, failed, passed, vacuous
from ropebridge_conformance.judging.questions import Question, check
from ropebridge_conformance.stages.context import Expectation, expect
from ropebridge_conformance.subjects.answers import NotShown
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
    """PAT-3: the attention weights that a call returns when asked are hook_pattern, bit for bit, as
    hooks left it, replaced or edited in place."""
    layer, edits = bench.layer(q.specimen, q.situation.opted_in), (None, replace_all, edit_in_place)
    for edit in edits:
        for trace in record(
            layer,
            calls(q.situation, q.specimen, layer),
            ["hook_pattern"],
            {} if edit is None else {"hook_pattern": edit},
            output_attentions=True,
        ):
            if trace.weights is None:
                return failed("output_attentions=True gave no weights", divergent="hook_pattern")
            if not torch.equal(trace.weights, trace.values["hook_pattern"]):
                as_left = "" if edit is None else ", as an edit left it"
                return failed(
                    f"the returned weights are not hook_pattern{as_left}", divergent="hook_pattern"
                )
    return passed()


FUSED = ("hook_attn_scores", "hook_pattern", "hook_z")


@check("LOOK-1", scenarios=("prefill", "decode"), dtypes=("float32",))
def what_is_shown_does_not_depend_on_who_watches(bench: Bench, q: Question) -> Finding:
    """LOOK-1: each hook point watched alone, and every two of scores, pattern and z, are shown what
    they are beside all others, within what rounding may carry through; with gradients, without, and
    in inference mode."""
    layer = bench.layer(q.specimen, q.situation.opted_in)
    names = bench.watched(q.specimen, q.situation, "all")
    wanted = beside_all_others(bench, q)
    for name, expected in wanted[0].items():
        shape, required = tuple(expected.value.shape), tuple(expected.bound.shape)
        if shape != required:
            words = f"{name} has shape {shape}, and {required} is required"
            return failed(words, divergent=name)
        if fits(expected.value.roll(1, -1), expected):
            return vacuous(f"{name} turned by one along its last axis would pass")
    alone = [(name,) for name in names]
    pairs = [pair for pair in combinations(FUSED, 2) if set(pair) <= set(names)]
    for (mode, begin), watch in product(GRAD_MODES.items(), (*alone, *pairs)):
        asked = calls(q.situation, q.specimen, layer)
        asked[0].given["hidden_states"].requires_grad_(mode == "with gradients")
        with begin():
            traces = record(layer, asked, watch)
        for name in watch:
            for trace, held in zip(traces, wanted, strict=True):
                if name not in trace.values:
                    raise NotShown(name)
                difference = compare(trace.values[name], held[name])
                if not difference.fits:
                    return failed(
                        f"{name}, where {' and '.join(watch)} alone is watched {mode}, is"
                        f" {difference.ratio:.3g} bounds away from what it is beside all others",
                        difference,
                        divergent=name,
                    )
    return passed()


def beside_all_others(bench: Bench, q: Question) -> list[dict[str, Expectation]]:
    """Return for each call what every hook point held where all were watched, and how far from that
    rounding may carry it in another run: twice as far as from the truth."""
    made: list[dict[str, Expectation]] = []
    traces = bench.traces(q.specimen, q.situation, "all")
    for trace, context in zip(traces, bench.contexts(q.specimen, q.situation), strict=True):
        nothing_seen = context.but(values={})
        made.append(
            {
                name: Expectation(value.double(), 2 * expect(name, nothing_seen).bound)
                for name, value in trace.values.items()
            }
        )
    return made
