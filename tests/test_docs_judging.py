"""The guide for people who judge their own bridge, and the workflow they copy: every block runs,
every option exists."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ropebridge_conformance.cli import app
from ropebridge_conformance.judging.verdicts import Outcome
from ropebridge_conformance.results.files import read_results

DOCS = Path(__file__).parent.parent / "docs"
yaml = pytest.importorskip("yaml")
GUIDE = (DOCS / "JUDGING.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def lines_of_guide():
    return [line for block in blocks("sh") for line in block.splitlines() if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("judging")
    (code,) = blocks("python")
    (path / "my_subject.py").write_text(code, encoding="utf-8")
    return path


@pytest.mark.slow
def test_every_command_of_the_guide_runs(folder, monkeypatch):
    """One layer in place of the smoke profile's; else as they stand."""
    monkeypatch.chdir(folder)
    for line in lines_of_guide():
        words = shlex.split(
            line.replace(
                "--profile smoke",
                "--family llama --dtype float32 --dtype float64 --device cpu --check"
                " the_output_agrees_with_hugging_face",
            )
        )
        assert words[0] == "ropebridge"
        done = CliRunner().invoke(app, words[1:])
        fails_as_said = words[1] == "check" and "prefill" not in words
        assert done.exit_code == (1 if fails_as_said else 0), (line, done.stderr)
    for name in ("report.html", "junit.xml", "badge.json", "results/all.jsonl"):
        assert (folder / name).stat().st_size > 100


@pytest.mark.slow
def test_the_subject_of_the_guide_is_what_is_said_of_it(folder, monkeypatch):
    """Gaps are unsupported, hook_out is judged across them, what needs them is not exercised, and
    what fails is masks, not the judge's own footing."""
    monkeypatch.chdir(folder)
    narrow = ("--family=llama", "--device=cpu", "--dtype=float32", "--results=r.jsonl")
    assert CliRunner().invoke(app, ["check", "my_subject:Factory", *narrow]).exit_code == 1
    _, verdicts = read_results(folder / "r.jsonl")
    outcomes = {
        outcome: {v.clause for v in verdicts if v.outcome == outcome} for outcome in Outcome
    }
    assert {"PAR-1", "IN-1", "IN-2", "OUT-2", "FIRE-2"} <= outcomes[Outcome.PASS]
    assert {v.case for v in verdicts if v.clause == "PAR-1" and v.outcome == Outcome.FAIL} == {
        "llama-left_padding",
        "llama-no_mask",
    }
    assert "MASK-7" in outcomes[Outcome.FAIL]
    assert not {"FIRE-1"} & outcomes[Outcome.FAIL]
    across = {v.case: v.outcome for v in verdicts if v.clause == "OUT-1"}
    assert across["llama-prefill"] == across["llama-decode"] == Outcome.PASS
    assert across["llama-no_mask"] == across["llama-left_padding"] == Outcome.FAIL
    assert "GRAD-1" in outcomes[Outcome.NOT_EXERCISED]
    assert not [v for v in verdicts if v.reason.startswith("raised KeyError")]
    assert {"ROT-1", "PAT-1"} <= outcomes[Outcome.UNSUPPORTED]


def test_the_judged_object_is_as_short_as_is_said():
    (code,) = blocks("python")
    wanted = [
        line
        for line in code.splitlines()
        if line.strip() and not line.lstrip().startswith(("#", "from", "class"))
    ]
    assert len(wanted) <= 15


WORKFLOW = yaml.safe_load((DOCS / "ci" / "ropebridge.yml").read_text(encoding="utf-8"))
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
CALLS = [step["run"] for step in STEPS if step.get("run", "").startswith("ropebridge ")]


def options_of(command):
    return {option for parameter in COMMANDS[command].params for option in parameter.opts}


@pytest.mark.parametrize("call", [*CALLS, *lines_of_guide()])
def test_every_option_that_is_shown_exists(call):
    _, command, *words = shlex.split(re.sub(r"\$\{\{.*?\}\}", "1", call))
    assert command in COMMANDS
    assert not {word for word in words if word.startswith("-")} - options_of(command)


def test_the_workflow_judges_combines_reports_and_shows_a_badge():
    assert [shlex.split(call)[1] for call in CALLS] == [
        "check",
        "combine",
        "report",
        "junit",
        "badge",
    ]
    judge, report = WORKFLOW["jobs"]["judge"], WORKFLOW["jobs"]["report"]
    assert judge["strategy"]["matrix"]["shard"] == list(range(1, 5))
    assert "--shard ${{ matrix.shard }}/${{ strategy.job-total }}" in CALLS[0]
    assert not judge["strategy"]["fail-fast"], (
        "or one shard's failure would cost the report the others"
    )
    assert (report["needs"], report["if"]) == ("judge", "always()")
    assert set(WORKFLOW[True]) == {"push", "pull_request"}, "YAML reads `on` as true"
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_what_the_workflow_uploads_it_downloads():
    up, down, _ = (step["with"] for step in STEPS if "artifact" in step.get("uses", ""))
    assert re.fullmatch(down["pattern"].replace("*", ".*"), up["name"])
    assert down["merge-multiple"]
