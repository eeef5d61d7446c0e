"""Firing: which hook points there are, in which order they fire, how often, and what their tensors
look like."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.findings import Finding, failed, passed
from ropebridge_conformance.judging.questions import Question, any_hook, axes_clause, check
from ropebridge_conformance.subjects.traces import Trace, record
from ropebridge_conformance.zoo.calls import calls
from ropebridge_conformance.zoo.scenarios import CORE_CALLS, OPTED
from ropebridge_conformance.zoo.specimens import layer_number
from ropebridge_spec import HOOK_BY_NAME, Variant, ungrouped
from ropebridge_spec.hooks import resolve

NUMBER = r"\d+"
"""What a layer's number may be where its module does not say."""


@check("FIRE-1", scenarios=(*CORE_CALLS, *OPTED), also=("FIRE-2", "NORM-3", "KV-1"))
def hooks_fire_once_in_contract_order(bench: Bench, q: Question) -> Finding:
    """FIRE-1: with every hook point watched, each fires once in a call, in the order of the
    contract."""
    wanted = [hook.name for hook in bench.hooks_of(q.specimen, q.situation)]
    return judge_order(bench.traces(q.specimen, q.situation, "all"), wanted)


def judge_order(traces: Sequence[Trace], wanted: Sequence[str]) -> Finding:
    """Judge the order in which hook points fired in recorded calls."""
    wanted = list(wanted)
    for trace in traces:
        if trace.fired != wanted:
            return failed(
                f"fired {trace.fired}; clause FIRE-1 requires {wanted}",
                divergent=first_amiss(trace.fired, wanted),
            )
    return passed()


def first_amiss(fired: list[str], wanted: list[str]) -> str:
    """Return the first hook point that did not fire once; if all did, the first that fired out of
    order."""
    not_once = [name for name in wanted if fired.count(name) != 1]
    return next(
        iter([*not_once, *(a for a, b in zip(wanted, fired, strict=False) if a != b)]),
        "a hook point the layer does not have",
    )


@check(
    "FIRE-2",
    scenarios=("prefill", "split", "attn_in"),
    hooks=any_hook,
    dtypes=("float32",),
    also=("FIRE-4",),
)
def a_hook_watched_alone_fires_once(bench: Bench, q: Question) -> Finding:
    """FIRE-2: one hook, watched by itself, fires once in each call, and is called by its full
    name."""
    assert q.hook is not None
    layer = bench.layer(q.specimen, q.situation.opted_in)
    for trace in record(layer, calls(q.situation, q.specimen, layer), [q.hook]):
        if trace.fired != [q.hook]:
            return failed(
                f"fired {len(trace.fired)} times in one call; clause FIRE-2 requires once",
                divergent=q.hook,
            )
        number = layer_number(q.specimen.module)
        allowed = rf"blocks\.{NUMBER if number is None else number}\.attn\.{q.hook}"
        if not re.fullmatch(allowed, trace.names[q.hook]):
            return failed(
                f"hook.name is {trace.names[q.hook]!r}; clause FIRE-4 requires the full name"
                f" 'blocks.{0 if number is None else number}.attn.{q.hook}'",
                divergent=q.hook,
            )
    return passed()


@check(
    axes_clause,
    scenarios=("prefill", "decode", "split", "attn_in"),
    hooks=any_hook,
    also=("TYPE-1",),
)
def a_hook_has_the_axes_of_the_contract(bench: Bench, q: Question) -> Finding:
    """Hold the hook point to its axes clause, and to TYPE-1: shape, dtype and device."""
    assert q.hook is not None
    return judge_axes(
        q.hook,
        bench.traces(q.specimen, q.situation, "all"),
        ungrouped(q.specimen.variant, q.situation.opted_in),
    )


def judge_axes(hook: str, traces: Sequence[Trace], variant: Variant) -> Finding:
    """Judge the shape, dtype and device of a hook point in recorded calls."""
    complaints = (complaint_about(trace, hook, variant) for trace in traces)
    complaint = next((complaint for complaint in complaints if complaint), "")
    return failed(complaint, divergent=hook) if complaint else passed()


def complaint_about(trace: Trace, name: str, variant: Variant) -> str:
    """Return what is wrong with the shape, dtype or device of a recorded value; nothing if nothing
    is."""
    if name not in trace.values:
        return f"{name} did not fire, so it has no axes"
    value, given = trace.values[name], trace.call.given
    tables = trace.call.tables(variant)
    spec = resolve(HOOK_BY_NAME[name], variant)
    like = tables[0] if tables and name in ("hook_cos", "hook_sin") else given["hidden_states"]
    for what, got, wanted in (
        ("shape", tuple(value.shape), trace.call.shape_of(spec, variant)),
        ("dtype", value.dtype, like.dtype),
        ("device", value.device.type, like.device.type),
    ):
        if got != wanted:
            return (
                f"{name} has {what} {got};"
                f" {spec.axes_clause if what == 'shape' else 'clause TYPE-1'} requires {wanted}"
                f" ({spec.axes})"
            )
    return ""
