"""Results files: a provenance header, then one JSON line a verdict. Every table is made from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ropebridge_conformance.verdicts import Verdict, provenance, read_line


class ResultsError(Exception):
    """A file that does not hold results; the message says which line and why."""


def header(subjects: Sequence[str], devices: Sequence[str]) -> str:
    """The first line of a results file."""
    return json.dumps({"provenance": provenance(subjects, devices)})


def write_results(path: Path, verdicts: Iterable[Verdict], subjects: Sequence[str], devices: Sequence[str]) -> None:
    """Write a results file, and the folder it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header(subjects, devices), *(verdict.line() for verdict in verdicts)]) + "\n", encoding="utf-8")


def read_results(path: Path) -> tuple[dict[str, object], list[Verdict]]:
    """The provenance and the verdicts of a results file.

    Raises:
        ResultsError: the file cannot be read, or a line of it is no verdict.
    """
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        provenance = json.loads(first)["provenance"]
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path} holds no results: {type(error).__name__}: {error}\n  its first line must be a provenance header") from error
    return provenance, [verdict_at(path, number, line) for number, line in enumerate(lines, 2)]


def verdict_at(path: Path, number: int, line: str) -> Verdict:
    """The verdict of one line."""
    try:
        return read_line(line)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path}, line {number} is no verdict: {type(error).__name__}: {error}") from error
