"""Command line: `ropebridge mutants`, which judges the judge."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import typer

from ropebridge_conformance.cli_common import CORES, Dtypes, Jobs, bar, console, refusing
from ropebridge_conformance.judging.ids import DTYPES
from ropebridge_conformance.judging.judge import single_threaded
from ropebridge_conformance.judging.kept_trials import Control, KeptTrials, KeptTrialsError
from ropebridge_conformance.judging.planning import PlanError, refuse_unknown
from ropebridge_conformance.judging.trial import (
    Trial,
    correct_runs,
    false_alarms,
    survives,
    try_mutant,
)
from ropebridge_conformance.judging.verdicts import BAD
from ropebridge_conformance.mutants.catalogue import MUTANT_BY_NAME
from ropebridge_conformance.mutants.equivalent import EQUIVALENTS
from ropebridge_conformance.results.kills import equivalent_table, kill_table
from ropebridge_conformance.results.tables import mutant_table


def add_mutants_to(app: typer.Typer) -> None:
    """Give an app the command."""
    app.command()(mutants)


def mutants(
    dtype: Dtypes = None,
    jobs: Jobs = CORES,
    kept: Annotated[
        Path, typer.Option(help="file of trials made before, which need not be made again")
    ] = Path("results/mutants.jsonl"),
    again: Annotated[bool, typer.Option("--again", help="make every trial anew")] = False,
) -> None:
    """Judge the judge: every mutant must be killed at its stage, and no right layer called
    wrong."""
    with refusing(PlanError, KeptTrialsError):
        refuse_unknown("dtype", dtype or (), DTYPES)
        memory = KeptTrials(kept, again=again)
    chosen = dtype or list(DTYPES)
    make_what_is_missing(memory, chosen, jobs)
    made = [memory.made[name, d] for name in (*MUTANT_BY_NAME, *CONTROLS) for d in chosen]
    trials = [one for one in made if isinstance(one, Trial)]
    controls = [one for one in made if isinstance(one, Control)]
    for table in (mutant_table(trials), equivalent_table(), kill_table(trials)):
        console.print(table)
    raise typer.Exit(0 if told(trials, controls) else 1)


def told(trials: list[Trial], controls: list[Control]) -> bool:
    """Print the counts, and return whether all is as it must be."""
    shown = [trial for trial in trials if trial.exercised]
    killed, named = sum(t.killed for t in shown), sum(t.named for t in shown)
    console.print(
        f"{len(MUTANT_BY_NAME)} mutants: {killed} of {len(shown)} trials killed, {named} at the"
        " right stage"
    )
    wrong = sum(control.wrong for control in controls)
    made = {name: sum(c.made for c in controls if c.name == name) for name in CONTROLS}
    console.print(
        f"control: {wrong} false alarms in {made['verdicts']} verdicts, in {made['runs']} correct"
        f" runs on other inputs, and in {made['honest']} verdicts on {len(EQUIVALENTS)} changes"
        " that are no faults"
    )
    return killed == named == len(shown) and not wrong


def make_what_is_missing(memory: KeptTrials, dtypes: list[str], jobs: int) -> None:
    """Make the trials and controls that are not there yet, and remember each as it is made; the
    controls first, which take longest."""
    missing = [
        (name, dtype)
        for name in (*CONTROLS, *MUTANT_BY_NAME)
        for dtype in dtypes
        if (name, dtype) not in memory.made
    ]
    if not missing:
        console.print("nothing changed since these trials were made")
        return
    with bar() as progress, ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        task = progress.add_task("trying mutants", total=len(missing))
        for future in as_completed([pool.submit(make, name, dtype) for name, dtype in missing]):
            memory.note(future.result())
            progress.advance(task)


def make(name: str, dtype: str) -> Trial | Control:
    """Return the trial of a mutant in one dtype, by name: functions do not travel between
    processes. Or of a kind of right runs how many there were, and how many were called wrong."""
    single_threaded()
    if name in MUTANT_BY_NAME:
        return try_mutant(MUTANT_BY_NAME[name], dtype)
    wrong = CONTROLS[name](dtype)
    return Control(name, dtype, len(wrong), sum(wrong))


def of_verdicts(dtype: str) -> list[bool]:
    """Return of each verdict on the unmutated reference whether it is bad."""
    return [verdict.outcome in BAD for verdict in false_alarms((dtype,))]


def of_runs(dtype: str) -> list[bool]:
    """Return of each correct run whether a stage of it is outside its bound."""
    return [stage is not None for stage in correct_runs(dtype)]


def of_honest_changes(dtype: str) -> list[bool]:
    """Return of each verdict on a change that is no fault whether it is bad."""
    return [v.outcome in BAD for each in EQUIVALENTS for v in survives(each, dtype)]


CONTROLS: dict[str, Callable[[str], list[bool]]] = {
    "verdicts": of_verdicts,
    "runs": of_runs,
    "honest": of_honest_changes,
}
"""Kind of runs that are right -> the function of a dtype that says of each whether it was called
wrong."""
