"""Results put together, as JUnit XML, and as a badge: outcomes are never merged, and what is
missing is said."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from ropebridge_conformance.judging.verdicts import BAD, Outcome, Verdict
from ropebridge_conformance.results.badge import COLOURS, WORDS, badge
from ropebridge_conformance.results.combining import CombineError, combined
from ropebridge_conformance.results.files import header, read_results
from ropebridge_conformance.results.junit import junit

PASS = Verdict(
    *("s", "ROT-1", "c", "hook_rot_q", "llama", "llama", "float32", "cpu", Outcome.PASS),
    scenario="prefill",
)


def verdicts(*cases, outcome=Outcome.PASS):
    return [replace(PASS, case=case, outcome=outcome) for case in cases]


@pytest.fixture
def write(tmp_path):
    """`write(name, verdicts, **run)`: a results file, with this in its header."""

    def call(name, made, subjects=("m:F",), **run):
        path = tmp_path / name
        first = header(
            list(subjects),
            ["cpu"],
            {"names": {"m:F": "s"}, "plan": "p", "shard": None, "expected": len(made), **run},
        )
        path.write_text("\n".join([first, *(v.line() for v in made)]) + "\n", encoding="utf-8")
        return path

    return call


# ---- combine ----


def test_shards_together_are_the_whole(write):
    paths = [
        write(f"{i}.jsonl", verdicts(*cases), shard=f"{i}/3")
        for i, cases in ((1, "ab"), (2, "c"), (3, "de"))
    ]
    provenance, made = combined(paths)
    assert made == verdicts(*"abcde")
    assert (provenance["expected"], provenance["shard"], provenance["plan"]) == (5, None, "p")


def test_what_two_files_have_is_kept_once(write):
    assert combined([write("a", verdicts("a", "b")), write("b", verdicts("b", "c"))])[
        1
    ] == verdicts("a", "b", "c")


def test_headers_that_differ_harmlessly_are_all_kept(write):
    provenance, _ = combined(
        [
            write("a", verdicts("a"), torch="1"),
            write("b", verdicts("b"), torch="2", devices=["cuda"]),
        ]
    )
    assert provenance["torch"] == ["1", "2"]
    assert provenance["devices"] == ["cpu", "cuda"]


@pytest.mark.parametrize(
    ("shards", "words"),
    [
        (["1/4", "4/4"], "missing: shard 2/4, 3/4\n  give their results files too"),
        (["1/2", "2/3"], "these are not the shards of one run"),
        (["1/2", None], "shard none: it is a whole run"),
    ],
)
def test_shards_that_are_not_all_there_are_refused_by_name(write, shards, words):
    paths = [write(f"{i}.jsonl", verdicts(str(i)), shard=shard) for i, shard in enumerate(shards)]
    with pytest.raises(CombineError) as raised:
        combined(paths)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"subjects": ["n:G"]}, "subjects differs"),
        ({"ropebridge_spec": "0.9"}, "ropebridge_spec differs"),
        ({"spec_hash": "0"}, "spec_hash differs"),
        ({"transformers": "4"}, "transformers differs"),
        ({"plan": "q"}, "plan differs"),
    ],
)
def test_results_of_different_runs_are_refused(write, other, words):
    one, two = write("one.jsonl", verdicts("a")), write("two.jsonl", verdicts("b"), **other)
    with pytest.raises(CombineError) as raised:
        combined([one, two])
    assert f"these results do not belong together: {words}\n  {one}: " in str(raised.value)
    assert f"\n  {two}: {next(iter(other.values()))}\n  " in str(raised.value)


def test_verdicts_that_contradict_each_other_are_refused(write):
    one, two = (
        write("one.jsonl", verdicts("a")),
        write("two.jsonl", verdicts("a", outcome=Outcome.FAIL)),
    )
    with pytest.raises(CombineError) as raised:
        combined([one, two])
    first, *lines = str(raised.value).splitlines()
    assert first == "two verdicts on one question: clause ROT-1, test_c[hook_rot_q-a-float32-cpu-s]"
    assert lines == [f"  {one}: pass", f"  {two}: fail", "  leave out the file that is out of date"]


def test_a_file_that_was_cut_short_is_refused(write):
    with pytest.raises(
        CombineError, match="has 1 of 7 verdicts: its run was cut short\n  run it again"
    ):
        combined([write("a", verdicts("a"), expected=7)])


@pytest.mark.slow
def test_shards_of_a_real_run_make_up_the_run(ropebridge, tmp_path):
    """From the command, start to end: two shards and their combination have what the whole run
    has."""
    narrow = (
        *("--family=llama", "--device=cpu", "--dtype=float32", "--dtype=float64"),
        *("--check=hooks_fire_once_in_contract_order", "--jobs=1"),
    )

    def run(*words):
        done = ropebridge(*words)
        assert done.exit_code == 0, done.stderr

    run("check", "ropebridge.subject:Factory", *narrow, "--results=whole.jsonl")
    for shard in ("1/2", "2/2"):
        where = (f"--shard={shard}", f"--results={shard[0]}.jsonl")
        run("check", "ropebridge.subject:Factory", *narrow, *where)
    run("combine", "1.jsonl", "2.jsonl", "-o", "both.jsonl")
    (_, whole), (provenance, both) = (
        read_results(tmp_path / name) for name in ("whole.jsonl", "both.jsonl")
    )
    assert sorted(v.line() for v in both) == sorted(v.line() for v in whole)
    assert provenance["expected"] == len(whole) > 10
    refused = ropebridge("combine", "1.jsonl", "-o", "x.jsonl")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("missing: shard 2/2")
    assert not (tmp_path / "x.jsonl").exists()


# ---- JUnit ----


def test_junit_counts_and_names_every_outcome():
    made = [replace(PASS, outcome=outcome, reason="because") for outcome in Outcome]
    root = ElementTree.fromstring(junit({"torch": "2"}, made))
    (suite,) = root
    assert dict(suite.items()) == {
        "name": "s",
        "tests": "7",
        "failures": "2",
        "errors": "1",
        "skipped": "3",
    }
    assert [failure.get("type") for failure in suite.iter("failure")] == ["fail", "vacuous"]
    assert [error.get("type") for error in suite.iter("error")] == ["judge-error"]
    assert [skip.get("message") for skip in suite.iter("skipped")] == [
        "unsupported: because",
        "known-failure: because",
        "not-exercised: because",
    ]
    assert suite.find("properties/property[@name='torch']").get("value") == "2"
    case = suite.find("testcase")
    assert (case.get("classname"), case.get("name")) == (
        "s.c",
        "hook_rot_q-llama-prefill-float32-cpu",
    )


def test_junit_holds_what_xml_cannot():
    evil = "]]></failure><x a='\"'>&amp; \x00\x1b \ud800"
    root = ElementTree.fromstring(
        junit({evil: evil}, [replace(PASS, outcome=Outcome.FAIL, reason=evil, subject=evil)])
    )
    assert (
        root.find("testsuite/testcase/failure").get("message")
        == "clause ROT-1: ]]></failure><x a='\"'>&amp; \\u0000\\u001b \\ud800"
    )


# ---- badge ----


def test_a_badge_names_every_outcome_and_has_the_colour_of_the_worst():
    for place, outcome in enumerate(WORDS):
        made = badge(
            {"ropebridge_spec": "1.1"}, [replace(PASS, outcome=o) for o in list(WORDS)[place:]]
        )
        assert made["color"] == COLOURS[outcome]
        assert made["message"] == ", ".join(f"1 {words}" for words in list(WORDS.values())[place:])
        assert made["isError"] == (outcome in BAD)
        assert (made["schemaVersion"], made["label"]) == (1, "ropebridge spec 1.1")
    assert len(set(COLOURS.values())) == len(set(WORDS.values())) == len(Outcome)


def test_a_badge_of_nothing_or_of_half_a_run_is_not_green():
    assert badge({}, []) == {
        "schemaVersion": 1,
        "label": "ropebridge spec ?",
        "message": "no verdicts",
        "color": "lightgrey",
        "isError": True,
    }
    half = badge({"expected": 3}, [PASS])
    assert (half["message"], half["color"], half["isError"]) == (
        "incomplete, 1 of 3: 1 passing",
        "lightgrey",
        True,
    )
    assert badge({"expected": 3}, [replace(PASS, outcome=Outcome.FAIL)])["color"] == "red"


@pytest.mark.parametrize("command", ["junit", "badge"])
def test_the_commands_write_files_and_refuse_what_is_no_results(
    ropebridge, write, tmp_path, command
):
    write("r.jsonl", verdicts("a"))
    done = ropebridge(command, "r.jsonl", "-o", "new/out")
    assert done.exit_code == 0, done.stderr
    text = (tmp_path / "new" / "out").read_text(encoding="utf-8")
    assert (
        json.loads(text)["message"] == "1 passing"
        if command == "badge"
        else ElementTree.fromstring(text.encode()).tag == "testsuites"
    )
    refused = ropebridge(command, "nowhere.jsonl", "-o", "x")
    assert refused.exit_code == 2
    assert "nowhere.jsonl holds no results" in refused.stderr
