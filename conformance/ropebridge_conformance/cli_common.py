"""Share what commands have in common: options, a progress bar, how they refuse a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import cpu_count
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console()
errors = Console(stderr=True)

Dtypes = Annotated[
    list[str] | None, typer.Option("--dtype", help="only this dtype; may be repeated")
]
Families = Annotated[
    list[str] | None,
    typer.Option(
        "--family", help="only this case or family, or 'all'; may be repeated (default: the core)"
    ),
]
Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device", help="only this device; may be repeated (default: all that are present)"
    ),
]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="processes")]
CORES = cpu_count() or 1


@contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """End the command with exit code 2, and what is wrong, where one of these is raised."""
    try:
        yield
    except kinds as error:
        errors.print(str(error), markup=False, soft_wrap=True)
        raise typer.Exit(2) from error


def bar() -> Progress:
    """Return a progress bar with counts and times."""
    columns = (
        TextColumn("{task.description:<40}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=errors, refresh_per_second=2)
