"""Known failures: what an entry covers, for how long, how strictly, and what a bad file is told."""

from dataclasses import replace
from datetime import date, timedelta

import pytest

from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.ids import read_id
from ropebridge_conformance.judging.judge import judge, question_of
from ropebridge_conformance.judging.known_failures import (
    KINDS,
    KnownFailuresError,
    covering,
    read_known_failures,
)
from ropebridge_conformance.judging.verdicts import Outcome
from ropebridge_conformance.mutants.catalogue import MUTANT_BY_NAME
from ropebridge_conformance.subjects.reference import Factory

ENTRY = '[[failure]]\nclause = "ROT-1"\nreason = "pairs are wrong"\n'
QUESTION = question_of(
    read_id("test_a_stage_gives_the_value_of_its_clause[hook_rot_q-llama-float32-cpu]")
)


@pytest.fixture
def read(tmp_path):
    def write_and_read(text):
        path = tmp_path / "known.toml"
        path.write_text(text, encoding="utf-8")
        return read_known_failures(path)

    return write_and_read


def verdict_on(subject, known):
    return judge(Bench(subject), QUESTION, known)


def wrong():
    return MUTANT_BY_NAME["other_pairs"].subject()


@pytest.mark.parametrize(
    ("field", "covers"),
    [
        ('hook = "hook_rot_q"', True),
        ('hook = "hook_rot_k"', False),
        ('hook = ["hook_rot_k", "hook_rot_q"]', True),
        ('dtype = ["bfloat16", "float16"]', False),
        ('case = "llama"', True),
        ('family = "mistral"', False),
        ('scenario = ["prefill"]', True),
        ('check = "hooks_fire_once_in_contract_order"', False),
    ],
)
def test_a_field_says_which_questions_are_covered(read, field, covers):
    assert (covering(read(ENTRY + field), QUESTION, "reference") is not None) == covers


def test_several_clauses_may_share_an_entry(read):
    assert covering(
        read('[[failure]]\nclause = ["PAT-1", "ROT-1"]\nreason = "r"\n'), QUESTION, "reference"
    )


def test_the_first_entry_that_covers_a_question_speaks(read):
    known = read(ENTRY + '[[failure]]\nclause = "ROT-1"\nreason = "another"\n')
    assert verdict_on(wrong(), known).reason == "pairs are wrong"


@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_has_a_kind(read, kind):
    assert read(ENTRY + f'kind = "{kind}"')[0].kind == kind


def test_until_its_last_day_a_failure_is_known(read):
    known = read(ENTRY + f"expiry = {date.today()}")
    assert verdict_on(wrong(), known).outcome == Outcome.KNOWN_FAILURE


def test_after_its_last_day_it_is_a_failure_again(read):
    yesterday = date.today() - timedelta(days=1)
    verdict = verdict_on(wrong(), read(ENTRY + f"expiry = {yesterday}"))
    assert verdict.outcome == Outcome.FAIL
    assert verdict.reason.startswith("hook_rot_q is off by")
    assert verdict.reason.endswith(
        f"(a known failure until {yesterday}: pairs are wrong; mend it, or renew its expiry)"
    )


def test_a_strict_entry_turns_a_pass_into_a_failure(read):
    verdict = verdict_on(Factory(), read(ENTRY + "strict = true"))
    assert (verdict.outcome, verdict.reason) == (
        Outcome.FAIL,
        "passes, and is listed as a known failure (pairs are wrong); take it off the list",
    )


def test_an_entry_that_is_not_strict_lets_a_pass_be_one(read):
    assert verdict_on(Factory(), read(ENTRY + "strict = false")).outcome == Outcome.PASS


def test_an_entry_is_strict_and_endless_unless_it_says_otherwise(read):
    (entry,) = read(ENTRY)
    assert (entry.strict, entry.expiry, entry.kind) == (True, None, "bug")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '[[failure]]\nclause = "ROT-99"\nreason = "r"\n',
            r"failure 1: clause is 'ROT-99'; SPEC.md lists the clauses there are",
        ),
        (
            ENTRY + 'kind = "maybe"',
            r"failure 1: kind is 'maybe'; it must be one of bug, not-yet, never",
        ),
        (
            ENTRY + 'expiry = "2027-03-31"',
            r"failure 1: expiry is '2027-03-31'; it must be a date, without quotes",
        ),
        (ENTRY + "expiry = 2027-03-31T00:00:00", "it must be a date"),
        (ENTRY + 'strict = "no"', r"failure 1: strict is 'no'; it must be true or false"),
        (ENTRY + "hook = 3", r"failure 1: hook is 3; it must be a name, or a list of names"),
        (ENTRY + "hook = []", r"failure 1: hook is \[\]; it must be a name, or a list of names"),
        (ENTRY + "link = 3", "failure 1: link is 3; it must be a string"),
        (
            '[[failure]]\nclause = "ROT-1"\nreason = ""\n',
            "failure 1: reason is ''; it must be a sentence",
        ),
        ('failure = ["ROT-1"]', "failure 1 has 'ROT-1'; it needs clause and reason"),
        ('failure = "ROT-1"', r"it needs tables \[\[failure\]\], and nothing else"),
        (
            '[[failures]]\nclause = "ROT-1"\n',
            r"has \['failures'\]; it needs tables \[\[failure\]\]",
        ),
    ],
)
def test_a_bad_file_is_told_what_is_required(read, text, words):
    with pytest.raises(KnownFailuresError, match=words):
        read(text)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "known.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KnownFailuresError, match="cannot read known failures from"):
        read_known_failures(path)


@pytest.mark.parametrize(("subject", "covers"), [("other", False), ("wrong", True)])
def test_an_entry_of_one_subject_is_no_other_subjects(read, subject, covers):
    """Two subjects in one run: what one is listed to fail, the other is not."""
    entry = read(ENTRY + f'subject = "{subject}"\ndevice = "cpu"')
    verdict = verdict_on(replace(wrong(), name="wrong"), entry)
    assert (verdict.outcome == Outcome.KNOWN_FAILURE) is covers
    assert verdict_on(Factory(), read(ENTRY + 'subject = "wrong"')).outcome == Outcome.PASS
