"""Subjects that hang, die, raise, or answer with the wrong thing: one clear verdict each, and the
rest of the run goes on."""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.judge import LONGEST, judge
from ropebridge_conformance.judging.planning import Selection, units_of
from ropebridge_conformance.judging.pool import PATIENCE, Pool
from ropebridge_conformance.judging.verdicts import Outcome
from ropebridge_conformance.judging.worker import Loaded, Refused, Task
from ropebridge_conformance.subjects.loading import SubjectError, load_subject
from ropebridge_conformance.subjects.reference import Factory as Reference

# they wait for limits to pass, and for processes that import torch
pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

SUBJECTS = '''
import ctypes, os, sys, time
from ropebridge_conformance.subjects.reference import Factory as Reference

def hang(): time.sleep(1000)
def hang_in_c():  # holds the interpreter's lock: no Python code of this process runs
    ctypes.PyDLL(None).sleep(1000)
def crash(): ctypes.string_at(0)
def leave(): os._exit(3)
def exit_politely(): sys.exit("enough")
def raise_midway(): raise RuntimeError("midway")

class Odd:
    """Misbehaves whenever a hook is at hook_z alone; otherwise the reference."""
    unsupported = {}

    def __init__(self, misbehave):
        self.name, self.misbehave = misbehave.__name__, misbehave

    def layer(self, module, *, rotary, opted_in=()):
        inner, outer = Reference().layer(module, rotary=rotary, opted_in=opted_in), self
        class Layer:
            def run(self, inputs, hooks=()):
                if [name for name, _ in hooks] == ["hook_z"]:
                    outer.misbehave()
                return inner.run(inputs, hooks)
        return Layer()

def always(misbehave):
    class Always(Odd):
        def layer(self, module, *, rotary, opted_in=()):
            misbehave()
    return Always(misbehave)

ALL = (hang, hang_in_c, crash, leave, exit_politely, raise_midway)
Hang, HangInC, Crash, Leave, Exit, Raise = (lambda m=m: Odd(m) for m in ALL)
AlwaysHang = lambda: always(hang)
'''
# Limits are long enough for a layer to be built on a machine that is busy with much else.
ALONE = "a_hook_watched_alone_fires_once"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with subjects that misbehave, and one whose import never ends."""
    path = tmp_path_factory.mktemp("subjects")
    (path / "odd_subjects.py").write_text(SUBJECTS, encoding="utf-8")
    (path / "endless_subject.py").write_text("import time\ntime.sleep(1000)\n", encoding="utf-8")
    return path


@pytest.fixture
def put_all(folder, monkeypatch):
    """Put one check about one layer to a subject, in another process; one verdict per question."""
    monkeypatch.chdir(folder)

    def put(path, timeout=10.0, hooks=("hook_rot_q", "hook_z", "hook_out")):
        (unit,) = units_of(
            [path], Selection(("llama",), ("float32",), ("cpu",), (ALONE,), hooks, ("prefill",))
        )
        with Pool(1, timeout) as pool:
            assert isinstance(pool.load(path), Loaded)
            return list(pool.judged([Task(path, "odd", unit.key, unit.questions)]))

    return put


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("Hang", "no answer within 10 seconds; its process was stopped"),
        pytest.param(
            "HangInC",
            "no answer within 10 seconds; its process was stopped",
            marks=pytest.mark.every,
        ),
        ("Crash", "its process ended: killed by SIGSEGV"),
        ("Leave", "its process ended: exit code 3"),
        ("Exit", "raised SystemExit: enough"),
        ("Raise", "raised RuntimeError: midway"),
    ],
)
def test_one_verdict_says_so_and_the_rest_goes_on(put_all, factory, words):
    before, odd, after = put_all(f"odd_subjects:{factory}")
    assert (before.outcome, after.outcome) == (Outcome.PASS, Outcome.PASS)
    assert (odd.outcome, odd.hook, odd.clause, odd.divergent, odd.reason) == (
        Outcome.FAIL,
        "hook_z",
        "FIRE-2",
        "hook_z",
        words,
    )


@pytest.mark.every
def test_a_subject_that_never_answers_is_not_asked_for_ever(put_all):
    made = put_all("odd_subjects:AlwaysHang", timeout=3.0, hooks=())
    assert [v.outcome for v in made] == [Outcome.FAIL] * PATIENCE + [Outcome.NOT_EXERCISED] * (
        len(made) - PATIENCE
    )
    assert len(made) > PATIENCE + 1
    assert (
        made[-1].reason
        == f"not asked: the subject had left {PATIENCE} questions in a row unanswered"
    )


@pytest.mark.every
def test_a_listed_hang_is_known(folder, monkeypatch):
    from ropebridge_conformance.judging.known_failures import KnownFailure

    monkeypatch.chdir(folder)
    path = "odd_subjects:Hang"
    (unit,) = units_of(
        [path], Selection(("llama",), ("float32",), ("cpu",), (ALONE,), ("hook_z",), ("prefill",))
    )
    with Pool(1, 10.0) as pool:
        (made,) = pool.judged(
            [
                Task(
                    path,
                    "odd",
                    unit.key,
                    unit.questions,
                    (KnownFailure("FIRE-2", "it hangs there"),),
                )
            ]
        )
    assert (made.outcome, made.reason) == (Outcome.KNOWN_FAILURE, "it hangs there")


def test_an_import_that_never_ends_is_a_subject_that_cannot_be_loaded(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with Pool(1, 5.0) as pool:
        refused = pool.load("endless_subject:Factory")
        assert refused == Refused(
            "cannot load subject 'endless_subject:Factory': no answer within 5 seconds; its"
            " process was stopped"
        )
        assert pool.load("odd_subjects:Raise") == Loaded("raise_midway"), (
            "another process has taken its place"
        )


def test_processes_that_are_not_needed_any_more_are_gone(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with Pool(2, 20.0) as pool:
        pool.load("odd_subjects:Raise")
        held = [desk._process for desk in pool.desks]
    assert not any(process.is_alive() for process in held)


# ---- answers of the wrong kind ----


class Answering:
    """The reference, whose answers are changed before they are given back."""

    name, unsupported = "answering", {}

    def __init__(self, change):
        self.change = change

    def layer(self, module, *, rotary, opted_in=()):
        inner, change = Reference().layer(module, rotary=rotary, opted_in=opted_in), self.change

        class Layer:
            def run(self, inputs, hooks=()):
                return change(inner.run(inputs, hooks))

        return Layer()


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no words")


def raising(error):
    def change(_):
        raise error

    return change


def asked(change):
    (unit,) = units_of(
        ["answering"],
        Selection(("llama",), ("float32",), ("cpu",), (ALONE,), ("hook_z",), ("prefill",)),
    )
    return judge(Bench(Answering(change)), unit.questions[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda pair: None,
            (
                "raised WrongAnswer: run gave back NoneType; ropebridge_spec.Layer.run gives"
                " (output tensor, weights tensor or None)"
            ),
        ),
        (lambda pair: (*pair, 1), "raised WrongAnswer: run gave back tuple of 3; "),
        (
            lambda pair: (pair[0].tolist(), None),
            "raised WrongAnswer: run gave back an output of kind list; ",
        ),
        (
            lambda pair: (pair[0], "weights"),
            "raised WrongAnswer: run gave back weights of kind str; ",
        ),
        (raising(Unprintable()), "raised Unprintable: (its text could not be had: ValueError)"),
    ],
    ids=["none", "three", "list", "weights", "unprintable"],
)
def test_an_answer_of_the_wrong_kind_is_named(change, words):
    verdict = asked(change)
    assert verdict.outcome == Outcome.FAIL
    assert verdict.reason.startswith(words)


def test_a_hook_that_is_shown_no_tensor_is_named():
    class Listing(Answering):
        def layer(self, module, *, rotary, opted_in=()):
            inner = Reference().layer(module, rotary=rotary, opted_in=opted_in)

            class Layer:
                def run(self, inputs, hooks=()):
                    return inner.run(
                        inputs,
                        [
                            (name, lambda t, hook, fn=fn: fn(t.tolist(), hook=hook))
                            for name, fn in hooks
                        ],
                    )

            return Layer()

    (unit,) = units_of(
        ["listing"],
        Selection(("llama",), ("float32",), ("cpu",), (ALONE,), ("hook_z",), ("prefill",)),
    )
    verdict = judge(Bench(Listing(None)), unit.questions[0])
    assert (
        verdict.reason
        == "raised WrongAnswer: hook_z was shown list; a hook is shown a tensor (clause FIRE-4)"
    )


def test_a_verdict_keeps_no_endless_text():
    assert len(asked(raising(RuntimeError("x" * 10**6))).reason) == LONGEST


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("name", 3, "name is int, and must be a string"),
        ("unsupported", [], "unsupported is list, and must be a mapping"),
        ("layer", 1, "layer is int, and must be a method"),
    ],
)
def test_a_subject_of_the_wrong_kind_is_refused(monkeypatch, attribute, value, words):
    subject = SimpleNamespace(**{"name": "s", "unsupported": {}, "layer": print, attribute: value})
    monkeypatch.setitem(sys.modules, "odd_kind", SimpleNamespace(Factory=lambda: subject))
    with pytest.raises(SubjectError, match=words):
        load_subject("odd_kind:Factory")


# ---- from the outside ----


@pytest.fixture
def run(folder):
    return lambda *words: subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False
    )


COMMAND = (sys.executable, "-c", "from ropebridge_conformance.command import main; main()")
NARROW = (
    "--family",
    "llama",
    "--dtype",
    "float32",
    "--device",
    "cpu",
    "--check",
    ALONE,
    "--scenario",
    "prefill",
    "--jobs",
    "1",
)


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.every
def test_check_goes_on_after_what_cannot_be_loaded_and_what_hangs(ropebridge, folder, monkeypatch):
    monkeypatch.chdir(folder)
    done = ropebridge(
        "check",
        "nowhere:Factory",
        "odd_subjects:HangInC",
        "odd_subjects:Raise",
        *NARROW,
        "--timeout",
        "10",
        "--results",
        "r.jsonl",
    )
    assert done.exit_code == 1, done.stderr
    assert (
        "cannot load subject 'nowhere:Factory': ModuleNotFoundError: No module named 'nowhere'"
        in done.stderr
    )
    header, first, *rest = lines_of(folder / "r.jsonl")
    assert (first["subject"], first["check"], first["outcome"]) == (
        "nowhere:Factory",
        "the_subject_can_be_loaded",
        "fail",
    )
    assert header["provenance"]["expected"] == 1 + len(rest)
    counts = Counter((v["subject"], v["outcome"]) for v in rest)
    assert counts["hang_in_c", "fail"] == counts["raise_midway", "fail"] == 1
    assert counts["hang_in_c", "pass"] == counts["raise_midway", "pass"] == len(rest) / 2 - 1 > 5


def test_check_leaves_a_verdict_even_if_no_subject_can_be_loaded(ropebridge, folder, monkeypatch):
    monkeypatch.chdir(folder)
    done = ropebridge("check", "nowhere:Factory", *NARROW, "--results", "none.jsonl")
    assert done.exit_code == 2
    assert [v.get("outcome") for v in lines_of(folder / "none.jsonl")] == [None, "fail"]


@pytest.mark.every
def test_what_was_judged_is_on_disk_while_the_run_goes_on(folder):
    """A run that is killed outright while a question hangs has left every verdict before it."""
    path = folder / "killed.jsonl"
    path.unlink(missing_ok=True)
    command = [
        *COMMAND,
        "check",
        "odd_subjects:Hang",
        *NARROW,
        "--timeout",
        "600",
        "--results",
        str(path),
    ]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while not path.exists() or "hook_pattern" not in path.read_text(encoding="utf-8"):
            assert process.poll() is None
        process.kill()
    assert [v["hook"] for v in lines_of(path)[1:]][-1] == "hook_pattern", "the one before hook_z"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dtype", "float23"), "no dtype 'float23'\n  nearest: float32"),
        (
            ("--check", "hooks_fire"),
            "no check 'hooks_fire'\n  nearest: hooks_fire_once_in_contract_order",
        ),
        (("--hook", "hook_patern"), "no hook point 'hook_patern'\n  nearest: hook_pattern"),
        (("--scenario", "prefil"), "no scenario 'prefil'\n  nearest: prefill"),
        (("--family", "llama", "--hook", "hook_q_normed"), "there is nothing to ask"),
        (("--shard", "3/2"), "no shard '3/2'"),
        (("--device", "xpu:1"), "no device 'xpu'"),
    ],
)
def test_a_bad_call_of_check_is_refused(ropebridge, words, message):
    done = ropebridge("check", *words)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_dtype_that_there_is_not_is_refused_by_mutants_too(ropebridge):
    done = ropebridge("mutants", "--dtype", "float23")
    assert done.exit_code == 2
    assert "no dtype 'float23'\n  nearest: float32" in done.stderr


@pytest.mark.every
def test_the_plugin_survives_a_hang_in_c(run):
    done = run(
        *("-m", "pytest", "-q", "-p", "ropebridge_conformance", "-p", "no:cacheprovider"),
        *("--pyargs", "ropebridge_conformance", "--ropebridge-subject=odd_subjects:HangInC"),
        *("--ropebridge-family=llama", "--ropebridge-dtype=float32", "--ropebridge-device=cpu"),
        *("--ropebridge-timeout=20", "-k", f"{ALONE} and llama-float32"),
    )
    assert re.search(r"^1 failed, \d\d passed", done.stdout, re.MULTILINE), done.stdout[-2000:]
    assert (
        "fail: clause FIRE-2: no answer within 20 seconds; its process was stopped" in done.stdout
    )


def test_replacing_a_task_keeps_its_subject():
    task = Task("a:b", "b", "k")
    assert task.rest(["q"]) == replace(task, questions=("q",))
