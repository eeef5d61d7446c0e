"""The judge is judged: every mutant must be killed, at the stage its fault is in; the unmutated control must pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ropebridge_conformance.bench import Bench
from ropebridge_conformance.judge import judge, plan
from ropebridge_conformance.mutants import MUTANT, Mutant
from ropebridge_conformance.questions import Question
from ropebridge_conformance.subjects.reference import Factory
from ropebridge_conformance.verdicts import BAD, Verdict
from ropebridge_conformance.zoo import COVER

ARMS = (
    "hooks_fire_once_in_contract_order",
    "a_hook_has_the_axes_of_the_contract",
    "a_stage_gives_the_value_of_its_clause",
    "a_replacement_is_what_the_rest_of_the_layer_sees",
)
"""The checks that name a stage, in the order in which they are asked."""


@dataclass(frozen=True)
class Trial:
    """What became of a mutant in one dtype.

    killer: the first verdict against it, or None if it survived. exercised: whether any layer could show its fault.
    """

    name: str
    dtype: str
    killer: Verdict | None
    exercised: bool

    @property
    def mutant(self) -> Mutant:
        """The mutant of this name."""
        return MUTANT[self.name]

    @property
    def killed(self) -> bool:
        """Whether any check failed it."""
        return self.killer is not None

    @property
    def named(self) -> bool:
        """Whether the first divergent stage is the one its fault is in."""
        return self.killer is not None and self.killer.divergent == self.mutant.stage


def try_mutant(mutant: Mutant, dtype: str, device: str = "cpu") -> Trial:
    """Put a mutant through the arms on the first layer that can show its fault; the first failure kills it.

    Where one layer does not kill it, the next is tried: a mutant survives only if every layer lets it pass.
    """
    bench = Bench(mutant.subject())
    exercised = False
    for questions in by_case(mutant, dtype, device):
        exercised = True
        for question in questions:
            verdict = judge(bench, question)
            if verdict.verdict in BAD:
                return Trial(mutant.name, dtype, verdict, exercised)
    return Trial(mutant.name, dtype, None, exercised)


def by_case(mutant: Mutant, dtype: str, device: str) -> Iterator[list[Question]]:
    """The arms' questions on every layer that can show the fault, a layer at a time, scenarios that can show it only."""
    for case in COVER:
        asked = [q for q in plan([case.id], (dtype,), (device,)) if q.check in ARMS and mutant.applies(q.specimen, q.situation)]
        if asked:
            yield [q for arm in ARMS for q in asked if q.check == arm]


def false_alarms(dtypes: Sequence[str], device: str = "cpu") -> Iterator[Verdict]:
    """Every verdict of the arms on the unmutated reference: none may be bad."""
    bench = Bench(Factory())
    for question in plan(dtypes=dtypes, devices=(device,)):
        if question.check in ARMS:
            yield judge(bench, question)
