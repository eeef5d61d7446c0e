"""Commands that make something else out of results files: combine, junit, badge, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ropebridge_conformance.cli_common import console, refusing
from ropebridge_conformance.results.badge import badge
from ropebridge_conformance.results.combining import CombineError, combined
from ropebridge_conformance.results.files import Recorder, ResultsError, read_results
from ropebridge_conformance.results.junit import junit
from ropebridge_conformance.results.page import write_page
from ropebridge_conformance.results.tables import summary

Results = Annotated[Path, typer.Argument(help="a results file")]


def combine_command(
    results: Annotated[list[Path], typer.Argument(help="results files of one run")],
    output: Annotated[Path, typer.Option("--output", "-o", help="where to write them as one")],
) -> None:
    """Put the results of shards together. Refused are results of different runs, contradictions,
    and missing shards."""
    with refusing(ResultsError, CombineError):
        provenance, verdicts = combined(results)
    recorder = Recorder(output, json.dumps({"provenance": provenance}))
    for verdict in verdicts:
        recorder.note(verdict)
    recorder.close()
    console.print(f"{summary(verdicts)}\nresults: {output}", soft_wrap=True)


def junit_command(
    results: Results,
    output: Annotated[Path, typer.Option("--output", "-o", help="where to write the XML")],
) -> None:
    """Write results as JUnit XML."""
    with refusing(ResultsError):
        provenance, verdicts = read_results(results)
    write(output, junit(provenance, verdicts))


def badge_command(
    results: Results,
    output: Annotated[Path, typer.Option("--output", "-o", help="where to write the JSON")],
) -> None:
    """Write results as a badge, for an endpoint of shields.io."""
    with refusing(ResultsError):
        provenance, verdicts = read_results(results)
    write(output, json.dumps(badge(provenance, verdicts), indent=2) + "\n")


def report_command(
    results: Results,
    output: Annotated[Path, typer.Option("--output", "-o", help="where to write the page")] = Path(
        "report.html"
    ),
) -> None:
    """Write results as one page to look round in: families by hook points by dtypes, and every
    failure."""
    with refusing(ResultsError):
        write_page(results, output)
    console.print(f"report: {output}", soft_wrap=True)


def write(path: Path, text: str) -> None:
    """Write a file, and the folder it lies in, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    console.print(f"wrote {path}", soft_wrap=True)


def add_to(app: typer.Typer) -> None:
    """Give an application these commands."""
    for name, command in (
        ("combine", combine_command),
        ("junit", junit_command),
        ("badge", badge_command),
        ("report", report_command),
    ):
        app.command(name)(command)
