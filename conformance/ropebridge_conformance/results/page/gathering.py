"""Define what the page holds: counts for every cell, and details of what is no pass, however many
verdicts there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from ropebridge_conformance.judging.clauses import clauses_told
from ropebridge_conformance.judging.ids import PLAIN_CALL
from ropebridge_conformance.judging.verdicts import Outcome, Verdict
from ropebridge_conformance.results.causes import Causes, told
from ropebridge_spec import CLAUSE_BY_ID, HOOKS

KEPT = 4000
"""Verdicts whose details the page holds; the counts are of all."""
PER_CELL = 25
"""Verdicts of one outcome in one cell whose details may be held."""

Cell = tuple[str, str, str, str, str]


@dataclass
class Digest:
    """Gather counts and details, verdict by verdict.

    counts: (subject, family, hook point or "", dtype, outcome) -> how many. ranked: details, with
        their place in their cell. causes: what the bad ones come from.
    """

    counts: Counter[Cell] = field(default_factory=Counter)
    ranked: list[tuple[int, Verdict]] = field(default_factory=list)
    causes: Causes = field(default_factory=Causes)

    def add(self, verdict: Verdict) -> None:
        """Count a verdict, and keep it if it is no pass and there are few like it."""
        cell = (
            verdict.subject,
            verdict.family,
            verdict.hook or "",
            verdict.dtype,
            str(verdict.outcome),
        )
        self.counts[cell] += 1
        self.causes.add(verdict)
        if verdict.outcome != Outcome.PASS and self.counts[cell] <= PER_CELL:
            self.ranked.append((self.counts[cell], verdict))

    @property
    def details(self) -> list[Verdict]:
        """Return what is kept: something of every cell before more of any; the worst outcomes
        first."""
        order = list(Outcome)
        first = sorted(
            self.ranked,
            key=lambda pair: (pair[0], order.index(pair[1].outcome) != order.index(Outcome.FAIL)),
        )
        return [verdict for _, verdict in first[:KEPT]]

    def data(self, provenance: Mapping[str, object]) -> dict[str, object]:
        """Return all of it, as what the page's script reads."""
        names = provenance.get("names")
        details = self.details
        clauses = sorted({verdict.clause for verdict in details} & set(CLAUSE_BY_ID))
        return {
            "provenance": {
                key: clauses_told(value)
                if isinstance(value, list) and key == "clauses"
                else str(value)
                for key, value in provenance.items()
                if key != "names"
            },
            "paths": (
                {str(name): str(path) for path, name in names.items()}
                if isinstance(names, dict)
                else {}
            ),
            "expected": provenance.get("expected"),
            "subjects": self._seen(0),
            "families": self._seen(1),
            "hooks": (
                [hook.name for hook in HOOKS if hook.name in self._seen(2)]
                + [name for name in self._seen(2) if name not in {h.name for h in HOOKS}]
            ),
            "stages": {hook.name: hook.stage for hook in HOOKS},
            "dtypes": self._seen(3),
            "plain": PLAIN_CALL,
            "outcomes": [str(outcome) for outcome in Outcome],
            "counts": [[*cell, count] for cell, count in self.counts.items()],
            "causes": list(told(self.causes.ranked)),
            "details": [detail(verdict) for verdict in details],
            "clauses": {id: [CLAUSE_BY_ID[id].text, CLAUSE_BY_ID[id].formula] for id in clauses},
        }

    def _seen(self, place: int) -> list[str]:
        return list(dict.fromkeys(cell[place] for cell in self.counts))


def detail(verdict: Verdict) -> dict[str, object]:
    """Return what is kept of a verdict: what it has, numbers as text, so that an infinity is no
    syntax error."""
    fields = asdict(verdict)
    del fields["seed"]  # the page does not show it; a bound of 0 it does
    kept = {key: value for key, value in fields.items() if value not in (None, "", ())}
    return {
        **kept,
        "outcome": str(verdict.outcome),
        **{key: f"{kept[key]:.4g}" for key in ("error", "bound") if key in kept},
    }


def digest(verdicts: Iterable[Verdict]) -> Digest:
    """Return the digest of verdicts, of which none is held that the page does not hold."""
    gathered = Digest()
    for verdict in verdicts:
        gathered.add(verdict)
    return gathered
