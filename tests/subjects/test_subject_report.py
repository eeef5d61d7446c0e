"""The page about a subject: what it counts, what it groups, what it refuses to publish, and the
pages that are published."""

import json
from datetime import date
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ropebridge_conformance import subjects
from ropebridge_conformance.judging.known_failures import KnownFailure, read_known_failures
from ropebridge_conformance.judging.verdicts import Outcome, Verdict
from ropebridge_conformance.results.subject_report import app, causes, cell, page_of

ROOT = Path(__file__).parents[2]
PROVENANCE = {
    "ropebridge_spec": "9.9",
    "spec_hash": "abc",
    "torch": "7.7",
    "transformers": "8.8",
    "python": "3.11",
    "subjects": ["ropebridge_conformance.subjects.hugging_face:Factory"],
    "devices": ["cpu"],
}
KNOWN = [
    KnownFailure(
        ("ROT-1",), "It turns the wrong pairs.", link="docs/subjects/repro/pairs.py", kind="bug"
    ),
    KnownFailure(
        ("EDIT-1",), "It turns the wrong pairs.", link="docs/subjects/repro/pairs.py", kind="bug"
    ),
    KnownFailure(
        ("PAT-1",), "It forgets the sink.", link="docs/subjects/repro/sink.py", kind="never"
    ),
]


def verdict(clause, outcome=Outcome.FAIL, error=None, bound=None, dtype="float32"):
    return Verdict(
        "hugging_face",
        clause,
        "check",
        "hook_rot_q",
        "llama",
        "llama",
        dtype,
        "cpu",
        outcome,
        error,
        bound,
        "hook_rot_q",
        scenario="prefill",
    )


VERDICTS = [
    verdict("ROT-1", error=2.0, bound=1.0),
    verdict("ROT-1", error=6.0, bound=1.5, dtype="bfloat16"),
    verdict("EDIT-1"),
    verdict("PROJ-1", Outcome.PASS),
    verdict("FIRE-1", Outcome.UNSUPPORTED),
]


def page(verdicts=VERDICTS):
    return page_of(PROVENANCE, verdicts, KNOWN, date(2031, 2, 3))


def test_entries_of_one_link_are_one_cause():
    found, unexplained = causes(VERDICTS, KNOWN)
    assert [(len(cause.entries), len(cause.verdicts)) for cause in found] == [(2, 3)]
    assert unexplained == []


def test_a_cause_shows_its_worst_error_and_its_script():
    text = page()
    assert (
        "### 1. It turns the wrong pairs.\n\nKind: bug; 3 verdicts: 2 in float32, 1 in bfloat16."
        " Reproduction: [`repro/pairs.py`](repro/pairs.py)" in text
    )
    assert "| ROT-1 | 2 | hook_rot_q, llama-prefill, bfloat16 | 6 | 1.5 | hook_rot_q |" in text
    assert "It forgets the sink." not in text


def test_the_page_says_when_and_under_what_it_was_made():
    text = page()
    assert "ropebridge spec 9.9 (abc)" in text
    assert "torch 7.7, transformers 8.8" in text
    assert "transformer-lens" not in text
    assert "Run on 2031-02-03." in text


def test_the_page_counts_verdicts_by_clause_and_dtype():
    text = page()
    assert "| clause | float32 | bfloat16 |" in text
    assert "| ROT-1 | 1 fail of 1 | 1 fail of 1 |" in text
    assert "| PROJ-1 | 1 | not asked |" in text
    assert "| FIRE-1 | 1 unsupported of 1 | not asked |" in text


def test_the_page_lists_what_the_subject_declares():
    assert "- MASK-5: masks with the dtype's lowest number" in page()


def test_a_failure_that_nobody_looked_into_is_not_published():
    with pytest.raises(
        ValueError,
        match=(
            "1 failures that no entry covers, the first: MIX-1 check hook_rot_q llama-prefill"
            " float32"
        ),
    ):
        page([*VERDICTS, verdict("MIX-1")])


def test_a_vacuous_verdict_must_be_explained_too():
    with pytest.raises(ValueError, match="no entry covers"):
        page([verdict("MIX-1", Outcome.VACUOUS)])


def test_an_empty_cell_is_no_pass():
    from collections import Counter

    assert cell(Counter()) == "not asked"


def test_the_command_writes_the_page_or_says_why_not(tmp_path):
    results, known, out = tmp_path / "r.jsonl", tmp_path / "known.toml", tmp_path / "page.md"
    results.write_text(
        "\n".join([json.dumps({"provenance": PROVENANCE}), verdict("ROT-1").line()]) + "\n",
        encoding="utf-8",
    )
    known.write_text(
        '[[failure]]\nclause = "ROT-1"\nreason = "Pairs."\nlink = "docs/subjects/repro/pairs.py"\n',
        encoding="utf-8",
    )
    arguments = [str(results), "--known-failures", str(known), "--page", str(out)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert "### 1. Pairs." in out.read_text(encoding="utf-8")
    known.write_text('[[failure]]\nclause = "PAT-1"\nreason = "Pairs."\n', encoding="utf-8")
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_a_published_page_tells_of_every_known_failure():
    text = (ROOT / "docs/subjects/hugging_face.md").read_text(encoding="utf-8")
    for entry in read_known_failures(Path(subjects.__file__).with_name("hugging_face.toml")):
        assert entry.reason in text
        assert f"(repro/{Path(entry.link).name})" in text
