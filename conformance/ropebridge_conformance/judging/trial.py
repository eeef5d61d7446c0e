"""Judge is judged: every mutant must be killed, at the stage its fault is in; the unmutated control
must pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product

import torch

from ropebridge_conformance.checks import CHECK_BY_NAME
from ropebridge_conformance.judging.bench import Bench, watched
from ropebridge_conformance.judging.compare import compare
from ropebridge_conformance.judging.judge import judge, plan
from ropebridge_conformance.judging.questions import Question
from ropebridge_conformance.judging.verdicts import BAD, Verdict
from ropebridge_conformance.mutants.catalogue import MUTANT_BY_NAME
from ropebridge_conformance.mutants.equivalent import Equivalent
from ropebridge_conformance.mutants.mutant import ARMS, Mutant
from ropebridge_conformance.stages.context import expect
from ropebridge_conformance.stages.oracle import contexts_of
from ropebridge_conformance.subjects.reference import Factory
from ropebridge_conformance.subjects.traces import record
from ropebridge_conformance.zoo.calls import calls
from ropebridge_conformance.zoo.scenarios import CORE_CALLS as CORE_SCENARIOS
from ropebridge_conformance.zoo.scenarios import SCENARIO_BY_ID, Scenario, possible
from ropebridge_conformance.zoo.specimens import CORE as CORE_CASES
from ropebridge_conformance.zoo.specimens import COVER, Specimen, specimen

SEEDS = range(1, 12)
"""Of the inputs of correct runs: with the core layers and scenarios these are more than five
hundred a dtype."""

HONEST_ON = ("llama", "gemma2_local", "gpt_oss_local")
"""Layers on which changes that are no faults are tried: a plain one, one with a softcap and a
window, one with sinks and biases."""


@dataclass(frozen=True)
class Trial:
    """Hold what became of a mutant in one dtype.

    killer: the first verdict against it, or None if it survived. exercised: whether any layer could
        show its fault.
    """

    name: str
    dtype: str
    killer: Verdict | None
    exercised: bool

    @property
    def mutant(self) -> Mutant:
        """Return the mutant of this name."""
        return MUTANT_BY_NAME[self.name]

    @property
    def killed(self) -> bool:
        """Return whether any check failed it."""
        return self.killer is not None

    @property
    def named(self) -> bool:
        """Return whether the first divergent stage is the one its fault is in."""
        return self.killer is not None and self.killer.divergent == self.mutant.stage


def try_mutant(mutant: Mutant, dtype: str, device: str = "cpu") -> Trial:
    """Put a mutant through its arms on the first layer that can show its fault; the first failure
    kills it.

    Where one layer does not kill it, the next is tried: a mutant survives only if every layer lets
    it pass.
    """
    bench = Bench(mutant.subject())
    exercised = False
    for questions in by_case(mutant, dtype, device):
        exercised = True
        for question in questions:
            verdict = judge(bench, question)
            if verdict.outcome in BAD:
                return Trial(mutant.name, dtype, verdict, exercised)
    return Trial(mutant.name, dtype, None, exercised)


def by_case(mutant: Mutant, dtype: str, device: str) -> Iterator[list[Question]]:
    """Yield the arms' questions on every layer that can show the fault, one layer at a time,
    scenarios that can show it only."""
    for case in COVER:
        asked = [
            q
            for arm in mutant.arms
            for q in CHECK_BY_NAME[arm].questions(case, dtype, device)
            if mutant.applies(q.specimen, q.situation)
        ]
        if asked:
            yield asked


def false_alarms(dtypes: Sequence[str], device: str = "cpu") -> Iterator[Verdict]:
    """Yield every verdict of the arms on the unmutated reference: none may be bad."""
    bench = Bench(Factory())
    for question in plan(dtypes=dtypes, devices=(device,)):
        if question.check in ARMS:
            yield judge(bench, question)


def correct_runs(dtype: str, device: str = "cpu", every: int = 1) -> Iterator[str | None]:
    """Yield runs of the unmutated reference on inputs of many seeds, each judged at every hook: the
    first stage outside its bound, which there must not be. `every` of 20 takes one run in 20."""
    for case, id, seed in islice(product(CORE_CASES, CORE_SCENARIOS, SEEDS), 0, None, every):
        layer, scenario = specimen(case.id, getattr(torch, dtype), device), SCENARIO_BY_ID[id]
        if possible(scenario, layer.variant):
            yield first_outside(layer, scenario, seed)


def first_outside(own: Specimen, scenario: Scenario, seed: int) -> str | None:
    """Return the first stage of the reference that is outside its bound, in any call of a
    scenario."""
    layer = Factory().layer(own.module, rotary=own.rotary, opted_in=scenario.opted_in)
    traces = record(layer, calls(scenario, own, layer, seed), watched(own, scenario, "all"))
    for trace, context in zip(traces, contexts_of(traces, own, scenario), strict=True):
        found = next(
            (
                name
                for name in trace.fired
                if not compare(trace.values[name], expect(name, context)).fits
            ),
            None,
        )
        if found is not None:
            return found
    return None


def survives(
    equivalent: Equivalent, dtype: str, device: str = "cpu", cases: Collection[str] = HONEST_ON
) -> Iterator[Verdict]:
    """Yield the verdicts on a change that is no fault, on those of the layers that it changes
    anything of, or on the first other that it does: none may be bad."""
    bench = Bench(equivalent.mutant.subject())
    layers = list(by_case(equivalent.mutant, dtype, device))
    for questions in [one for one in layers if one[0].case in cases] or layers[:1]:
        for question in questions:
            yield judge(bench, question)
