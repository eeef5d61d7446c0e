"""Questions: one check of one subject on one layer, and the plan of all that are to be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from ropebridge_conformance.judging.bench import Bench, hooks_of
from ropebridge_conformance.judging.findings import Finding
from ropebridge_conformance.judging.ids import DTYPES, Id
from ropebridge_conformance.zoo.scenarios import SCENARIO_BY_ID, Scenario, possible
from ropebridge_conformance.zoo.specimens import Case, Specimen, specimen
from ropebridge_spec import HOOKS, HookSpec, Variant


@dataclass(frozen=True)
class Question:
    """Hold one check, put to one layer, called in one way.

    asked: the check. point: the hook point, None where a check is about the layer as a whole.
    entry: the layer in the zoo. situation: how it is called.
    """

    asked: Check
    point: HookSpec | None
    entry: Case = field(hash=False)
    situation: Scenario
    dtype: str
    device: str

    @property
    def check(self) -> str:
        """Return the name of the check."""
        return self.asked.name

    @property
    def clause(self) -> str:
        """Return the clause that is asked about."""
        return self.asked.clause(self.point)

    @property
    def hook(self) -> str | None:
        """Return the name of the hook point."""
        return None if self.point is None else self.point.name

    @property
    def case(self) -> str:
        """Return the id of the layer."""
        return self.entry.id

    @property
    def family(self) -> str:
        """Return the name of the layer's family."""
        return self.entry.family

    @property
    def scenario(self) -> str:
        """Return the id of the way of calling."""
        return self.situation.id

    @property
    def id(self) -> Id:
        """Return the id of the question, whoever it is put to."""
        return Id(self.check, self.hook, self.case, self.scenario, self.dtype, self.device)

    @property
    def specimen(self) -> Specimen:
        """Return the layer in question."""
        return specimen(self.case, getattr(torch, self.dtype), self.device)


About = Literal["layer", "class"]


ClauseOf = Callable[[HookSpec | None], str]
Ask = Callable[[Bench, "Question"], Finding]


@dataclass(frozen=True, eq=False)
class Check:
    """Describe one kind of question.

    name: a sentence, which is that of the function; the test's name is `test_` and it.
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
    clause: ClauseOf
    ask: Ask
    scenarios: Sequence[str]
    hooks: Callable[[HookSpec], bool] | None = None
    dtypes: Sequence[str] = DTYPES
    where: Callable[[Scenario, Variant], bool] = possible
    about: About = "layer"
    also: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "__module__", self.ask.__module__)

    def __reduce__(self) -> str:
        """Return its name in its file, where another process finds it."""
        return self.name

    def __call__(self, bench: Bench, question: Question) -> Finding:
        """Return the answer to a question."""
        return self.ask(bench, question)

    @property
    def clauses(self) -> frozenset[str]:
        """Return every clause it decides."""
        points: Sequence[HookSpec | None] = (
            [hook for hook in HOOKS if self.hooks(hook)] if self.hooks else [None]
        )
        return frozenset([*map(self.clause, points), *self.also])

    def questions(self, case: Case, dtype: str, device: str) -> Iterator[Question]:
        """Yield every question this check has about one layer in one dtype on one device."""
        if dtype not in self.dtypes:
            return
        shape = specimen(case.id, torch.float32, "cpu")
        for scenario in (SCENARIO_BY_ID[id] for id in self.scenarios):
            if not self.where(scenario, shape.variant):
                continue
            points: list[HookSpec | None] = [None]
            if self.hooks is not None:
                points = [hook for hook in hooks_of(shape, scenario) if self.hooks(hook)]
            for point in points:
                yield Question(self, point, case, scenario, dtype, device)


def check(
    clause: str | ClauseOf,
    *,
    scenarios: Sequence[str],
    hooks: Callable[[HookSpec], bool] | None = None,
    dtypes: Sequence[str] = DTYPES,
    where: Callable[[Scenario, Variant], bool] = possible,
    about: About = "layer",
    also: Sequence[str] = (),
) -> Callable[[Ask], Check]:
    """Make a check of a function that answers questions, under its name; the fields are those of
    `Check`, and `clause` may be one clause, whatever the hook point."""
    clause_of = (lambda hook: clause) if isinstance(clause, str) else clause

    def made(ask: Ask) -> Check:
        return Check(ask.__name__, clause_of, ask, scenarios, hooks, dtypes, where, about, also)

    return made


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
