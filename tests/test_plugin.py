"""The plugin, run by another pytest in a folder of its own; and the command line."""

import json
import re
import subprocess
import sys

import pytest

from ropebridge_conformance.judging.verdicts import read_line

pytestmark = pytest.mark.slow

ONE_LAYER = ("--family", "llama", "--dtype", "float32", "--device", "cpu")
PLUGIN = ("-m", "pytest", "-q", "-p", "ropebridge_conformance", "-p", "no:cacheprovider")
SUITE = (*PLUGIN, "--pyargs", "ropebridge_conformance")
BRIDGE = "--ropebridge-subject=ropebridge.subject:Factory"
REFERENCE = "--ropebridge-subject=ropebridge_conformance.subjects.reference:Factory"
SUITE_ON_ONE_LAYER = (
    *SUITE,
    "--ropebridge-family=llama",
    "--ropebridge-dtype=float32",
    "--ropebridge-device=cpu",
)
ROT_Q = "test_a_stage_gives_the_value_of_its_clause[hook_rot_q-llama-float32-cpu]"

BROKEN = """
from ropebridge_conformance.mutants.catalogue import MUTANTS

def Factory():
    return next(m for m in MUTANTS if m.name == "sin_sign").subject()
"""


@pytest.fixture
def run(tmp_path):
    """Run python in an empty folder that belongs to nobody."""

    def call(*words):
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return call


@pytest.mark.every
def test_the_suite_passes_for_the_bridge_from_any_directory(run):
    done = run(*SUITE_ON_ONE_LAYER, BRIDGE)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_the_suite_fails_for_a_broken_subject_and_names_the_clause(run, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    done = run(*SUITE_ON_ONE_LAYER, "--ropebridge-subject=broken:Factory", "-k", ROT_Q)
    assert done.returncode == 1
    assert "fail: clause ROT-1: hook_rot_q is off by" in done.stdout
    assert "1 failed" in done.stdout


@pytest.mark.every
def test_the_suite_writes_its_verdicts(run, tmp_path):
    narrow = ("-k", "axes", "--ropebridge-results=out/verdicts.jsonl")
    done = run(*SUITE_ON_ONE_LAYER, BRIDGE, *narrow)
    header, *lines = (tmp_path / "out" / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    assert done.returncode == 0, done.stdout[-3000:]
    assert json.loads(header)["provenance"]["subjects"] == ["ropebridge.subject:Factory"]
    assert {json.loads(line)["outcome"] for line in lines} == {"pass"}


@pytest.mark.every
def test_an_id_chooses_its_question_whoever_it_is_put_to(run):
    """`-k` with an id: of two subjects, the name of which follows in the test's own id."""
    done = run(*SUITE_ON_ONE_LAYER, BRIDGE, REFERENCE, "--collect-only", "-k", ROT_Q)
    found = [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]
    assert found == [ROT_Q.replace("cpu]", f"cpu-{name}]") for name in ("bridge", "reference")]


OTHERS = """
import pytest

def pytest_addoption(parser):
    parser.addoption("--device")
    parser.addoption("--dtype")
    parser.addoption("--subject")
"""


@pytest.mark.every
def test_the_plugin_leaves_other_tests_and_other_options_alone(run, tmp_path):
    """A laboratory's own options have the names that they had; its tests run where they stood."""
    (tmp_path / "conftest.py").write_text(OTHERS, encoding="utf-8")
    for name in ("early", "late"):
        (tmp_path / f"test_{name}.py").write_text(f"def test_{name}(): pass\n", encoding="utf-8")
    done = run(
        *PLUGIN,
        *("test_early.py", "--pyargs", "ropebridge_conformance", "test_late.py"),
        *("--device=cuda", "--dtype=int4", "--subject=mine", "--ropebridge-family=llama"),
        *("--ropebridge-dtype=float32", "--ropebridge-device=cpu", BRIDGE, "--collect-only"),
    )
    found = [line for line in done.stdout.splitlines() if "::" in line]
    assert done.returncode == 0, done.stderr
    assert (found[0], found[-1]) == ("test_early.py::test_early", "test_late.py::test_late")
    assert len(found) > 300


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--ropebridge-subject=nowhere:Factory", "cannot load subject 'nowhere:Factory'"),
        pytest.param(
            "--ropebridge-family=gpt2",
            "no family 'gpt2' in the zoo\n  nearest: g",
            marks=pytest.mark.every,
        ),
        pytest.param(
            "--ropebridge-known-failures=missing.toml",
            "cannot read known failures from missing.toml",
            marks=pytest.mark.every,
        ),
    ],
    ids=["subject", "family", "known_failures"],
)
def test_a_bad_call_of_the_suite_is_told_before_anything_runs(run, word, message):
    done = run(*SUITE, word)
    assert done.returncode == 4
    assert message in done.stderr + done.stdout


@pytest.mark.every
def test_check_judges_a_subject_and_leaves_results(ropebridge, tmp_path):
    done = ropebridge(
        "check", "ropebridge.subject:Factory", *ONE_LAYER, "--jobs", "1", "--results", "r.jsonl"
    )
    assert done.exit_code == 0, done.stdout + done.stderr
    assert "bridge: verdicts" in done.stdout
    assert "verdicts: " in done.stdout
    lines = (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()
    assert f"{len(lines) - 1} verdicts: {len(lines) - 1} pass" in done.stdout


@pytest.mark.every
def test_check_fails_for_a_broken_subject(ropebridge, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    done = ropebridge("check", "broken:Factory", *ONE_LAYER, "--jobs", "2", "--results", "r.jsonl")
    assert done.exit_code == 1, done.stderr
    told = f"{ROT_Q.replace('cpu]', 'cpu-sin_sign]')}: hook_rot_q is off by"
    assert re.search(rf"fail ROT-1 hook_rot_q: \d+ verdicts.*: {re.escape(told)}", done.stdout)


@pytest.mark.every
def test_check_puts_one_question_again_by_the_id_that_a_report_prints(ropebridge, tmp_path):
    """Of two subjects, the one that the id names; without a name, both."""
    of_one = ROT_Q.replace("cpu]", "cpu-bridge]")
    for asked, subjects in ((of_one, ["bridge"]), (f"a.py::{ROT_Q}", ["bridge", "reference"])):
        done = ropebridge("check", "--only", asked, "--jobs", "1", "--results", "r.jsonl")
        assert done.exit_code == 0, done.stdout + done.stderr
        _, *lines = (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()
        verdicts = [read_line(line) for line in lines]
        assert sorted(verdict.subject for verdict in verdicts) == subjects
        assert {verdict.id for verdict in verdicts} == {
            ROT_Q.replace("cpu]", f"cpu-{name}]") for name in subjects
        }


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("hook_rot_q", "'hook_rot_q' is no id of a question\n  an id is the name of a test"),
        (ROT_Q.replace("llama", "gpt2"), "no family 'gpt2' in the zoo"),
        (ROT_Q.replace("rot_q", "rot_v"), "no question of this run has the id test_a_stage_gives"),
    ],
    ids=["no_id", "no_layer", "no_such_question"],
)
def test_check_refuses_an_id_that_no_question_has(ropebridge, id, message):
    done = ropebridge("check", "ropebridge.subject:Factory", "--only", id)
    assert done.exit_code == 2
    assert message in done.stderr


def test_check_refuses_a_subject_that_is_not_there(ropebridge):
    done = ropebridge("check", "nowhere:Factory")
    assert done.exit_code == 2
    assert "cannot load subject 'nowhere:Factory'" in done.stderr


def test_check_refuses_a_family_that_is_not_there(ropebridge):
    done = ropebridge("check", "--family", "gpt2")
    assert done.exit_code == 2
    assert "no family 'gpt2' in the zoo" in done.stderr


def test_show_prints_a_results_file_again(ropebridge):
    ropebridge("check", "ropebridge.subject:Factory", "--only", ROT_Q, "--results", "r.jsonl")
    done = ropebridge("show", "r.jsonl")
    assert done.exit_code == 0, done.stderr
    assert "bridge: verdicts" in done.stdout


def test_show_refuses_what_is_no_results_file(ropebridge, tmp_path):
    (tmp_path / "r.jsonl").write_text("nonsense\n", encoding="utf-8")
    done = ropebridge("show", "r.jsonl")
    assert done.exit_code == 2
    assert "holds no results" in done.stderr


def test_explain_prints_clause_formula_and_axes(ropebridge):
    done = ropebridge("explain", "hook_rot_q")
    assert "clause ROT-1" in done.stdout
    assert "(a cos - b sin, b cos + a sin)" in done.stdout
    assert "batch pos head d_head" in done.stdout


def test_explain_refuses_a_name_that_is_no_hook_point(ropebridge):
    done = ropebridge("explain", "hook_rot")
    assert done.exit_code == 2
    assert "there is no hook point 'hook_rot'" in done.stderr
