"""Findings: what asking a question found out."""

from __future__ import annotations

from dataclasses import dataclass

from ropebridge_conformance.judging.compare import Difference
from ropebridge_conformance.judging.verdicts import Outcome


@dataclass(frozen=True)
class Finding:
    """Hold what a check found: an outcome other than unsupported and known-failure, which are not a
    check's to give."""

    outcome: Outcome
    reason: str = ""
    difference: Difference | None = None
    divergent: str | None = None


def passed(difference: Difference | None = None) -> Finding:
    """Return the finding that the clause is kept."""
    return Finding(Outcome.PASS, difference=difference)


def failed(
    reason: str, difference: Difference | None = None, divergent: str | None = None
) -> Finding:
    """Return the finding that the clause is broken, first at hook point `divergent`."""
    return Finding(Outcome.FAIL, reason, difference, divergent)


def vacuous(reason: str) -> Finding:
    """Return the finding that the input could not have shown a fault."""
    return Finding(Outcome.VACUOUS, reason)
