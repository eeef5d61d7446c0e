"""Results as a badge: the JSON of a shields.io endpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ropebridge_conformance.judging.verdicts import BAD, Outcome, Verdict

WORDS: Mapping[Outcome, str] = {
    Outcome.JUDGE_ERROR: "judge errors",
    Outcome.FAIL: "failing",
    Outcome.VACUOUS: "vacuous",
    Outcome.NOT_EXERCISED: "not exercised",
    Outcome.KNOWN_FAILURE: "known failures",
    Outcome.UNSUPPORTED: "unsupported",
    Outcome.PASS: "passing",
}
"""Every outcome in words, the worst first: a badge has the colour of the worst there is."""

COLOURS: Mapping[Outcome, str] = {
    Outcome.JUDGE_ERROR: "blue",
    Outcome.FAIL: "red",
    Outcome.VACUOUS: "orange",
    Outcome.NOT_EXERCISED: "yellow",
    Outcome.KNOWN_FAILURE: "yellowgreen",
    Outcome.UNSUPPORTED: "green",
    Outcome.PASS: "brightgreen",
}
"""A colour of its own for each, of those that shields.io names."""


def badge(provenance: Mapping[str, object], verdicts: Iterable[Verdict]) -> dict[str, object]:
    """Return the badge. Every outcome that came is counted by name; a run that was cut short says
    so, and one without verdicts too."""
    counts = Counter(verdict.outcome for verdict in verdicts)
    label = f"ropebridge spec {provenance.get('ropebridge_spec', '?')}"
    there = [outcome for outcome in WORDS if counts[outcome]]
    said = ", ".join(f"{counts[outcome]} {WORDS[outcome]}" for outcome in there) or "no verdicts"
    expected, whole = provenance.get("expected"), True
    if expected is not None and expected != counts.total():
        said, whole = f"incomplete, {counts.total()} of {expected}: {said}", False
    colour = COLOURS[there[0]] if there and (whole or there[0] in BAD) else "lightgrey"
    return {
        "schemaVersion": 1,
        "label": label,
        "message": said,
        "color": colour,
        "isError": not whole or not there or there[0] in BAD,
    }
