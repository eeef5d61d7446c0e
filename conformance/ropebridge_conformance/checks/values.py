"""Values: each stage against the float64 reference, from what the subject's own hooks held one
stage up."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.compare import Difference, compare, fits
from ropebridge_conformance.judging.findings import Finding, failed, passed, vacuous
from ropebridge_conformance.judging.questions import Check, Question, any_hook, clause, value_clause
from ropebridge_conformance.mutants import Mutant, foils
from ropebridge_conformance.stages.oracle import Context, Expectation, expect, foil_of
from ropebridge_conformance.subjects.traces import Trace
from ropebridge_conformance.zoo.scenarios import CORE_CALLS, OPTED, Scenario
from ropebridge_conformance.zoo.specimens import Specimen


def a_stage_gives_the_value_of_its_clause(bench: Bench, q: Question) -> Finding:
    """Hold the hook point to its value clause: within the a-priori rounding bound, in every call
    of the scenario."""
    assert q.hook is not None
    traces, contexts = (
        bench.traces(q.specimen, q.situation, "all"),
        bench.contexts(q.specimen, q.situation),
    )
    return judge_stage(q.hook, traces, contexts, q.specimen, q.situation)


def judge_stage(
    hook: str,
    traces: Sequence[Trace],
    contexts: Sequence[Context],
    specimen: Specimen,
    scenario: Scenario,
) -> Finding:
    """Judge a stage of recorded calls against the oracle, after showing that the input can tell it
    from every foil."""
    if any(hook not in trace.values for trace in traces):
        return failed(f"{hook} did not fire, so it has no value", divergent=hook)
    expected = [expect(hook, context) for context in contexts]
    blind = undetected_foil(hook, traces, contexts, specimen, scenario)
    if blind:
        return vacuous(
            f"this input could not tell the right {hook} from that of mutant {blind.name!r}:"
            f" {blind.fault}"
        )
    return worst_of(
        [compare_shapes(trace.values[hook], e) for trace, e in zip(traces, expected, strict=True)],
        hook,
    )


def compare_shapes(got: Tensor, expected: Expectation) -> Difference | str:
    """Return the difference, or what is wrong with the shape."""
    if got.shape != expected.value.shape:
        return f"has shape {tuple(got.shape)}, and {tuple(expected.value.shape)} was expected"
    return compare(got, expected)


def worst_of(differences: list[Difference | str], hook: str) -> Finding:
    """Return one finding from the calls of a scenario: the worst of them."""
    for difference in differences:
        if isinstance(difference, str):
            return failed(f"{hook} {difference}", divergent=hook)
    worst = max((d for d in differences if isinstance(d, Difference)), key=lambda d: d.ratio)
    if worst.fits:
        return passed(worst)
    return failed(
        f"{hook} is off by {worst.ratio:.3g} times its bound at {worst.index}",
        worst,
        divergent=hook,
    )


def undetected_foil(
    hook: str,
    traces: Sequence[Trace],
    contexts: Sequence[Context],
    specimen: Specimen,
    scenario: Scenario,
) -> Mutant | None:
    """Return a mutant of this stage whose wrong values would have passed in every call; None if the
    input is telling."""
    for mutant in foils(hook, specimen, scenario):
        if all(
            passes(hook, context, foil_of(context, trace, specimen, mutant.stages))
            for trace, context in zip(traces, contexts, strict=True)
        ):
            return mutant
    return None


def passes(hook: str, context: Context, foil: Context) -> bool:
    """Return whether what a foil makes of a stage would pass for what is right; a value of another
    shape stands out."""
    right, wrong = expect(hook, context), expect(hook, foil)
    return wrong.value.shape == right.value.shape and fits(wrong.value, right)


def the_unwatched_stages_give_the_same_z(bench: Bench, q: Question) -> Finding:
    """MIX-1 where nobody watches scores or pattern: a kernel may then make neither, and is judged
    over the stages it fuses."""
    return judge_unwatched(bench, q)


def judge_unwatched(bench: Bench, q: Question) -> Finding:
    """Judge z end to end over score, softmax and mix, with every hook watched but theirs."""
    traces = bench.traces(q.specimen, q.situation, "fused")
    if any("hook_z" not in trace.values for trace in traces):
        return failed("hook_z did not fire", divergent="hook_z")
    contexts = bench.contexts(q.specimen, q.situation, "fused")
    expected = [expect("hook_z", context) for context in contexts]
    return worst_of(
        [
            compare_shapes(trace.values["hook_z"], e)
            for trace, e in zip(traces, expected, strict=True)
        ],
        "hook_z",
    )


BY_LAYER = ("CLIP-1", "SCORE-4", "SCORE-5", "DIFF-1", "KV-1", "SEL-1", "MASK-6", "MIX-3")
"""Clauses that say what a hook point holds in layers that bring them into play."""
CHECKS = (
    Check(
        "a_stage_gives_the_value_of_its_clause",
        value_clause,
        a_stage_gives_the_value_of_its_clause,
        (*CORE_CALLS, *OPTED),
        any_hook,
        also=BY_LAYER,
    ),
    Check(
        "the_unwatched_stages_give_the_same_z",
        clause("MIX-1"),
        the_unwatched_stages_give_the_same_z,
        CORE_CALLS,
    ),
)
