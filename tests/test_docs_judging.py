"""The guide for people who judge their own bridge, and the workflow they copy: every block runs,
every option exists."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from ropebridge_conformance.cli import app
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.judge import judge, plan
from ropebridge_conformance.judging.verdicts import Outcome
from ropebridge_conformance.results.files import read_results
from ropebridge_conformance.subjects.loading import load_subject
from ropebridge_conformance.zoo.calls import calls
from ropebridge_conformance.zoo.scenarios import SCENARIO_BY_ID, possible
from ropebridge_conformance.zoo.specimens import COVER, specimen

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
@pytest.mark.every
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
    assert {v.scenario for v in verdicts if v.clause == "PAR-1" and v.outcome == Outcome.FAIL} == {
        "left_padding",
        "no_mask",
    }
    assert "MASK-7" in outcomes[Outcome.FAIL]
    assert not {"FIRE-1"} & outcomes[Outcome.FAIL]
    across = {v.scenario: v.outcome for v in verdicts if v.clause == "OUT-1"}
    assert across["prefill"] == across["decode"] == Outcome.PASS
    assert across["no_mask"] == across["left_padding"] == Outcome.FAIL
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


# ---- the subject of the README ----

README = (DOCS.parent / "README.md").read_text(encoding="utf-8")
LLAMA = next(code for code in re.findall(r"```python\n(.*?)```", README, re.S) if "Factory" in code)
VALUE = "a_stage_gives_the_value_of_its_clause"


def judged(monkeypatch, folder, name, code, *narrow):
    """The verdicts on a subject of this code, in the process of the test."""
    monkeypatch.syspath_prepend(folder)
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    torch.set_num_threads(1)
    bench = Bench(load_subject(f"{name}:Factory"))
    questions = plan(("llama",), ("float32", "float64"), ("cpu",))
    return [judge(bench, q) for q in questions if not narrow or (q.check, q.hook) in narrow]


@pytest.mark.slow
def test_the_readmes_subject_passes_all_that_it_does_not_declare(monkeypatch, tmp_path):
    verdicts = judged(monkeypatch, tmp_path, "readmes_llama", LLAMA)
    assert {v.outcome for v in verdicts} == {Outcome.PASS, Outcome.UNSUPPORTED}
    assert sum(v.outcome == Outcome.PASS for v in verdicts) > 150
    assert len([line for line in LLAMA.splitlines() if line.strip()]) < 55


@pytest.mark.parametrize(
    ("number", "old", "new", "check", "hook", "words"),
    [
        (1, "fn(x, hook=point)", "fn(x, hook=None)", "a_hook_watched_alone_fires_once", "hook_z",
         "hook.name is ''; clause FIRE-4 requires the full name"),
        (2, "x.clone(memory_format=torch.contiguous_format)", "x.clone()",
         "a_hook_is_shown_a_contiguous_tensor_of_its_own", None, "was shown a tensor of strides"),
        (3, ".softmax(-1)", ".float().softmax(-1).to(s.dtype)", VALUE, "hook_pattern",
         "hook_pattern is off by"),
        (4, ".clone(), pattern", ".clone()", VALUE, "hook_z",
         "run gave back Tensor; ropebridge_spec.Layer.run gives (output tensor, weights tensor or"
         " None)"),
        (5, 'at(f"hook_{role}", getattr(m, f"{role}_proj")(x).unflatten(-1, (-1, d)))',
         'at(f"hook_{role}", getattr(m, f"{role}_proj")(x).unflatten(-1, (-1, d)).mT).mT',
         "a_hook_has_the_axes_of_the_contract", "hook_q", "hook_q has shape"),
        (6, "x = x if left is None else left", "x = x",
         "a_replacement_is_what_the_rest_of_the_layer_sees", "hook_z", "was lost before the next"),
    ],
)  # fmt: skip
def test_a_first_try_is_told_what_is_wrong(
    monkeypatch, tmp_path, number, old, new, check, hook, words
):
    """In the words that the guide says."""
    assert LLAMA.count(old) == 1
    code = LLAMA.replace(old, new)
    verdicts = judged(monkeypatch, tmp_path, f"first_try_{number}", code, (check, hook))
    assert any(words in v.reason for v in verdicts if v.outcome == Outcome.FAIL)
    section = GUIDE.partition("## What first tries get wrong")[2].partition("##")[0]
    assert len([line for line in section.splitlines() if line.startswith("| ")]) == 8
    assert words in section or words.removesuffix(" the next") in section


@pytest.mark.slow
def test_the_guide_names_all_that_a_layer_is_called_with():
    """Every key of the inputs of any layer of the zoo."""
    section = GUIDE.partition("## What a layer is called with")[2].partition("##")[0]
    told = set(re.findall(r"`(\w+)`", section))
    for case in COVER:
        own = specimen(case.id, torch.float32, "cpu")
        for id in ("prefill", "decode"):
            if possible(SCENARIO_BY_ID[id], own.variant):
                for call in calls(SCENARIO_BY_ID[id], own, None):
                    assert set(call.inputs) <= told, case.id
