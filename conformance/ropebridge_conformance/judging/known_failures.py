"""Known failures: a TOML file in which a subject's people say what fails, why, and where that is
followed up."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from ropebridge_conformance.judging.questions import Question
from ropebridge_conformance.judging.verdicts import Verdict
from ropebridge_spec import CLAUSE_BY_ID

Kind = Literal["bug", "not-yet", "never"]
KINDS: tuple[str, ...] = get_args(Kind)
ASKED = ("clause", "check", "hook", "family", "case", "scenario", "dtype", "device")
"""The fields that say which questions an entry covers."""
MATCHED = ("subject", *ASKED)
"""The fields that may be one name or a list of them: an entry covers the questions put to one
subject, where it names it."""


class KnownFailuresError(Exception):
    """Report a known-failures file that cannot be read; the message says where and what is
    required."""


@dataclass(frozen=True)
class KnownFailure:
    """Hold one listed failure. Clause and reason are required; a field of which nothing is said
    covers everything.

    In the file, a table of the array `failure`; what says which questions are covered may be one
    name or a list of them:

        [[failure]]
        subject = "my bridge"
        clause = "PAT-1"
        hook = "hook_pattern"
        dtype = ["bfloat16", "float16"]
        kind = "bug"
        reason = "pattern is taken after dropout"
        link = "https://example.org/issues/1"
        expiry = 2027-03-31
        strict = true

    kind: `bug` is wrong and to be mended, `not-yet` is not built, `never` is another choice, made
        on purpose.
    link: where it is followed up.
    expiry: the last day on which the failure is excused; after it a failure is a failure again.
        None never ends.
    strict: a listed failure that passes is a FAIL. An entry that covers more questions than fail
        cannot be strict.
    """

    clause: tuple[str, ...]
    reason: str
    kind: Kind = "bug"
    link: str = ""
    expiry: date | None = None
    strict: bool = True
    check: tuple[str, ...] = ()
    hook: tuple[str, ...] = ()
    family: tuple[str, ...] = ()
    case: tuple[str, ...] = ()
    scenario: tuple[str, ...] = ()
    dtype: tuple[str, ...] = ()
    device: tuple[str, ...] = ()
    subject: tuple[str, ...] = ()

    def covers(self, question: Question | Verdict, subject: str) -> bool:
        """Return whether a question, put to a subject of this name, is one of those listed to
        fail."""
        values = {"subject": subject, **{name: getattr(question, name) for name in ASKED}}
        return all(
            not getattr(self, name) or value in getattr(self, name)
            for name, value in values.items()
        )

    def expired(self, today: date) -> bool:
        """Return whether its last day is past."""
        return self.expiry is not None and today > self.expiry

    @property
    def says(self) -> str:
        """Return what a verdict says of it."""
        return f"{self.reason} {self.link}".strip()


def covering(
    known: Sequence[KnownFailure], question: Question | Verdict, subject: str
) -> KnownFailure | None:
    """Return the first entry that covers a question put to a subject of this name."""
    return next((entry for entry in known if entry.covers(question, subject)), None)


def read_known_failures(path: Path) -> list[KnownFailure]:
    """Return the entries of a file.

    Raises:
        KnownFailuresError: it is not TOML, or an entry has unknown fields, lacks clause or reason,
            names a clause that there is not, or has a field of another kind.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise KnownFailuresError(f"cannot read known failures from {path}: {error}") from error
    entries = document.get("failure", [])
    if set(document) - {"failure"} or not isinstance(entries, list):
        raise KnownFailuresError(
            f"{path} has {sorted(document)}; it needs tables [[failure]], and nothing else"
        )
    return [entry_of(entry, f"{path}, failure {number}") for number, entry in enumerate(entries, 1)]


def entry_of(entry: Any, where: str) -> KnownFailure:
    """Return one entry; `where` begins what an error says."""
    allowed = {field.name for field in fields(KnownFailure)}
    required = {field.name for field in fields(KnownFailure) if field.default is MISSING}
    if not isinstance(entry, dict) or not required <= set(entry) <= allowed:
        shown = sorted(entry) if isinstance(entry, dict) else repr(entry)
        raise KnownFailuresError(
            f"{where} has {shown}; it needs clause and reason, and may have {sorted(allowed)}"
        )
    read = {
        **entry,
        **{name: names_of(name, entry[name], where) for name in MATCHED if name in entry},
    }
    for name, complaint in complaints(read).items():
        raise KnownFailuresError(f"{where}: {name} is {entry[name]!r}; {complaint}")
    return KnownFailure(**read)


def names_of(field: str, value: Any, where: str) -> tuple[str, ...]:
    """Return one name, or a list of them."""
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise KnownFailuresError(
            f"{where}: {field} is {value!r}; it must be a name, or a list of names"
        )
    return tuple(names)


def complaints(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return field -> what is required of it, for fields that are not so."""
    right: dict[str, tuple[bool, str]] = {
        "clause": (
            set(entry["clause"]) <= set(CLAUSE_BY_ID),
            "SPEC.md lists the clauses there are",
        ),
        "reason": (
            isinstance(entry["reason"], str) and bool(entry["reason"]),
            "it must be a sentence",
        ),
        "kind": (entry.get("kind", "bug") in KINDS, f"it must be one of {', '.join(KINDS)}"),
        "link": (isinstance(entry.get("link", ""), str), "it must be a string"),
        "expiry": (
            is_day(entry.get("expiry")),
            "it must be a date, without quotes: expiry = 2027-03-31",
        ),
        "strict": (isinstance(entry.get("strict", True), bool), "it must be true or false"),
    }
    return {name: words for name, (holds, words) in right.items() if not holds}


def is_day(value: Any) -> bool:
    """Return whether it is a date, or nothing."""
    return value is None or (isinstance(value, date) and not isinstance(value, datetime))
