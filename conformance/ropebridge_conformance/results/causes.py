"""Causes: the bad verdicts of a run, gathered under what they come from, root causes first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ropebridge_conformance.judging.blame import OF_ONE_STAGE, STAGE_CHECK
from ropebridge_conformance.judging.verdicts import BAD, Outcome, Verdict
from ropebridge_conformance.subjects.answers import NotShown

OF_A_STAGE = (STAGE_CHECK, *OF_ONE_STAGE)
"""Checks of one stage: that one hook point fails several of them has one cause."""
NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")
RAISED = "raised "
SHOWN = 20
"""So many causes are printed, one line each."""

Key = tuple[str, str, str]


@dataclass
class Cause:
    """Hold one root cause, as far as its verdicts were counted.

    example: the first verdict that shows it, else the first that follows from it.
    roots, followers: how many verdicts show it, and how many follow.
    """

    example: Verdict
    roots: int = 0
    followers: int = 0
    layers: set[str] = field(default_factory=set)
    dtypes: set[str] = field(default_factory=set)

    @property
    def verdicts(self) -> int:
        """Return how many verdicts it accounts for."""
        return self.roots + self.followers

    def add(self, verdict: Verdict) -> None:
        """Count a verdict under this cause."""
        if verdict.follows:
            self.followers += 1
        else:
            self.example = self.example if self.roots else verdict
            self.roots += 1
        self.layers.add(verdict.case)
        self.dtypes.add(verdict.dtype)


class Causes:
    """Gather bad verdicts under their causes, one verdict at a time."""

    def __init__(self) -> None:
        self._found: dict[Key, Cause] = {}

    def add(self, verdict: Verdict) -> None:
        """Count a verdict, if it is bad."""
        if verdict.outcome in BAD:
            self._found.setdefault(key_of(verdict), Cause(verdict)).add(verdict)

    @property
    def ranked(self) -> list[Cause]:
        """Return the causes, those of most verdicts first."""
        return sorted(self._found.values(), key=lambda cause: cause.verdicts, reverse=True)


def causes_of(verdicts: Iterable[Verdict]) -> list[Cause]:
    """Return the root causes of all bad verdicts, those of most verdicts first."""
    gathered = Causes()
    for verdict in verdicts:
        gathered.add(verdict)
    return gathered.ranked


def key_of(verdict: Verdict) -> Key:
    """Return what verdicts of one cause have in common: the stage that is wrong, the words of an
    exception, or the check and the hook point that it names."""
    if verdict.follows:
        return (verdict.subject, "stage", verdict.follows)
    if verdict.outcome != Outcome.FAIL:
        return (verdict.subject, str(verdict.outcome), first_line(verdict))
    if verdict.reason.startswith(RAISED):
        return (verdict.subject, "raised", NUMBER.sub("0", first_line(verdict)))
    place = verdict.divergent or verdict.hook or ""
    if NotShown.WORDS in verdict.reason and verdict.check not in OF_A_STAGE:
        place = NotShown.WORDS
    if verdict.check in OF_A_STAGE:
        return (verdict.subject, "stage", place)
    return (verdict.subject, verdict.check, place)


def first_line(verdict: Verdict) -> str:
    """Return the first line of what a verdict says; of a judge-error the last, which names the
    exception."""
    lines = verdict.reason.strip().splitlines() or [""]
    return lines[-1 if verdict.outcome == Outcome.JUDGE_ERROR else 0]


def told(causes: Sequence[Cause]) -> Iterator[str]:
    """Yield one line for each of the first causes, and one for the rest."""
    yield from map(line_of, causes[:SHOWN])
    if len(causes) > SHOWN:
        left = sum(cause.verdicts for cause in causes[SHOWN:])
        yield f"... and {len(causes) - SHOWN} more causes, of {left} verdicts"


def line_of(cause: Cause) -> str:
    """Return how many verdicts a cause has, where, and one of them in its own words."""
    one = cause.example
    followers = f" and {cause.followers} that follow" if cause.followers else ""
    dtypes = ", ".join(sorted(cause.dtypes))
    where = f" ({len(cause.layers)} layers, {dtypes})" if len(cause.layers) > 1 else ""
    return (
        f"{one.outcome} {one.clause} {one.divergent or one.hook or 'the layer'}: {cause.roots}"
        f" verdicts{followers}{where}: {one.id}: {first_line(one)}"
    )
