"""Known failures: a TOML file in which a subject's people say what fails, why, and where that is followed up."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from ropebridge_conformance.questions import Question


class KnownFailuresError(Exception):
    """A known-failures file that cannot be read; the message says where and what is required."""


@dataclass(frozen=True)
class KnownFailure:
    """One foretold failure. An empty field covers everything; clause and reason are required.

    In the file, a table of the array `failure`:

        [[failure]]
        clause = "PAT-1"
        hook = "hook_pattern"
        reason = "pattern is taken after dropout"
        link = "https://example.org/issues/1"
    """

    clause: str
    reason: str
    link: str = ""
    check: str = ""
    hook: str = ""
    family: str = ""
    scenario: str = ""
    dtype: str = ""

    def covers(self, question: Question) -> bool:
        """Whether a question is one of those foretold to fail."""
        names = ("clause", "check", "hook", "family", "scenario", "dtype")
        return all(getattr(self, name) in ("", getattr(question, name)) for name in names)


def read_known_failures(path: Path) -> list[KnownFailure]:
    """The entries of a file.

    Raises:
        KnownFailuresError: it is not TOML, or an entry has unknown fields or lacks clause or reason.
    """
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("failure", [])
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise KnownFailuresError(f"cannot read known failures from {path}: {error}") from error
    allowed = {field.name for field in fields(KnownFailure)}
    for number, entry in enumerate(entries, 1):
        if not {"clause", "reason"} <= set(entry) <= allowed:
            raise KnownFailuresError(f"{path}, failure {number} has {sorted(entry)}; it needs clause and reason, and may have {sorted(allowed)}")
    return [KnownFailure(**entry) for entry in entries]
