"""Parts: what a hook is given that asked for a part, and what becomes of its edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.checks.costs import Made, nothing, on_demand
from ropebridge_conformance.checks.edits import first_moved, nudged, what_followed
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.compare import Difference, compare, fits
from ropebridge_conformance.judging.findings import Finding, failed, passed, vacuous
from ropebridge_conformance.judging.questions import Question, check
from ropebridge_conformance.stages.context import Context, expect
from ropebridge_conformance.stages.oracle import contexts_of
from ropebridge_conformance.subjects.partial import WrongPart, record_parts
from ropebridge_conformance.subjects.traces import Edit, Trace
from ropebridge_conformance.zoo.calls import calls
from ropebridge_conformance.zoo.scenarios import OPTED
from ropebridge_spec import NARROWED, HookSpec, Watch, axis_of, ungrouped


def recorded(bench: Bench, q: Question, edit: Edit | None = None) -> list[Trace]:
    """Return the calls of a scenario, every hook point watched by parts that cover it, with an edit
    in a part of the question's."""
    variant = ungrouped(q.specimen.variant, q.situation.opted_in)
    layer = bench.layer(q.specimen, q.situation.opted_in)
    edits = {} if edit is None or q.hook is None else {q.hook: edit}
    asked = calls(q.situation, q.specimen, layer)
    return record_parts(layer, asked, bench.hooks_of(q.specimen, q.situation), variant, edits)


def contexts_in_parts(traces: Sequence[Trace], q: Question) -> list[Context]:
    """Return what the stages of calls are recomputed from whose hooks were given parts."""
    return [c.but(in_parts=True) for c in contexts_of(traces, q.specimen, q.situation)]


def has_parts(hook: HookSpec) -> bool:
    """Accept hook points of which there can be parts."""
    return any(axis_of(way, hook.axes) is not None for way in NARROWED)


@check("PART-1", scenarios=("prefill", "no_mask", "decode", *OPTED), dtypes=("float32", "bfloat16"))
def parts_hold_what_the_whole_would(bench: Bench, q: Question) -> Finding:
    """PART-1: hooks that are given parts of every hook point are told which, and what they hold is,
    put together, what the clauses of the stages say."""
    points = bench.hooks_of(q.specimen, q.situation)
    try:
        traces = recorded(bench, q)
    except WrongPart as wrong:
        return failed(str(wrong), divergent=wrong.hook)
    contexts = contexts_in_parts(traces, q)
    worst: Difference | None = None
    for spec in points:
        missing = next((t for t in traces if spec.name not in t.fired), None)
        if missing is not None:
            return failed(f"no part of {spec.name} fired", divergent=spec.name)
        for trace, context in zip(traces, contexts, strict=True):
            difference = compare(trace.values[spec.name], expect(spec.name, context))
            if not difference.fits:
                return failed(
                    f"{spec.name}, put together, is off by {difference.ratio:.3g} bounds",
                    difference,
                    divergent=spec.name,
                )
            worst = max((worst, difference), key=lambda d: d.ratio if d else -1.0)
        if not tells_parts(spec, traces[0], contexts[0]):
            return vacuous(f"the parts of {spec.name} could be changed for one another")
    return passed(worst)


def tells_parts(spec: HookSpec, trace: Trace, context: Context) -> bool:
    """Return whether one part could not stand where another does: turned by one along an axis that
    is narrowed, the values do not fit; True where there is nothing to narrow."""
    value, expected = trace.values[spec.name], expect(spec.name, context)
    axes = [axis for way in NARROWED if (axis := axis_of(way, spec.axes)) is not None]
    long = [axis for axis in axes if value.shape[axis] > 1]
    return not long or any(not fits(value.roll(1, axis), expected) for axis in long)


@check("PART-1", scenarios=("prefill",), hooks=has_parts, dtypes=("float32",))
def an_edit_of_a_part_is_what_the_rest_of_the_layer_sees(bench: Bench, q: Question) -> Finding:
    """PART-1: an edit of one part, where hooks are given parts alone: the other parts and earlier
    stages do not move, later stages are what the reference makes of it."""
    assert q.hook is not None
    try:
        clean = recorded(bench, q)
        edited = recorded(bench, q, nudged)
    except WrongPart as wrong:
        return failed(str(wrong), divergent=wrong.hook)
    before, after = clean[0].values[q.hook], edited[0].values[q.hook]
    if torch.equal(before, after):
        return failed(f"the edit of a part of {q.hook} was lost", divergent=q.hook)
    return first_moved(q, clean, edited) or what_followed(
        q, clean, edited, contexts_in_parts(clean, q)
    )


@check("PART-2", scenarios=("prefill",), dtypes=("float32", "bfloat16"))
def hooks_of_parts_see_what_those_before_left(bench: Bench, q: Question) -> Finding:
    """PART-2: hooks of two parts that overlap, alone and beside one of the whole, are called in the
    order in which they were added, and see each other's edits."""
    for spec in bench.hooks_of(q.specimen, q.situation):
        if axis_of("heads", spec.axes) is None or axis_of("query", spec.axes) is None:
            continue
        for beside in (False, True):
            amiss = amiss_in_order(bench, q, spec, beside)
            if amiss:
                words = "beside the whole" if beside else "alone"
                return failed(f"parts of {spec.name}, {words}: {amiss}", divergent=spec.name)
    return passed()


def amiss_in_order(bench: Bench, q: Question, spec: HookSpec, beside: bool) -> str:
    """Return what is wrong with a hook of the first head before and after one that edits two
    positions of all heads, and with one of the whole between them; nothing if nothing is."""
    layer = bench.layer(q.specimen, q.situation.opted_in)
    seen: list[tuple[str, Tensor]] = []

    def look(word: str) -> Any:
        return lambda tensor, hook: seen.append((word, tensor.detach().clone()))

    def halve(tensor: Tensor, hook: Any) -> None:
        seen.append(("edit", tensor.detach().clone()))
        tensor.mul_(0.5)

    rows, head = Watch(spec.name, query=[2, 1]), Watch(spec.name, heads=0)
    asked = [(head, look("before")), (rows, halve), (head, look("after"))]
    if beside:
        asked.insert(2, (spec.name, look("whole")))  # type: ignore[arg-type]
    layer.run(calls(q.situation, q.specimen, layer)[0].inputs, asked)
    words = [word for word, _ in seen]
    wanted = ["before", "edit", *(["whole"] if beside else []), "after"]
    if words != wanted:
        return f"called {words}; clause PART-2 requires {wanted}"
    values = dict(seen)
    heads, positions = axis_of("heads", spec.axes) or 0, axis_of("query", spec.axes) or 0
    right = values["before"].clone()
    right.narrow(positions, 1, 2).mul_(0.5)
    if not torch.equal(values["after"], right):
        return "a hook did not see what one before it left; clause PART-2 requires that"
    if beside and not torch.equal(values["whole"].narrow(heads, 0, 1), right):
        return "the whole does not hold what was left of a part; clause PART-2 requires that"
    return ""


@check("MEM-2", scenarios=("long",), dtypes=("float32",), where=on_demand)
def parts_alone_make_nothing_of_size_query_by_key(bench: Bench, q: Question) -> Finding:
    """MEM-2: counted, operation by operation, with hooks that are given one head, the last rows,
    and one key of scores and pattern."""
    layer = bench.layer(q.specimen, q.situation.opted_in)
    call = calls(q.situation, q.specimen, layer)[0]
    limit = call.given["hidden_states"].shape[1] * call.keys
    watches: Sequence[Watch] = (
        Watch("hook_attn_scores", query=slice(-2, None)),
        Watch("hook_pattern", heads=0, query=slice(-4, None)),
        Watch("hook_pattern", key=0),
    )
    with torch.no_grad(), Made() as made:
        layer.run(call.inputs, [(watch, nothing) for watch in watches])
    worst = Difference(made.elements / (limit - 1), made.elements, limit - 1, ())
    if worst.fits:
        return passed(worst)
    return failed(
        f"{made.by} made {made.elements} elements; query times key is {limit}",
        worst,
        divergent="hook_attn_scores",
    )
