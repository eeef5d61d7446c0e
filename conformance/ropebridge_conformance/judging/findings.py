"""Findings: what asking a question found out."""

from __future__ import annotations

from dataclasses import dataclass

from ropebridge_conformance.judging.compare import Difference
from ropebridge_conformance.judging.verdicts import Outcome


@dataclass(frozen=True)
class Finding:
    """Hold what a check found: an outcome other than unsupported and known-failure, which are not a
    check's to give.

    follows: the hook point whose fault this failure follows, if it is no cause of its own.
    raised: whether the subject raised.
    """

    outcome: Outcome
    reason: str = ""
    difference: Difference | None = None
    divergent: str | None = None
    follows: str | None = None
    raised: bool = False


def passed(difference: Difference | None = None) -> Finding:
    """Return the finding that the clause is kept."""
    return Finding(Outcome.PASS, difference=difference)


def failed(
    reason: str, difference: Difference | None = None, divergent: str | None = None
) -> Finding:
    """Return the finding that the clause is broken, first at hook point `divergent`."""
    return Finding(Outcome.FAIL, reason, difference, divergent)


def not_exercised(reason: str) -> Finding:
    """Return the finding that the question cannot be put to this subject."""
    return Finding(Outcome.NOT_EXERCISED, reason)


def vacuous(reason: str) -> Finding:
    """Return the finding that the input could not have shown a fault."""
    return Finding(Outcome.VACUOUS, reason)
