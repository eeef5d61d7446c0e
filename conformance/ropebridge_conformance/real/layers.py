"""Every layer of a model, judged stage by stage: the judge's own checks on recorded calls of real
text."""

from __future__ import annotations

from collections.abc import Iterator

from ropebridge_conformance.checks.firing import judge_axes, judge_order
from ropebridge_conformance.checks.values import judge_stage
from ropebridge_conformance.judging.bench import hooks_of
from ropebridge_conformance.judging.findings import Finding, verdict_of
from ropebridge_conformance.judging.verdicts import Verdict
from ropebridge_conformance.real.recording import Recorded
from ropebridge_conformance.stages.oracle import context_of

VALUES = "a_stage_gives_the_value_of_its_clause"


def judge_layer(layer: Recorded, subject: str) -> Iterator[Verdict]:
    """Yield the verdicts on the order of a layer's hooks, and on the axes and the value of each."""
    specimen, scenario, traces = layer.specimen, layer.scenario, [layer.trace]
    contexts = [context_of(layer.trace, specimen, scenario)]
    yield verdict(
        layer,
        subject,
        "FIRE-1",
        "hooks_fire_once_in_contract_order",
        None,
        judge_order(traces, [hook.name for hook in hooks_of(specimen, scenario)]),
    )
    for hook in hooks_of(specimen, scenario):
        axes = judge_axes(hook.name, traces, specimen.variant)
        yield verdict(
            layer, subject, hook.axes_clause, "a_hook_has_the_axes_of_the_contract", hook.name, axes
        )
        value = judge_stage(hook.name, traces, contexts, specimen, scenario)
        yield verdict(layer, subject, hook.value_clause, VALUES, hook.name, value)


def verdict(
    layer: Recorded, subject: str, clause: str, check: str, hook: str | None, finding: Finding
) -> Verdict:
    """Return the line of results for a finding about a layer."""
    module = layer.specimen.module
    return verdict_of(
        finding,
        subject=subject,
        clause=clause,
        check=check,
        hook=hook,
        family=str(getattr(module.config, "model_type", type(module).__name__)),
        case=layer.scenario.id,
        scenario="",
        dtype=str(layer.specimen.dtype).removeprefix("torch."),
        device=layer.specimen.device.type,
    )
