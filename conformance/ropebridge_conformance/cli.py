"""Command line: check a subject, try the mutants, explain a hook point, show results again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import transformers
import typer

from ropebridge_conformance.cli_common import (
    CORES,
    Devices,
    Dtypes,
    Families,
    Jobs,
    bar,
    console,
    errors,
    refusing,
)
from ropebridge_conformance.cli_mutants import add_mutants_to
from ropebridge_conformance.cli_results import add_to
from ropebridge_conformance.cli_soak import add_soak_to
from ropebridge_conformance.judging.clauses import clauses_told
from ropebridge_conformance.judging.ids import IdError, read_id
from ropebridge_conformance.judging.known_failures import KnownFailuresError, read_known_failures
from ropebridge_conformance.judging.planning import PlanError, Selection
from ropebridge_conformance.judging.pool import Pool
from ropebridge_conformance.judging.profiles import PROFILE_BY_NAME, ProfileName
from ropebridge_conformance.judging.running import Begun, Run, begin, carried_out
from ropebridge_conformance.judging.shards import ShardError, read_shard
from ropebridge_conformance.judging.verdicts import BAD, Verdict
from ropebridge_conformance.plugin import DEFAULT_SUBJECTS
from ropebridge_conformance.results.causes import causes_of, told
from ropebridge_conformance.results.coverage import (
    BASELINE,
    CoverageError,
    cases_to_judge,
    changes,
    merged,
    read_baseline,
    stale,
    write,
)
from ropebridge_conformance.results.explanation import explanation
from ropebridge_conformance.results.files import ResultsError, read_results
from ropebridge_conformance.results.tables import dtype_tables, hook_tables, summary
from ropebridge_conformance.zoo.names import UnknownFamily, refuse_unknown_families
from ropebridge_conformance.zoo.recipes import RECIPES
from ropebridge_spec import UnknownHook

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Judge hooks on rotary attention.",
)
add_to(app)
add_mutants_to(app)
add_soak_to(app)


@app.command()
def check(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(help="package.module:Factory (default: reference and bridge)"),
    ] = None,
    family: Families = None,
    dtype: Dtypes = None,
    device: Devices = None,
    results: Annotated[Path, typer.Option(help="where to write verdicts as JSON lines")] = Path(
        "results/check.jsonl"
    ),
    known_failures: Annotated[
        Path | None, typer.Option(help="TOML file of failures that are expected")
    ] = None,
    jobs: Jobs = CORES,
    thorough: Annotated[
        bool,
        typer.Option(
            "--thorough",
            help="ask everything of every class, also where another class has the same layer",
        ),
    ] = False,
    profile: Annotated[
        ProfileName, typer.Option(help="how much is asked, where nothing narrows it")
    ] = "default",
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="only the i-th of n parts of the plan, for many machines; see combine",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.1,
            metavar="SECONDS",
            help="how long a subject may take to be loaded, and to answer one question",
        ),
    ] = 120.0,
    checks: Annotated[
        list[str] | None, typer.Option("--check", help="only this check; may be repeated")
    ] = None,
    hook: Annotated[
        list[str] | None, typer.Option("--hook", help="only this hook point; may be repeated")
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option("--scenario", help="only this way of calling a layer; may be repeated"),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="ID",
            help="only the question of this id, as reports and pytest print it; may be repeated",
        ),
    ] = None,
    shuffle: Annotated[
        int | None,
        typer.Option(
            metavar="SEED",
            help="ask about layers, and the questions about each, in a random order of this seed",
        ),
    ] = None,
    installed: Annotated[
        bool,
        typer.Option(
            "--installed",
            help=(
                "only list attention classes of the installed transformers that are new or changed"
            ),
        ),
    ] = False,
) -> None:
    """Judge subjects on the zoo of tiny random layers. Exit code 1 if any verdict is bad, 2 if the
    call is."""
    if installed:
        raise typer.Exit(list_changes())
    chosen = replace(
        PROFILE_BY_NAME[profile], repeated=thorough or PROFILE_BY_NAME[profile].repeated
    )
    with refusing(IdError, PlanError, ShardError, UnknownFamily, KnownFailuresError):
        narrowed = Selection(
            families=tuple(family or ()),
            dtypes=tuple(dtype or ()),
            devices=tuple(device or ()),
            checks=tuple(checks or ()),
            hooks=tuple(hook or ()),
            scenarios=tuple(scenario or ()),
            only=tuple(read_id(text) for text in only or ()),
        )
        known = tuple(read_known_failures(known_failures)) if known_failures else ()
        run = Run(
            subjects or list(DEFAULT_SUBJECTS),
            narrowed,
            chosen,
            read_shard(shard) if shard else None,
            known,
            jobs,
            timeout,
            shuffle,
        )
    raise typer.Exit(judge_all(run, results))


def judge_all(run: Run, results: Path) -> int:
    """Carry a run out, and print what came of it: 0 if all is well, 1 if any verdict is bad,
    2 if no subject could be loaded."""
    with Pool(run.jobs, run.timeout) as pool:
        with refusing(PlanError, ShardError, UnknownFamily):
            begun = begin(run, pool)
        say_what_is_absent(run)
        for verdict in begun.refused:
            errors.print(verdict.reason, markup=False, soft_wrap=True)
        verdicts = counted(begun, carried_out(begun, pool, results))
    if begun.names:
        report(verdicts, begun.clauses)
    for name, choices in begun.conventions.items():
        declared = ", ".join(f"{what} {how}" for what, how in choices.items())
        console.print(f"{name} declares, and is judged by: {declared}", highlight=False)
    console.print(f"results: {results}")
    return 2 if not begun.names else 1 if any(v.outcome in BAD for v in verdicts) else 0


def say_what_is_absent(run: Run) -> None:
    """Say which families the installed transformers has not, where every family is asked for."""
    absent = [recipe.name for recipe in RECIPES if not recipe.installed]
    if absent and "all" in (run.selection.families or run.profile.families):
        console.print(
            f"not in transformers {transformers.__version__}, so not judged: {', '.join(absent)}"
        )


def counted(begun: Begun, verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Return the verdicts, with a bar that shows how far they are."""
    made = []
    with bar() as progress:
        task = progress.add_task("judging", total=begun.expected)
        for verdict in verdicts:
            made.append(verdict)
            progress.update(
                task,
                advance=1,
                description=f"judging {verdict.subject}, {verdict.family}, {verdict.dtype}",
            )
    return made


def report(verdicts: Sequence[Verdict], clauses: object = None) -> None:
    """Print the tables, what is bad, the counts, and which clauses were asked about, where that is
    known."""
    for table in (*hook_tables(verdicts), *dtype_tables(verdicts)):
        console.print(table)
    causes = causes_of(verdicts)
    for line in told(causes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(summary(verdicts))
    if causes:
        console.print(f"root causes: {len(causes)}")
    if isinstance(clauses, list):
        console.print(clauses_told(clauses), soft_wrap=True)


def list_changes() -> int:
    """Print what of the installed transformers the last release did not know; 1 if there is
    anything."""
    found = changes()
    for change in found:
        console.print(
            f"{change.name}: {change.what} ({change.file})", markup=False, highlight=False
        )
    console.print(
        f"{len(found)} rotary attention classes of transformers {transformers.__version__} are new"
        f" or changed since {read_baseline()['transformers']}"
    )
    return 1 if found else 0


@app.command()
def coverage(
    results: Annotated[
        Path | None, typer.Argument(help="results to put into the baseline; else it judges anew")
    ] = None,
    family: Annotated[
        list[str] | None,
        typer.Option(
            "--family",
            help="judge the classes of this case or family, or 'all'; may be repeated (default:"
            " those that are out of date)",
        ),
    ] = None,
    jobs: Jobs = CORES,
    page: Annotated[Path, typer.Option(help="where to write the page")] = Path("docs/COVERAGE.md"),
    readme: Annotated[Path, typer.Option(help="where to write how many classes are served")] = Path(
        "README.md"
    ),
) -> None:
    """Judge the classes whose row, recipe, source or contract changed, and write the coverage page
    and the baseline it is made from."""
    made = judge_for_coverage(family or (), jobs) if results is None else results
    verdicts = [] if made is None else results_of(made)[1]
    with refusing(CoverageError):
        covered = merged(read_baseline(), verdicts)
    write(covered, page, readme)
    served = sum(entry["status"] == "served" for entry in covered["classes"])
    console.print(f"{served} classes served; {page} and {BASELINE}", soft_wrap=True)


def judge_for_coverage(names: Sequence[str], jobs: int) -> Path | None:
    """Judge the classes of these families, or those that are out of date, and return where the
    results are; None where nothing is to be judged. A bad verdict ends the command."""
    with refusing(UnknownFamily):
        refuse_unknown_families(names)
    reasons = stale()
    for name, reason in reasons.items():
        console.print(f"{name} is out of date: {reason}", soft_wrap=True, highlight=False)
    cases = cases_to_judge(names, reasons)
    if not cases:
        console.print("nothing is out of date")
        return None
    results = Path("results/coverage.jsonl")
    run = Run(DEFAULT_SUBJECTS, Selection(cases), PROFILE_BY_NAME["default"], None, (), jobs, 120.0)
    if judge_all(run, results):
        raise typer.Exit(1)
    return results


def results_of(path: Path) -> tuple[dict[str, object], list[Verdict]]:
    """Return a results file; a bad one ends the command with exit code 2."""
    with refusing(ResultsError):
        return read_results(path)


@app.command()
def show(results: Annotated[Path, typer.Argument(help="a results file")]) -> None:
    """Print the tables of a results file again."""
    provenance, verdicts = results_of(results)
    console.print(provenance)
    report(verdicts, provenance.get("clauses"))


@app.command()
def explain(
    name: Annotated[
        str,
        typer.Argument(
            help="a hook point, hook_rot_q or blocks.0.attn.hook_rot_q, or the id of a clause"
        ),
    ],
) -> None:
    """Print what a hook point holds: its clauses, formula and axes, and when a layer has it."""
    with refusing(UnknownHook):
        console.print(explanation(name), highlight=False)
