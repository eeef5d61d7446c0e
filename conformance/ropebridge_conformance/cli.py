"""The command line: check a subject, try the mutants, explain a hook point, show results again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import Annotated, TypeVar

import transformers
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ropebridge_conformance.bench import Bench, SubjectError, available_devices, load_subject
from ropebridge_conformance.coverage import BASELINE, changes, read_baseline, write
from ropebridge_conformance.coverage import coverage as coverage_of
from ropebridge_conformance.judge import judge, plan, single_threaded
from ropebridge_conformance.known_failures import KnownFailure, KnownFailuresError, read_known_failures
from ropebridge_conformance.mutants import MUTANT
from ropebridge_conformance.names import UnknownFamily, refuse_unknown_families
from ropebridge_conformance.plugin import DEFAULT_SUBJECTS, DTYPES
from ropebridge_conformance.questions import About, Question
from ropebridge_conformance.recipes import RECIPES
from ropebridge_conformance.results import ResultsError, header, read_results
from ropebridge_conformance.tables import dtype_tables, hook_tables, mutant_table, summary
from ropebridge_conformance.trial import Trial, false_alarms, try_mutant
from ropebridge_conformance.verdicts import BAD, Verdict
from ropebridge_conformance.zoo import chosen_cases, repeats
from ropebridge_spec import CLAUSE, HOOK, SPEC_VERSION, UnknownHook

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Judge hooks on rotary attention.")
console = Console()
errors = Console(stderr=True)

Dtypes = Annotated[list[str] | None, typer.Option("--dtype", help="only this dtype; may be repeated")]
Families = Annotated[list[str] | None, typer.Option("--family", help="only this case or family, or 'all'; may be repeated (default: the core)")]
Devices = Annotated[list[str] | None, typer.Option("--device", help="only this device; may be repeated (default: all that are present)")]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="processes")]
CORES = cpu_count() or 1
T = TypeVar("T")


@dataclass(frozen=True)
class Unit:
    """What one process does at a time: every question about one layer in one dtype."""

    subject: str
    case: str
    dtype: str
    device: str
    known: tuple[KnownFailure, ...]
    about: tuple[About, ...] = ("layer", "class")

    @property
    def questions(self) -> list[Question]:
        """The questions of this unit."""
        return list(plan((self.case,), (self.dtype,), (self.device,), self.about))


@app.command()
def check(
    subjects: Annotated[list[str] | None, typer.Argument(help="package.module:Factory (default: reference and bridge)")] = None,
    family: Families = None,
    dtype: Dtypes = None,
    device: Devices = None,
    results: Annotated[Path, typer.Option(help="where to write verdicts as JSON lines")] = Path("results/check.jsonl"),
    known_failures: Annotated[Path | None, typer.Option(help="TOML file of failures that are expected")] = None,
    jobs: Jobs = CORES,
    thorough: Annotated[bool, typer.Option("--thorough", help="ask everything of every class, also where another class has the same layer")] = False,
    installed: Annotated[bool, typer.Option("--installed", help="only list attention classes of the installed transformers that are new or changed")] = False,
) -> None:
    """Judge subjects on the zoo of tiny random layers. Exit code 1 if any verdict is bad, 2 if the call is."""
    if installed:
        raise typer.Exit(list_changes())
    paths = subjects or list(DEFAULT_SUBJECTS)
    try:
        refuse_unknown_families(family)
        for path in paths:
            load_subject(path)
        known = tuple(read_known_failures(known_failures)) if known_failures else ()
    except (SubjectError, UnknownFamily, KnownFailuresError) as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(2) from error
    devices = device or available_devices()
    chosen = chosen_cases(family)
    again = set() if thorough else repeats(chosen)
    about: dict[str, tuple[About, ...]] = {case.id: ("class",) if case.id in again else ("layer", "class") for case in chosen}
    absent = [recipe.name for recipe in RECIPES if not recipe.installed]
    if absent and "all" in (family or ()):
        console.print(f"not in transformers {transformers.__version__}, so not judged: {', '.join(absent)}")
    units = [Unit(path, case, d, on, known, kinds) for path in paths for on in devices for case, kinds in about.items() for d in dtype or DTYPES]
    verdicts = run(units, jobs, results, paths, devices)
    report(verdicts)
    console.print(f"results: {results}")
    raise typer.Exit(1 if any(v.verdict in BAD for v in verdicts) else 0)


def run(units: Sequence[Unit], jobs: int, results: Path, subjects: Sequence[str], devices: Sequence[str]) -> list[Verdict]:
    """Every verdict; on disk as soon as its unit is done, so that an interrupted run loses nothing."""
    verdicts: list[Verdict] = []
    results.parent.mkdir(parents=True, exist_ok=True)
    total = sum(len(unit.questions) for unit in units)
    with results.open("w", encoding="utf-8") as file, bar() as progress:
        task = progress.add_task("judging", total=total)
        print(header(subjects, devices), file=file, flush=True)
        for made in judged(units, jobs):
            verdicts += made
            print("\n".join(verdict.line() for verdict in made), file=file, flush=True)
            progress.update(task, advance=len(made), description=f"judging {made[-1].subject}, {made[-1].family}, {made[-1].dtype}")
    return verdicts


def bar() -> Progress:
    """A progress bar with counts and times."""
    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=errors)


def judged(units: Sequence[Unit], jobs: int) -> Iterator[list[Verdict]]:
    """The verdicts of each unit, as they come."""
    if jobs == 1:
        yield from map(judge_unit, units)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(judge_unit, unit) for unit in units]):
            yield done.result()


def judge_unit(unit: Unit) -> list[Verdict]:
    """Put every question of a unit to a bench of its own."""
    single_threaded()
    bench = Bench(load_subject(unit.subject))
    return [judge(bench, question, unit.known) for question in unit.questions]


def report(verdicts: Sequence[Verdict]) -> None:
    """The tables, what is bad, and the counts."""
    for table in (*hook_tables(verdicts), *dtype_tables(verdicts)):
        console.print(table)
    bad = [v for v in verdicts if v.verdict in BAD]
    for v in bad[:20]:
        console.print(f"{v.verdict} {v.subject} {v.clause} {v.check} [{v.hook or 'layer'}-{v.case}-{v.dtype}-{v.device}]: {v.reason}", markup=False)
    if len(bad) > 20:
        console.print(f"... and {len(bad) - 20} more in the results file")
    console.print(summary(verdicts))


def list_changes() -> int:
    """Print what of the installed transformers the last release did not know; 1 if there is anything."""
    found = changes()
    for change in found:
        console.print(f"{change.name}: {change.what} ({change.file})", markup=False, highlight=False)
    console.print(
        f"{len(found)} rotary attention classes of transformers {transformers.__version__} are new or changed since {read_baseline()['transformers']}"
    )
    return 1 if found else 0


@app.command()
def coverage(
    results: Annotated[Path, typer.Argument(help="results of a run over all families")],
    page: Annotated[Path, typer.Option(help="where to write the page")] = Path("docs/COVERAGE.md"),
) -> None:
    """Write the coverage page and the baseline it is made from, with the verdicts of a results file."""
    _, verdicts = results_of(results)
    covered = coverage_of(verdicts)
    write(covered, page, str(results))
    console.print(f"{sum(c['status'] == 'served' for c in covered['classes'])} classes served; {page} and {BASELINE}")


def results_of(path: Path) -> tuple[dict[str, object], list[Verdict]]:
    """A results file; a bad one ends the command with exit code 2."""
    try:
        return read_results(path)
    except ResultsError as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(2) from error


@app.command()
def show(results: Annotated[Path, typer.Argument(help="a results file")]) -> None:
    """Print the tables of a results file again."""
    provenance, verdicts = results_of(results)
    console.print(provenance)
    report(verdicts)


@app.command()
def mutants(dtype: Dtypes = None, jobs: Jobs = CORES) -> None:
    """Judge the judge: every mutant must be killed at its stage, and the unmutated reference must pass."""
    chosen = dtype or list(DTYPES)
    with bar() as progress, ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        pending = [pool.submit(one_trial, mutant, d) for mutant in MUTANT for d in chosen]
        alarms = [pool.submit(count_false_alarms, d) for d in chosen]
        task = progress.add_task("trying mutants", total=len(pending) + len(alarms))
        trials = [advance(progress, task, future.result()) for future in pending]
        control = [advance(progress, task, future.result()) for future in alarms]
    shown = [trial for trial in trials if trial.exercised]
    killed, named = sum(t.killed for t in shown), sum(t.named for t in shown)
    runs, false = (sum(pair[i] for pair in control) for i in (0, 1))
    console.print(mutant_table(trials))
    console.print(f"{killed} of {len(shown)} killed, {named} at the right stage; control: {false} false alarms in {runs} verdicts")
    raise typer.Exit(0 if killed == named == len(shown) and not false else 1)


def advance(progress: Progress, task: TaskID, value: T) -> T:
    """Count one step, and hand its value on."""
    progress.advance(task)
    return value


def one_trial(name: str, dtype: str) -> Trial:
    """A mutant in one dtype, by name: functions do not travel between processes."""
    single_threaded()
    return try_mutant(MUTANT[name], dtype)


def count_false_alarms(dtype: str) -> tuple[int, int]:
    """How many verdicts the unmutated reference was given, and how many of them were bad."""
    single_threaded()
    verdicts = list(false_alarms((dtype,)))
    return len(verdicts), sum(v.verdict in BAD for v in verdicts)


@app.command()
def explain(hook: Annotated[str, typer.Argument(help="a hook point: hook_rot_q")]) -> None:
    """Print what a hook point holds: its clauses, formula and axes."""
    name = hook.rsplit(".", 1)[-1]
    if name not in HOOK:
        errors.print(str(UnknownHook(f"there is no hook point {name!r}; there are: {', '.join(HOOK)}")), markup=False)
        raise typer.Exit(2)
    spec = HOOK[name]
    console.print(f"{name}: {spec.meaning}\n  stage {spec.stage}, axes {spec.axes}, exists: {spec.exists}", markup=False, highlight=False)
    for id in (spec.value_clause, spec.axes_clause):
        formula = f"\n    {CLAUSE[id].formula}" if CLAUSE[id].formula else ""
        console.print(f"  ropebridge spec {SPEC_VERSION}, clause {id}: {CLAUSE[id].text}{formula}", markup=False, highlight=False)
