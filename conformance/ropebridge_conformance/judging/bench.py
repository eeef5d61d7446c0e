"""Bench: one subject, its layers, and the traces already made of them."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import torch

from ropebridge_conformance.judging.blame import broken_stages
from ropebridge_conformance.judging.findings import Finding
from ropebridge_conformance.judging.gaps import gaps_of
from ropebridge_conformance.judging.verdicts import Outcome
from ropebridge_conformance.stages.context import Context
from ropebridge_conformance.stages.derivatives import (
    Backward,
    Derivatives,
    Replace,
    derivatives_of,
    run_backwards,
)
from ropebridge_conformance.stages.oracle import contexts_of
from ropebridge_conformance.subjects.answers import asking, is_of_subject
from ropebridge_conformance.subjects.asked import AskedLayer
from ropebridge_conformance.subjects.traces import Trace, record
from ropebridge_conformance.zoo.calls import calls
from ropebridge_conformance.zoo.scenarios import Scenario
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_spec import HookSpec, OptIn, Subject, hook_order, ungrouped

Watch = Literal["all", "fused", "none"]
KEPT = 128
"""Edits, by hook point and scenario, whose recordings are remembered: those of one layer."""


def available_devices() -> list[str]:
    """Return cpu, and the accelerators that are present."""
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    return [device for device, there in present.items() if there]


class Bench:
    """Keep what is asked of one subject and what it answered, so that no call is made twice.

    Traces are kept for the last few layers only; questions are best asked case by case.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.layer = lru_cache(maxsize=16)(self.build)
        self.gaps = lru_cache(maxsize=64)(self._gaps)
        self.traces = lru_cache(maxsize=24)(self._traces)
        self.contexts = lru_cache(maxsize=24)(self._contexts)
        self.broken = lru_cache(maxsize=24)(self._broken)
        self.backward = lru_cache(maxsize=4)(self.run_backwards)
        self._derivatives = lru_cache(maxsize=4)(self._clean_derivatives)
        self._found: OrderedDict[tuple[str, ...], list[tuple[list[Trace], Finding]]] = OrderedDict()

    def build(self, specimen: Specimen, opted_in: Sequence[OptIn]) -> AskedLayer:
        """Return a new layer of the subject."""
        around = {"model": specimen.model()} if self.takes_model else {}
        with asking():
            own = self.subject.layer(
                specimen.module, rotary=specimen.rotary, opted_in=opted_in, **around
            )
        conventions = getattr(self.subject, "conventions", {})
        lowest = conventions.get("masked_scores") == "lowest"
        return AskedLayer(own, self.gaps(specimen), lowest=lowest)

    @property
    def takes_model(self) -> bool:
        """Return whether the subject asks for the model that a module came from."""
        return "model" in inspect.signature(self.subject.layer).parameters

    def _gaps(self, specimen: Specimen) -> dict[str, str]:
        """Return name -> reason, of what the subject declares not to have in this layer."""
        with asking():
            return gaps_of(self.subject.unsupported, specimen.module)

    def hooks_of(self, specimen: Specimen, scenario: Scenario) -> tuple[HookSpec, ...]:
        """Return the hook points that the subject should have, in contract order: all but declared
        gaps."""
        gaps = self.gaps(specimen)
        return tuple(hook for hook in hooks_of(specimen, scenario) if hook.name not in gaps)

    def watched(self, specimen: Specimen, scenario: Scenario, watch: Watch) -> tuple[str, ...]:
        """Return the names of the hook points to watch, but for declared gaps."""
        gaps = self.gaps(specimen)
        return tuple(name for name in watched(specimen, scenario, watch) if name not in gaps)

    def _traces(self, specimen: Specimen, scenario: Scenario, watch: Watch) -> list[Trace]:
        """Return the scenario's calls, recorded: all hooks watched, all but scores and pattern, or
        none."""
        layer = self.layer(specimen, scenario.opted_in)
        return record(
            layer, calls(scenario, specimen, layer), self.watched(specimen, scenario, watch)
        )

    def _contexts(
        self, specimen: Specimen, scenario: Scenario, watch: Watch = "all"
    ) -> list[Context]:
        """Return what the oracle recomputes the stages of those calls from."""
        return contexts_of(self.traces(specimen, scenario, watch), specimen, scenario)

    def _broken(self, specimen: Specimen, scenario: Scenario) -> dict[str, str]:
        """Return the stages that are wrong in the calls of a scenario without any edit, each with
        the root of its fault; none where the calls cannot be made."""
        try:
            traces = self.traces(specimen, scenario, "all")
        except Exception as error:
            if is_of_subject(error):
                return {}
            raise
        gaps = self.gaps(specimen)
        roots = broken_stages(traces, self.contexts(specimen, scenario))
        return {hook: root for hook, root in roots.items() if hook not in gaps}

    def run_backwards(
        self,
        specimen: Specimen,
        scenario: Scenario,
        watch: Watch,
        backward: Sequence[str] = (),
        edits: Mapping[str, Replace] | None = None,
    ) -> Backward:
        """Return the scenario's first call and its backward pass; `backward` names the hook points
        with a backward hook, and `edits` what some of those replace the gradient by."""
        layer = self.layer(specimen, scenario.opted_in)
        call = calls(scenario, specimen, layer)[0]
        return run_backwards(layer, call, self.watched(specimen, scenario, watch), backward, edits)

    def derivatives(
        self, specimen: Specimen, scenario: Scenario, watch: Watch, trace: Trace
    ) -> Derivatives:
        """Return what the stages of a recorded call are differentiated by; worked out once for
        calls that went the same to the bit, as they do where backward hooks alone differ."""
        if same_bits([self.backward(specimen, scenario, watch).trace], [trace]):
            return self._derivatives(specimen, scenario, watch)
        return derivatives_of(trace, specimen, scenario)

    def _clean_derivatives(
        self, specimen: Specimen, scenario: Scenario, watch: Watch
    ) -> Derivatives:
        return derivatives_of(self.backward(specimen, scenario, watch).trace, specimen, scenario)

    def once_for_the_same(
        self, traces: list[Trace], question: Any, find: Callable[[], Finding]
    ) -> Finding:
        """Return what `find` makes of recorded calls; not asked again for calls that went the same
        to the bit (another way to edit, the same edit), nor for a part of calls that passed."""
        key = (question.hook, question.case, question.scenario, question.dtype, question.device)
        found = self._found.setdefault(key, [])
        for earlier, finding in found:
            passed = finding.outcome == Outcome.PASS
            if same_bits(traces, earlier) or (passed and is_part(traces, earlier)):
                return finding
        if len(self._found) > KEPT:
            self._found.popitem(last=False)
        finding = find()
        found.append((traces, finding))
        return finding


def same_bits(one: Sequence[Trace], other: Sequence[Trace]) -> bool:
    """Return whether two recordings fired alike and hold the same numbers."""
    return is_part(one, other) and all(
        len(a.fired) == len(b.fired) for a, b in zip(one, other, strict=True)
    )


def is_part(some: Sequence[Trace], whole: Sequence[Trace]) -> bool:
    """Return whether a recording is one that watched less of the same calls: its hook points fired
    in the same order, and hold the same numbers."""
    return all(
        a.fired == [name for name in b.fired if name in a.values]
        and all(torch.equal(value, b.values[name]) for name, value in a.values.items())
        for a, b in zip(some, whole, strict=True)
    )


@lru_cache(maxsize=64)
def hooks_of(specimen: Specimen, scenario: Scenario) -> tuple[HookSpec, ...]:
    """Return the hook points a specimen has in a scenario, in contract order."""
    return hook_order(ungrouped(specimen.variant, scenario.opted_in), scenario.opted_in)


def watched(specimen: Specimen, scenario: Scenario, watch: Watch) -> tuple[str, ...]:
    """Return the names of the hook points to watch."""
    names = tuple(hook.name for hook in hooks_of(specimen, scenario))
    if watch == "fused":
        return tuple(name for name in names if name not in ("hook_attn_scores", "hook_pattern"))
    return names if watch == "all" else ()
