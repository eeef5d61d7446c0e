"""Process in which a subject is asked, so that one that hangs or dies takes nothing else along."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection

from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.judge import judge, single_threaded
from ropebridge_conformance.judging.known_failures import KnownFailure
from ropebridge_conformance.judging.questions import Question
from ropebridge_conformance.subjects.loading import SubjectError, load_subject


@dataclass(frozen=True)
class Task:
    """Hold questions to one subject.

    subject: its import path. name: what verdicts call it.
    key: consecutive tasks of the same key share a bench.
    questions: in the order in which they are put; where there are none, the subject is only loaded.
    """

    subject: str
    name: str
    key: str
    questions: Sequence[Question] = ()
    known: Sequence[KnownFailure] = ()

    def rest(self, questions: Iterable[Question]) -> Task:
        """Return the task with only these questions left."""
        return replace(self, questions=tuple(questions))


@dataclass(frozen=True)
class Ready:
    """Say that the process has started and takes tasks."""


@dataclass(frozen=True)
class Loaded:
    """Say that the subject of the task was loaded; this is its name, and what it declares to do
    otherwise."""

    name: str
    conventions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """Say that the subject of the task cannot be loaded; this is why."""

    reason: str


def serve(pipe: Connection) -> None:
    """Take tasks from the pipe and answer them, a message for each verdict, until the other end is
    closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    single_threaded()
    pipe.send(Ready())
    desk: dict[str, Bench] = {}
    try:
        while True:
            answer(pipe.recv(), pipe, desk)
    except (EOFError, BrokenPipeError):
        return


def answer(task: Task, pipe: Connection, desk: dict[str, Bench]) -> None:
    """Load the subject unless it is on the desk already, and put the questions to it."""
    if task.key not in desk:
        desk.clear()
        try:
            desk[task.key] = Bench(load_subject(task.subject))
        except SubjectError as error:
            pipe.send(Refused(str(error)))
            return
    subject = desk[task.key].subject
    pipe.send(Loaded(subject.name, dict(getattr(subject, "conventions", {}))))
    for question in task.questions:
        pipe.send(judge(desk[task.key], question, task.known))
