"""Results files: a provenance header, then one JSON line per verdict. Every table is made from
them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ropebridge_conformance.judging.verdicts import Verdict, provenance, read_line


class ResultsError(Exception):
    """Report a file that does not hold results; the message says which line and why."""


def header(
    subjects: Sequence[str], devices: Sequence[str], run: Mapping[str, object] | None = None
) -> str:
    """Return the first line of a results file: under what the verdicts were made, and `run`, what
    is known of the run."""
    return json.dumps({"provenance": {**provenance(subjects, devices), **(run or {})}})


def write_results(
    path: Path, verdicts: Iterable[Verdict], subjects: Sequence[str], devices: Sequence[str]
) -> None:
    """Write a results file, and the folder it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "\n".join([header(subjects, devices), *(verdict.line() for verdict in verdicts)]) + "\n",
        encoding="utf-8",
    )


class Recorder:
    """Write a results file line by line, so that an interrupted run loses nothing."""

    def __init__(self, path: Path, header: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")
        print(header, file=self._file, flush=True)

    def note(self, verdict: Verdict) -> None:
        """Put a verdict on disk."""
        print(verdict.line(), file=self._file, flush=True)

    def close(self) -> None:
        """Close the file, which is then whole."""
        self._file.close()


def read_results(path: Path) -> tuple[dict[str, object], list[Verdict]]:
    """Return the provenance and the verdicts of a results file.

    Raises:
        ResultsError: the file cannot be read, or a line of it is no verdict.
    """
    return read_provenance(path), list(verdicts_in(path))


def read_provenance(path: Path) -> dict[str, object]:
    """Return the provenance header of a results file.

    Raises:
        ResultsError: the file cannot be read, or does not begin with one.
    """
    try:
        with path.open(encoding="utf-8") as file:
            provenance = json.loads(file.readline())["provenance"]
        return dict(provenance)
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(
            f"{path} holds no results: {type(error).__name__}: {error}\n  its first line must be a"
            " provenance header"
        ) from error


def verdicts_in(path: Path) -> Iterator[Verdict]:
    """Yield the verdicts of a results file, one after another, however many there are.

    Raises:
        ResultsError: a line is no verdict.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        file.readline()
        yield from (verdict_at(path, number, line) for number, line in enumerate(file, 2))


def verdict_at(path: Path, number: int, line: str) -> Verdict:
    """Return the verdict of one line."""
    try:
        return read_line(line)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(
            f"{path}, line {number} is no verdict: {type(error).__name__}: {error}"
        ) from error
