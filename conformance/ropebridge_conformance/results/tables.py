"""Terminal tables, made from verdicts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.table import Table

from ropebridge_conformance.judging.trial import Trial
from ropebridge_conformance.judging.verdicts import BAD, Outcome, Verdict
from ropebridge_spec import HOOKS

LAYER = "the layer as a whole"
COLUMNS = 10
"""More columns than this do not fit a terminal."""

Key = Callable[[Verdict], str]


def hook_tables(verdicts: Sequence[Verdict]) -> Iterator[Table]:
    """Yield a table for each subject, hook points by families, or by dtypes where the families are
    too many: how many verdicts, and how many of them bad."""
    rows = [hook.name for hook in HOOKS] + [LAYER]
    columns = dtype_of if len({v.family for v in verdicts}) > COLUMNS else family_of
    yield from crossed(verdicts, rows, lambda v: v.hook or LAYER, columns, "hook point")


def dtype_tables(verdicts: Sequence[Verdict]) -> Iterator[Table]:
    """Yield a table for each subject, families by dtypes."""
    yield from crossed(
        verdicts, list(dict.fromkeys(v.family for v in verdicts)), family_of, dtype_of, "family"
    )


def family_of(verdict: Verdict) -> str:
    """Return the column of a table by families."""
    return verdict.family


def dtype_of(verdict: Verdict) -> str:
    """Return the column of a table by dtypes."""
    return verdict.dtype


def crossed(
    verdicts: Sequence[Verdict], rows: Sequence[str], row_of: Key, column_of: Key, corner: str
) -> Iterator[Table]:
    """Yield a table for each subject, rows by columns."""
    columns = list(dict.fromkeys(map(column_of, verdicts)))
    cells: dict[tuple[str, str, str], list[Outcome]] = defaultdict(list)
    for v in verdicts:
        cells[v.subject, row_of(v), column_of(v)].append(v.outcome)
    for subject in dict.fromkeys(v.subject for v in verdicts):
        table = Table(title=f"{subject}: verdicts", box=box.SIMPLE_HEAD, padding=0)
        table.add_column(corner, no_wrap=True)
        for column in columns:
            table.add_column(column, justify="right", overflow="fold")
        for row in rows:
            outcomes = [cells[subject, row, column] for column in columns]
            if any(outcomes):
                table.add_row(row, *map(cell, outcomes))
        yield table


def cell(outcomes: Sequence[Outcome]) -> str:
    """Return how many verdicts; where any is not a pass, how many of which."""
    if not outcomes:
        return "-"
    others = Counter(outcome for outcome in outcomes if outcome != Outcome.PASS)
    if not others:
        return f"[green]{len(outcomes)}[/green]"
    bad = any(outcome in BAD for outcome in others)
    text = ", ".join(f"{count} {outcome}" for outcome, count in others.items())
    return f"[{'red' if bad else 'yellow'}]{text}[/] of {len(outcomes)}"


def summary(verdicts: Sequence[Verdict]) -> str:
    """Return the counts of every outcome, in words."""
    counts = Counter(v.outcome for v in verdicts)
    return f"{len(verdicts)} verdicts: " + ", ".join(
        f"{counts[outcome]} {outcome}" for outcome in Outcome if counts[outcome]
    )


def mutant_table(trials: Sequence[Trial]) -> Table:
    """Return a table of mutants by dtype: killed at its stage, at another stage, or survived."""
    dtypes = list(dict.fromkeys(trial.dtype for trial in trials))
    table = Table(title="mutants")
    for column in ("mutant", "fault", "stage", *dtypes):
        table.add_column(column)
    for mutant in dict.fromkeys(trial.mutant for trial in trials):
        cells = [trial_cell(trial) for trial in trials if trial.mutant is mutant]
        table.add_row(mutant.name, mutant.fault, mutant.stage, *cells)
    return table


def trial_cell(trial: Trial) -> str:
    """Return what became of a mutant in one dtype."""
    if not trial.exercised:
        return "[dim]cannot show[/dim]"
    if trial.killer is None:
        return "[red]survived[/red]"
    return (
        "[green]killed[/green]"
        if trial.named
        else f"[yellow]killed at {trial.killer.divergent}[/yellow]"
    )
