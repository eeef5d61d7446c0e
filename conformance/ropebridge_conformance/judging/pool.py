"""Processes at work: each verdict as it comes, and one in place of each answer that a subject does
not give."""

from __future__ import annotations

import signal
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait
from time import monotonic
from types import TracebackType
from typing import Any

from ropebridge_conformance.judging.findings import Finding, failed
from ropebridge_conformance.judging.judge import expected_to_fail, verdict
from ropebridge_conformance.judging.processes import processes
from ropebridge_conformance.judging.questions import Question
from ropebridge_conformance.judging.verdicts import Outcome, Verdict
from ropebridge_conformance.judging.worker import Loaded, Ready, Refused, Task, serve

PATIENCE = 5
"""So many questions in a row that a subject leaves unanswered; after that it is asked no more."""
START = 300.0
"""Seconds within which a process must have started."""


class WorkerError(Exception):
    """Report a process of the judge's own that does not start; the message says what came of it."""


class Desk:
    """Hold one process, which is replaced when it hangs or dies, and the task it is at.

    timeout: seconds a subject may take to be loaded, and to answer one question.
    silence: how many questions in a row each subject left unanswered; desks may share it.
    """

    def __init__(self, timeout: float, silence: Counter[str]) -> None:
        self.timeout, self.silence = timeout, silence
        self.task: Task | None = None
        self.loaded: Loaded | Refused | None = None
        self._left: deque[Question] = deque()
        self._start()

    @property
    def deadline(self) -> float:
        """Return when the next word from the process must have come, on the monotonic clock."""
        return self._since + (self.timeout if self._ready else START)

    @property
    def ears(self) -> tuple[Any, Any]:
        """Return what becomes ready when the process says something, or ends."""
        return self._pipe, self._process.sentinel

    def give(self, task: Task) -> list[Verdict]:
        """Put a task on an idle desk. The verdicts come at once where its subject is asked no
        more."""
        if self.silence[task.subject] >= PATIENCE:
            return [not_asked(task, question) for question in task.questions]
        self.task, self.loaded, self._since = task, None, monotonic()
        self._left = deque(task.questions)
        self._pipe.send(task)
        return []

    def heard(self) -> list[Verdict]:
        """Return what all words that have come by now come to, or that none came. The task is over
        when it has no question left."""
        made: list[Verdict] = []
        heard = False
        try:
            while self._pipe.poll():
                message = self._pipe.recv()
                self._since = monotonic()
                made += self._took(message)
                heard = True
        except (EOFError, OSError):
            return made + self._unanswered(f"its process ended: {self._ending()}")
        if heard:
            return made
        if not self._process.is_alive():
            return self._unanswered(f"its process ended: {self._ending()}")
        if self.task is not None:
            self.silence[self.task.subject] += 1
        return self._unanswered(
            f"no answer within {self.timeout:g} seconds; its process was stopped"
        )

    def close(self) -> None:
        """End the process, whatever it is at."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _start(self) -> None:
        context: Any = processes()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=False)
        self._process.start()
        theirs.close()
        self._ready, self._since = False, monotonic()

    def _ending(self) -> str:
        self._process.join(5)
        code: int | None = self._process.exitcode
        return (
            f"killed by {signal.Signals(-code).name}"
            if code is not None and code < 0
            else f"exit code {code}"
        )

    def _took(self, message: Ready | Loaded | Refused | Verdict) -> list[Verdict]:
        if isinstance(message, Ready):
            self._ready = True
            return []
        assert self.task is not None
        if isinstance(message, Verdict):
            self._left.popleft()
            self.silence[self.task.subject] = 0
            self._finish()
            return [message]
        self.loaded = message
        made = self._all_failed(message.reason) if isinstance(message, Refused) else []
        self._finish()
        return made

    def _finish(self) -> None:
        """End the task where nothing of it is left."""
        if not self._left:
            self.task = None

    def _all_failed(self, reason: str) -> list[Verdict]:
        """Return a failure of every question of the task, whose subject cannot be loaded."""
        assert self.task is not None
        made = [unanswered(self.task, question, reason) for question in self._left]
        self._left.clear()
        return made

    def _unanswered(self, what: str) -> list[Verdict]:
        """Put a new process in the place of one that ended or was stopped, give it what is left,
        and return a verdict on the question that the old one was at."""
        self.close()
        if not self._ready:
            raise WorkerError(f"a process of the judge did not start: {what}")
        self._start()
        return [] if self.task is None else self._went_wrong(self.task, what)

    def _went_wrong(self, task: Task, what: str) -> list[Verdict]:
        if self.loaded is None:
            self.loaded = Refused(f"cannot load subject {task.subject!r}: {what}")
            made = self._all_failed(self.loaded.reason)
        else:
            made = [unanswered(task, self._left.popleft(), what)]
        self.task = None
        return made + (self.give(task.rest(self._left)) if self._left else [])


def unanswered(task: Task, question: Question, reason: str) -> Verdict:
    """Return the verdict in place of one that did not come."""
    return verdict(
        task.name,
        question,
        expected_to_fail(failed(reason, divergent=question.hook), question, task.known, task.name),
    )


def not_asked(task: Task, question: Question) -> Verdict:
    """Return the verdict on what a subject is not asked any more."""
    return verdict(
        task.name,
        question,
        Finding(
            Outcome.NOT_EXERCISED,
            f"not asked: the subject had left {PATIENCE} questions in a row unanswered",
        ),
    )


class Pool:
    """Keep so many desks; a context manager, which leaves no process behind."""

    def __init__(self, jobs: int, timeout: float) -> None:
        self.silence: Counter[str] = Counter()
        self.desks = [Desk(timeout, self.silence) for _ in range(jobs)]

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for desk in self.desks:
            desk.close()

    def load(self, subject: str) -> Loaded | Refused:
        """Load a subject in another process, and say its name, or why it cannot be loaded."""
        desk = self.desks[0]
        desk.give(Task(subject, subject, f"to load {subject}"))
        while desk.task is not None:
            list(listen([desk]))
        assert desk.loaded is not None
        self.silence.clear()
        return desk.loaded

    def judged(self, tasks: Iterable[Task]) -> Iterator[Verdict]:
        """Yield every verdict of every task, as they come."""
        waiting = deque(tasks)
        while waiting or any(desk.task for desk in self.desks):
            for desk in self.desks:
                if waiting and desk.task is None:
                    yield from desk.give(waiting.popleft())
            yield from listen([desk for desk in self.desks if desk.task is not None])


def put(desk: Desk, task: Task) -> Verdict:
    """Return the verdict on a task of one question, which an idle desk is given."""
    made = desk.give(task)
    while not made:
        made = list(listen([desk]))
    return made[0]


def listen(desks: list[Desk]) -> Iterator[Verdict]:
    """Wait until a desk has something to say or has been silent too long, and hear those."""
    if not desks:
        return
    ready = wait(
        [ear for desk in desks for ear in desk.ears],
        max(0.0, min(desk.deadline for desk in desks) - monotonic()),
    )
    for desk in desks:
        if set(desk.ears) & set(ready) or monotonic() >= desk.deadline:
            yield from desk.heard()
