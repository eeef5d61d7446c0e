"""Questions: one check of one subject on one layer, and the plan of all that are to be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ropebridge_conformance.judging.bench import Bench, hooks_of
from ropebridge_conformance.judging.findings import Finding
from ropebridge_conformance.judging.ids import DTYPES, Id
from ropebridge_conformance.zoo.scenarios import SCENARIO_BY_ID, Scenario, possible
from ropebridge_conformance.zoo.specimens import CASE_BY_ID, Specimen, specimen
from ropebridge_spec import HOOKS, HookSpec, Variant


@dataclass(frozen=True)
class Question:
    """Hold one check, put to one layer; `hook` is None where a check is about the layer as a
    whole."""

    check: str
    clause: str
    hook: str | None
    case: str
    scenario: str
    dtype: str
    device: str

    @property
    def id(self) -> Id:
        """Return the id of the question, whoever it is put to."""
        return Id(self.check, self.hook, self.case, self.scenario, self.dtype, self.device)

    @property
    def family(self) -> str:
        """Return the name of the layer's family."""
        return CASE_BY_ID[self.case].family

    @property
    def specimen(self) -> Specimen:
        """Return the layer in question."""
        return specimen(self.case, getattr(torch, self.dtype), self.device)

    @property
    def situation(self) -> Scenario:
        """Return how the layer is called."""
        return SCENARIO_BY_ID[self.scenario]


About = Literal["layer", "class"]


@dataclass(frozen=True)
class Check:
    """Describe one kind of question.

    name: a sentence; the test's name is `test_` and it.
    clause: the clause it checks, for a hook point or for the layer as a whole.
    ask: answers a question.
    scenarios: the ways of calling it is asked in.
    hooks: which hook points it is asked of; None where it is about the layer as a whole.
    dtypes: the dtypes it is asked in.
    where: whether it can be asked of a layer, called so.
    also: clauses that it decides besides, in layers that bring them into play.
    about: the `layer` that a description and weights say, whatever class they are of; or the
        `class`, whose own forward is a witness.
    """

    name: str
    clause: Callable[[HookSpec | None], str]
    ask: Callable[[Bench, Question], Finding]
    scenarios: Sequence[str]
    hooks: Callable[[HookSpec], bool] | None = None
    dtypes: Sequence[str] = DTYPES
    where: Callable[[Scenario, Variant], bool] = possible
    about: About = "layer"
    also: Sequence[str] = ()

    @property
    def clauses(self) -> frozenset[str]:
        """Return every clause it decides."""
        points: Sequence[HookSpec | None] = (
            [hook for hook in HOOKS if self.hooks(hook)] if self.hooks else [None]
        )
        return frozenset([*map(self.clause, points), *self.also])

    def questions(self, case: str, dtype: str, device: str) -> Iterator[Question]:
        """Yield every question this check has about one layer in one dtype on one device."""
        if dtype not in self.dtypes:
            return
        shape = specimen(case, torch.float32, "cpu")
        for scenario in (
            name for name in self.scenarios if self.where(SCENARIO_BY_ID[name], shape.variant)
        ):
            points: list[HookSpec | None] = [None]
            if self.hooks is not None:
                points = [
                    hook for hook in hooks_of(shape, SCENARIO_BY_ID[scenario]) if self.hooks(hook)
                ]
            for point in points:
                yield Question(
                    self.name,
                    self.clause(point),
                    point.name if point else None,
                    case,
                    scenario,
                    dtype,
                    device,
                )


def clause(id: str) -> Callable[[HookSpec | None], str]:
    """Return one clause, whatever the hook point."""
    return lambda hook: id


def value_clause(hook: HookSpec | None) -> str:
    """Return the clause that says what a hook point holds."""
    assert hook is not None
    return hook.value_clause


def axes_clause(hook: HookSpec | None) -> str:
    """Return the clause that says how it lies."""
    assert hook is not None
    return hook.axes_clause


def any_hook(hook: HookSpec) -> bool:
    """Accept every hook point of the contract."""
    return True
