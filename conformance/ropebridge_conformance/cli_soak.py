"""Command line: `ropebridge soak`, which draws layers and judges them until it is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ropebridge_conformance.cli_common import refusing
from ropebridge_conformance.judging.judge import single_threaded
from ropebridge_conformance.plugin import DEFAULT_SUBJECTS
from ropebridge_conformance.subjects.loading import SubjectError


def add_soak_to(app: typer.Typer) -> None:
    """Give an app the command."""
    app.command()(soak)


def soak(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(help="package.module:Factory (default: reference and bridge)"),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="how long (default: until it is stopped)")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the first layers that are drawn")] = 0,
    results: Annotated[Path, typer.Option(help="where to write a line of JSON per layer")] = Path(
        "results/soak.jsonl"
    ),
) -> None:
    """Draw layers that no family has, called in any way, and judge them until stopped."""
    from ropebridge_conformance.judging.soak import maker_of, soak

    single_threaded()
    with refusing(SubjectError):
        makers = {path: maker_of(path) for path in subjects or DEFAULT_SUBJECTS}
    results.parent.mkdir(parents=True, exist_ok=True)
    layers = faults = 0
    try:
        with results.open("w") as lines:
            for judged in soak(makers, seed, None if minutes is None else 60 * minutes):
                print(judged.line(), file=lines, flush=True)
                layers += 1
                if judged.fault is not None:
                    faults += 1
                    typer.echo(f"{judged.subject}: {judged.fault}\n  {judged.drawn}")
    except KeyboardInterrupt:
        typer.echo("stopped")
    typer.echo(f"{layers} layers judged, {faults} with a fault\nresults: {results}")
    raise typer.Exit(1 if faults else 0)
