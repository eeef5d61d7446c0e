"""Findings: what asking a question found out."""

from __future__ import annotations

from dataclasses import dataclass

from ropebridge_conformance.judging.compare import Difference
from ropebridge_conformance.judging.heat import heat_map
from ropebridge_conformance.judging.verdicts import Outcome, Verdict


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


def verdict_of(
    finding: Finding,
    *,
    subject: str,
    clause: str,
    check: str,
    hook: str | None,
    family: str,
    case: str,
    scenario: str,
    dtype: str,
    device: str,
) -> Verdict:
    """Return the line of results for what was found out about a subject, by its name."""
    difference = finding.difference
    broken = None if difference is None or difference.fits else difference
    heat = None if broken is None or broken.ratios is None else broken.ratios
    return Verdict(
        subject,
        clause,
        check,
        hook,
        family,
        case,
        dtype,
        device,
        finding.outcome,
        error=difference.error if difference else None,
        bound=difference.bound if difference else None,
        divergent=finding.divergent,
        follows=finding.follows,
        reason=finding.reason,
        scenario=scenario,
        worst=None if broken is None else broken.index,
        heat=None if heat is None else heat_map(heat, finding.divergent),
    )
