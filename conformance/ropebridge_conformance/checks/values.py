"""Values: each stage against the float64 reference, from what the subject's own hooks held one
stage up."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ropebridge_conformance.judging.bench import Bench, hooks_of
from ropebridge_conformance.judging.compare import Difference, compare, fits
from ropebridge_conformance.judging.findings import Finding, failed, not_exercised, passed, vacuous
from ropebridge_conformance.judging.questions import Question, any_hook, check, value_clause
from ropebridge_conformance.judging.verdicts import Outcome
from ropebridge_conformance.mutants.catalogue import foils
from ropebridge_conformance.mutants.mutant import Mutant
from ropebridge_conformance.stages.context import Context, expect
from ropebridge_conformance.stages.oracle import foil_of
from ropebridge_conformance.subjects.traces import Trace
from ropebridge_conformance.zoo.scenarios import CORE_CALLS, OPTED, Scenario
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_spec import HOOK_BY_NAME, HOOKS, axis_names
from ropebridge_spec.hooks import resolve

BY_LAYER = ("CLIP-1", "SCORE-4", "SCORE-5", "DIFF-1", "KV-1", "SEL-1", "MASK-6", "MIX-3")
"""Clauses that say what a hook point holds in layers that bring them into play."""


@check(value_clause, scenarios=(*CORE_CALLS, *OPTED), hooks=any_hook, also=BY_LAYER)
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
    found = worst_of(
        [compare(t.values[hook], expect(hook, c)) for t, c in zip(traces, contexts, strict=True)],
        hook,
    )
    if found.outcome != Outcome.PASS:
        return found
    axis = axis_not_told(hook, contexts)
    if axis is not None:
        words = f"this input could not tell the right {hook} from one turned by one along {axis}"
        return across_gaps(words, hook, contexts[0])
    blind = undetected_foil(hook, traces, contexts, specimen, scenario)
    if blind is None:
        return found
    words = (
        f"this input could not tell the right {hook} from that of mutant {blind.name!r}:"
        f" {blind.fault}"
    )
    return across_gaps(words, hook, contexts[0])


def across_gaps(words: str, hook: str, context: Context) -> Finding:
    """Return that a question is vacuous; or not exercised where hook points before it, or after,
    are not there, so that bounds are wide."""
    if context.missing:
        return not_exercised(f"{words}; not across {', '.join(context.missing)}")
    return vacuous(words)


def worst_of(differences: list[Difference], hook: str) -> Finding:
    """Return one finding from the calls of a scenario: the worst of them."""
    worst = max(differences, key=lambda d: d.ratio)
    if worst.fits:
        return passed(worst)
    return failed(
        f"{hook} is off by {worst.ratio:.3g} times its bound at {worst.index}",
        worst,
        divergent=hook,
    )


ALIKE = {
    **{hook.name: ("head", "kv_head") for hook in HOOKS if hook.stage == "split input"},
    **dict.fromkeys(("hook_cos", "hook_sin"), ("table_batch",)),
}
"""Axes along which a hook point may hold the same: all heads by their clause (SPLIT-1), the tables
of rows that stand at the same positions."""


def axis_not_told(hook: str, contexts: Sequence[Context]) -> str | None:
    """Return an axis along which a value that is turned by one would pass in every call, so that
    positions, heads or channels could be changed for one another; None where each tells.

    Every value is proved so, also those of hook points that no mutant computes otherwise. Keys and
    values that are made once for each query head may be the same (SPLIT-3).
    """
    names = axis_names(resolve(HOOK_BY_NAME[hook], contexts[0].variant).axes)
    alike = (*ALIKE.get(hook, ()), *(("kv_head",) if "attn_in" in contexts[0].opted_in else ()))
    for place, name in enumerate(names):
        expected = [expect(hook, context) for context in contexts]
        long = [e for e in expected if e.value.shape[place] > 1 and name not in alike]
        if long and all(fits(e.value.roll(1, place), e) for e in long):
            return name
    return None


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


@check("MIX-1", scenarios=CORE_CALLS)
def the_unwatched_stages_give_the_same_z(bench: Bench, q: Question) -> Finding:
    """MIX-1 where nobody watches scores or pattern: a kernel may then make neither, and is judged
    over the stages it fuses."""
    return judge_unwatched(bench, q)


def judge_unwatched(bench: Bench, q: Question) -> Finding:
    """Judge z end to end over score, softmax and mix, with every hook watched but theirs; in a
    layer without a hook there the result or the output."""
    gaps = bench.gaps(q.specimen)
    there = [point.name for point in hooks_of(q.specimen, q.situation) if point.name not in gaps]
    hook = next((name for name in AFTER_MIX if name in there), "hook_out")
    traces = bench.traces(q.specimen, q.situation, "fused")
    contexts = bench.contexts(q.specimen, q.situation, "fused")
    differences = [
        compare(held_at(hook, trace), expect(hook, context))
        for trace, context in zip(traces, contexts, strict=True)
    ]
    return worst_of(differences, hook)


AFTER_MIX = ("hook_z", "hook_result", "hook_out")
"""Where values that were mixed are shown, from the mix on."""


def held_at(name: str, trace: Trace) -> Tensor:
    """Return what a hook point held; of hook_out, where it did not fire, what the layer gave
    back."""
    if name == "hook_out" and name not in trace.values and trace.out is not None:
        return trace.out.detach()
    return trace.values[name]
