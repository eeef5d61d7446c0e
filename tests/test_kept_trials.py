"""Trials of mutants that were made are not made again while the judge is the same."""

import json

import pytest

from ropebridge_conformance import cli_mutants
from ropebridge_conformance.cli_mutants import CONTROLS
from ropebridge_conformance.judging import kept_trials
from ropebridge_conformance.judging.kept_trials import Control, KeptTrials, judge_hash
from ropebridge_conformance.judging.trial import Trial
from ropebridge_conformance.judging.verdicts import Outcome, Verdict
from ropebridge_conformance.mutants.catalogue import MUTANTS

DTYPE = "float32"


def killed(mutant):
    at = mutant.stage
    said = {"family": "llama", "case": "llama", "dtype": DTYPE, "device": "cpu", "divergent": at}
    verdict = Verdict(mutant.name, "ROT-1", "check", at, outcome=Outcome.FAIL, **said)
    return Trial(mutant.name, DTYPE, verdict, exercised=True)


@pytest.fixture
def path(tmp_path):
    """The file of a run that has made everything in one dtype."""
    path = tmp_path / "new" / "mutants.jsonl"
    kept = KeptTrials(path)
    for made in (*map(killed, MUTANTS), *(Control(name, DTYPE, 10, 0) for name in CONTROLS)):
        kept.note(made)
    return path


def test_what_was_made_is_read_again(path):
    made = KeptTrials(path).made
    assert len(made) == len(MUTANTS) + len(CONTROLS)
    assert made[MUTANTS[0].name, DTYPE] == killed(MUTANTS[0])
    assert made["runs", DTYPE] == Control("runs", DTYPE, 10, 0)


def test_another_judge_begins_anew(path, monkeypatch):
    monkeypatch.setattr(kept_trials, "judge_hash", lambda: "another")
    assert not KeptTrials(path).made
    assert len(path.read_text().splitlines()) == 1


def test_all_may_be_made_again(path):
    assert not KeptTrials(path, again=True).made


def test_a_line_that_was_cut_short_is_made_again(path):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines)[:-9])
    assert len(KeptTrials(path).made) == len(lines) - 2
    assert path.read_text().endswith("\n")


def test_the_hash_is_of_the_judge_and_not_of_its_reports(tmp_path, monkeypatch):
    class Package:
        __file__ = str(tmp_path / "__init__.py")

    monkeypatch.setattr(kept_trials, "ropebridge_conformance", Package)
    monkeypatch.setattr(kept_trials, "PACKAGES", (Package,))
    for name in ("checks", "results"):
        (tmp_path / name).mkdir()
    hashes = []
    for name in ("checks/masks.py", "results/page.py", "cli.py", "checks/masks.py"):
        (tmp_path / name).write_text(str(len(hashes)))
        hashes.append(judge_hash())
    assert hashes[0] == hashes[1] == hashes[2] != hashes[3]


def test_the_command_makes_nothing_that_is_there(path, ropebridge, monkeypatch):
    monkeypatch.setattr(cli_mutants, "ProcessPoolExecutor", None)
    done = ropebridge("mutants", "--dtype", DTYPE, "--kept", str(path))
    assert done.exit_code == 0
    said = " ".join(done.output.split())
    assert "nothing changed since these trials were made" in said
    assert f"{len(MUTANTS)} of {len(MUTANTS)} trials killed, {len(MUTANTS)} at the right" in said
    assert "control: 0 false alarms in 10 verdicts, in 10 correct runs" in said


@pytest.mark.parametrize(
    "wrong",
    [
        Trial(MUTANTS[0].name, DTYPE, None, exercised=True),
        Control("honest", DTYPE, 10, 1),
        Control("verdicts", DTYPE, 10, 1),
    ],
    ids=["survivor", "honest", "control"],
)
def test_the_command_fails_where_anything_is_not_as_it_must_be(path, ropebridge, wrong):
    kept = KeptTrials(path)
    kept.note(wrong)
    assert ropebridge("mutants", "--dtype", DTYPE, "--kept", str(path)).exit_code == 1


def test_each_line_says_one_thing(path):
    first, *lines = map(json.loads, path.read_text().splitlines())
    assert first == {"judge": judge_hash()}
    assert all(list(line) in (["trial"], ["control"]) for line in lines)


@pytest.mark.parametrize("again", [(), ("--again",)], ids=["kept", "again"])
@pytest.mark.parametrize("held", ['{"provenance": {}}\n', "mine", "\n"])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path, ropebridge, held, again):
    path = tmp_path / "run.jsonl"
    path.write_text(held)
    done = ropebridge("mutants", "--kept", str(path), *again)
    assert done.exit_code == 2
    assert "is no file of trials, which begins with the hash of a judge" in done.stderr
    assert "give --kept another file, or take this one away" in done.stderr
    assert path.read_text() == held
