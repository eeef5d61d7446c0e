"""Kill table: what became of the mutants, by stage and dtype."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from ropebridge_conformance.judging.trial import Trial
from ropebridge_conformance.mutants.equivalent import EQUIVALENTS
from ropebridge_spec import HOOKS


def kill_table(trials: Sequence[Trial]) -> Table:
    """Return a table of stages by dtype: how many mutants were killed, how many of them at their
    own stage, and how many there are whose fault can show."""
    dtypes = list(dict.fromkeys(trial.dtype for trial in trials))
    table = Table(title="killed / at the right stage / can show", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("stage", no_wrap=True)
    for dtype in (*dtypes, "all"):
        table.add_column(dtype, justify="right")
    for stage in (
        hook.name for hook in HOOKS if any(trial.mutant.stage == hook.name for trial in trials)
    ):
        own = [trial for trial in trials if trial.mutant.stage == stage]
        table.add_row(
            stage,
            *(count([trial for trial in own if trial.dtype == dtype]) for dtype in dtypes),
            count(own),
        )
    table.add_row(
        "all",
        *(count([trial for trial in trials if trial.dtype == dtype]) for dtype in dtypes),
        count(trials),
        style="bold",
    )
    return table


def count(trials: Sequence[Trial]) -> str:
    """Return killed / named / exercised; a dash where no mutant can show."""
    shown = [trial for trial in trials if trial.exercised]
    if not shown:
        return "-"
    killed, named = sum(trial.killed for trial in shown), sum(trial.named for trial in shown)
    colour = "red" if killed < len(shown) else "yellow" if named < len(shown) else "green"
    return f"[{colour}]{killed}/{named}/{len(shown)}[/{colour}]"


def equivalent_table() -> Table:
    """Return the changes that are no faults, each with the proof."""
    table = Table(title="equivalent: nothing may kill them", box=box.SIMPLE_HEAD)
    for column in ("change", "what it does", "why nothing is wrong with it"):
        table.add_column(column)
    for equivalent in EQUIVALENTS:
        table.add_row(equivalent.mutant.name, equivalent.mutant.fault, equivalent.proof)
    return table
