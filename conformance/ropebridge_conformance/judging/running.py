"""Run: load the subjects, put every question of a plan to them, and have each verdict on disk as
soon as it is given."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ropebridge_conformance.judging.clauses import clauses_asked
from ropebridge_conformance.judging.known_failures import KnownFailure
from ropebridge_conformance.judging.planning import Selection, Unit, part_of, plan_hash, units_of
from ropebridge_conformance.judging.pool import Pool
from ropebridge_conformance.judging.profiles import Profile
from ropebridge_conformance.judging.shards import Shard
from ropebridge_conformance.judging.verdicts import Outcome, Verdict
from ropebridge_conformance.judging.worker import Loaded, Refused, Task
from ropebridge_conformance.results.files import Recorder, header

LOADING = "the_subject_can_be_loaded"
"""The name under which a subject that cannot be loaded is failed; no clause of the contract says
it."""


@dataclass(frozen=True)
class Run:
    """Hold what a run is to do.

    subjects: import paths. jobs: processes. timeout: seconds for a subject to be loaded, and to
        answer one question. order: the seed of a random order of layers, and of the questions about
        each, so that none leans on what came before it; None is the plan's own order.
    """

    subjects: Sequence[str]
    selection: Selection
    profile: Profile
    shard: Shard | None
    known: Sequence[KnownFailure]
    jobs: int
    timeout: float
    order: int | None = None


@dataclass(frozen=True)
class Begun:
    """Hold a run whose subjects were loaded, or were not."""

    run: Run
    units: Sequence[Unit]
    plan: str
    loaded: dict[str, Loaded | Refused]

    @property
    def names(self) -> dict[str, str]:
        """Return the name of each subject that was loaded, by its import path."""
        return {
            path: found.name for path, found in self.loaded.items() if isinstance(found, Loaded)
        }

    @property
    def refused(self) -> list[Verdict]:
        """Return one verdict for each subject that was not."""
        return [
            not_loaded(path, found.reason)
            for path, found in self.loaded.items()
            if isinstance(found, Refused)
        ]

    @cached_property
    def tasks(self) -> list[Task]:
        """Return what the processes are given: the units of the subjects that were loaded, with
        the questions that are put to them. An id may name one subject."""
        made = []
        for unit in (unit for unit in self.units if unit.subject in self.names):
            name = self.names[unit.subject]
            put = tuple(q for q in unit.questions if self.run.selection.wants(q, name))
            if put:
                made.append(Task(unit.subject, name, unit.key, put, tuple(self.run.known)))
        return made if self.run.order is None else shuffled(made, self.run.order)

    @property
    def expected(self) -> int:
        """Return how many verdicts there will be."""
        return sum(len(task.questions) for task in self.tasks) + len(self.refused)

    @property
    def header(self) -> str:
        """Return the first line of results: provenance, and what a reader needs to tell whether the
        run is whole."""
        shard = str(self.run.shard) if self.run.shard else None
        devices = sorted({unit.device for unit in self.units})
        run = {
            "names": self.names,
            "plan": self.plan,
            "shard": shard,
            "expected": self.expected,
            "clauses": self.clauses,
            "conventions": self.conventions,
            "order": self.run.order,
        }
        return header(self.run.subjects, devices, run)

    @property
    def conventions(self) -> dict[str, dict[str, str]]:
        """Return subject -> what it declares to do otherwise, of those that do; it is translated
        before it is judged."""
        return {
            found.name: dict(found.conventions)
            for found in self.loaded.values()
            if isinstance(found, Loaded) and found.conventions
        }

    @cached_property
    def clauses(self) -> list[str]:
        """Return the clauses that are asked about."""
        return clauses_asked(question for task in self.tasks for question in task.questions)


def shuffled(tasks: Sequence[Task], seed: int) -> list[Task]:
    """Return tasks, and the questions of each, in a random order."""
    draw = random.Random(seed)
    mixed = [
        replace(task, questions=tuple(draw.sample(task.questions, len(task.questions))))
        for task in tasks
    ]
    draw.shuffle(mixed)
    return mixed


def begin(run: Run, pool: Pool) -> Begun:
    """Plan a run while the processes start, load its subjects, and return what is to be done.

    Raises:
        UnknownFamily, PlanError, ShardError: what is asked for is not there.
    """
    units = units_of(run.subjects, run.selection, run.profile)
    part = part_of(units, run.shard)
    return Begun(run, part, plan_hash(units), {path: pool.load(path) for path in run.subjects})


def carried_out(begun: Begun, pool: Pool, results: Path) -> Iterator[Verdict]:
    """Yield every verdict, written to `results` before it is handed on: a run that is interrupted
    loses nothing."""
    with closing(Recorder(results, begun.header)) as recorder:
        for verdict in all_verdicts(begun, pool):
            recorder.note(verdict)
            yield verdict


def all_verdicts(begun: Begun, pool: Pool) -> Iterator[Verdict]:
    """Yield the verdicts, first of the subjects that could not be loaded, then of the others."""
    yield from begun.refused
    yield from pool.judged(begun.tasks)


def not_loaded(path: str, reason: str) -> Verdict:
    """Return the one verdict on a subject that cannot be loaded; it has no layer, so no family,
    case, dtype or device."""
    return Verdict(path, "-", LOADING, None, "-", "-", "-", "-", Outcome.FAIL, reason=reason)
