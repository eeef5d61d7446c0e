"""The plugin and the command line, from the outside: other processes, other folders."""

import json
import subprocess
import sys

import pytest

ONE_LAYER = ("--family", "llama", "--dtype", "float32", "--device", "cpu")
SUITE = (
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "-p",
    "ropebridge_conformance",
    "--pyargs",
    "ropebridge_conformance",
    "-p",
    "no:cacheprovider",
)
BRIDGE = ("--subject", "ropebridge.subject:Factory")

BROKEN = """
from ropebridge_conformance.mutants import MUTANTS

def Factory():
    return next(m for m in MUTANTS if m.name == "sin_sign").subject()
"""


@pytest.fixture
def run(tmp_path):
    """Run a command in an empty folder that belongs to nobody."""

    def call(*command):
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return call


@pytest.fixture
def ropebridge(run):
    return lambda *words: run(
        sys.executable, "-c", "from ropebridge_conformance.command import main; main()", *words
    )


def test_the_suite_passes_for_the_bridge_from_any_directory(run):
    done = run(*SUITE, *BRIDGE, *ONE_LAYER)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_the_suite_fails_for_a_broken_subject_and_names_the_clause(run, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    done = run(
        *SUITE,
        "--subject",
        "broken:Factory",
        *ONE_LAYER,
        "-k",
        "value_of_its_clause and rot_q and prefill or rot_q-llama-float32",
    )
    assert done.returncode == 1
    assert "fail: clause ROT-1: hook_rot_q is off by" in done.stdout


def test_the_suite_writes_its_verdicts(run, tmp_path):
    done = run(*SUITE, *BRIDGE, *ONE_LAYER, "-k", "axes", "--results", "out/verdicts.jsonl")
    header, *lines = (tmp_path / "out" / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    assert done.returncode == 0, done.stdout[-3000:]
    assert json.loads(header)["provenance"]["subjects"] == ["ropebridge.subject:Factory"]
    assert {json.loads(line)["verdict"] for line in lines} == {"pass"}


def test_ids_name_the_subject_only_where_there_are_several(run):
    one = run(*SUITE, *BRIDGE, *ONE_LAYER, "--collect-only").stdout
    two = run(
        *SUITE,
        *BRIDGE,
        "--subject",
        "ropebridge_conformance.subjects.reference:Factory",
        *ONE_LAYER,
        "--collect-only",
    ).stdout
    assert "test_a_stage_gives_the_value_of_its_clause[hook_rot_q-llama-float32-cpu]" in one
    assert (
        "test_a_stage_gives_the_value_of_its_clause[hook_rot_q-llama-float32-cpu-reference]" in two
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--subject", "nowhere:Factory"), "cannot load subject 'nowhere:Factory'"),
        (("--family", "gpt2"), "no family 'gpt2' in the zoo\n  nearest: g"),
        (("--known-failures", "missing.toml"), "cannot read known failures from missing.toml"),
    ],
    ids=["subject", "family", "known_failures"],
)
def test_a_bad_call_of_the_suite_is_told_before_anything_runs(run, words, message):
    done = run(*SUITE, *words)
    assert done.returncode == 4
    assert message in done.stderr + done.stdout


def test_check_judges_a_subject_and_leaves_results(ropebridge, tmp_path):
    done = ropebridge(
        "check", "ropebridge.subject:Factory", *ONE_LAYER, "--jobs", "1", "--results", "r.jsonl"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bridge: verdicts" in done.stdout
    assert "verdicts: " in done.stdout
    lines = (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()
    assert f"{len(lines) - 1} verdicts: {len(lines) - 1} pass" in done.stdout


def test_check_fails_for_a_broken_subject(ropebridge, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    done = ropebridge("check", "broken:Factory", *ONE_LAYER, "--jobs", "2", "--results", "r.jsonl")
    assert done.returncode == 1, done.stderr
    assert "fail sin_sign ROT-1" in done.stdout


def test_check_refuses_a_subject_that_is_not_there(ropebridge):
    done = ropebridge("check", "nowhere:Factory")
    assert done.returncode == 2
    assert "cannot load subject 'nowhere:Factory'" in done.stderr


def test_check_refuses_a_family_that_is_not_there(ropebridge):
    done = ropebridge("check", "--family", "gpt2")
    assert done.returncode == 2
    assert "no family 'gpt2' in the zoo" in done.stderr


def test_show_prints_a_results_file_again(ropebridge):
    ropebridge(
        "check", "ropebridge.subject:Factory", *ONE_LAYER, "--jobs", "1", "--results", "r.jsonl"
    )
    done = ropebridge("show", "r.jsonl")
    assert done.returncode == 0, done.stderr
    assert "bridge: verdicts" in done.stdout


def test_show_refuses_what_is_no_results_file(ropebridge, tmp_path):
    (tmp_path / "r.jsonl").write_text("nonsense\n", encoding="utf-8")
    done = ropebridge("show", "r.jsonl")
    assert done.returncode == 2
    assert "holds no results" in done.stderr


def test_explain_prints_clause_formula_and_axes(ropebridge):
    done = ropebridge("explain", "hook_rot_q")
    assert "clause ROT-1" in done.stdout
    assert "(a cos - b sin, b cos + a sin)" in done.stdout
    assert "batch pos head d_head" in done.stdout


def test_explain_refuses_a_name_that_is_no_hook_point(ropebridge):
    done = ropebridge("explain", "hook_rot")
    assert done.returncode == 2
    assert "there is no hook point 'hook_rot'" in done.stderr
