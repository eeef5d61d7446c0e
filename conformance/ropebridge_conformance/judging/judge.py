"""Judge: puts a question to a subject and gives a verdict, whatever the subject does."""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date

import torch

from ropebridge_conformance.checks import CHECK_BY_NAME, CHECKS
from ropebridge_conformance.judging.bench import Bench, hooks_of
from ropebridge_conformance.judging.blame import OF_ONE_STAGE, STAGE_CHECK, followed
from ropebridge_conformance.judging.findings import Finding, failed, verdict_of
from ropebridge_conformance.judging.ids import DTYPES, Id
from ropebridge_conformance.judging.known_failures import KnownFailure, covering
from ropebridge_conformance.judging.questions import About, Question
from ropebridge_conformance.judging.verdicts import Outcome, Verdict
from ropebridge_conformance.subjects.answers import NotShown, WrongShape, is_of_subject
from ropebridge_conformance.zoo.scenarios import CORE_CALLS, OPTED, SCENARIO_BY_ID, Scenario
from ropebridge_conformance.zoo.specimens import CASE_BY_ID, chosen_cases

LONGEST = 4000
"""Characters of an exception's text that a verdict keeps."""


def plan(
    cases: Sequence[str] | None = None,
    dtypes: Sequence[str] = DTYPES,
    devices: Sequence[str] = ("cpu",),
    about: Collection[About] = ("layer", "class"),
) -> Iterator[Question]:
    """Yield every question there is, case by case, so that what one needs the next finds made."""
    for case in chosen_cases(cases):
        for device in devices:
            for dtype in dtypes:
                for check in (check for check in CHECKS if check.about in about):
                    yield from check.questions(case, dtype, device)


def question_of(one: Id) -> Question:
    """Return the question of an id.

    Raises:
        LookupError: there is none.
    """
    asked = CHECK_BY_NAME[one.check].questions(CASE_BY_ID[one.case], one.dtype, one.device)
    for question in asked:
        if one.means(question.id):
            return question
    raise LookupError(f"no question has the id {one}")


def judge(bench: Bench, question: Question, known: Sequence[KnownFailure] = ()) -> Verdict:
    """Return the verdict on one question. An exception of the subject is a failure, one of the
    judge a judge-error, and the run goes on."""
    try:
        gap = declared_gap(bench.gaps(question.specimen), question)
    except Exception as error:
        return verdict(bench.subject.name, question, went_wrong(error, question))
    if gap:
        return verdict(bench.subject.name, question, Finding(Outcome.UNSUPPORTED, gap))
    if question.device == "mps" and question.dtype == "float64":
        return verdict(
            bench.subject.name, question, Finding(Outcome.NOT_EXERCISED, "mps has no float64")
        )
    try:
        finding = question.asked(bench, question)
    except NotShown as error:
        finding = not_shown(bench.gaps(question.specimen), error)
    except (Exception, SystemExit) as error:
        finding = went_wrong(error, question)
    finding = with_blame(bench, question, finding)
    return verdict(
        bench.subject.name, question, expected_to_fail(finding, question, known, bench.subject.name)
    )


def with_blame(bench: Bench, question: Question, finding: Finding) -> Finding:
    """Return a failure with the hook point whose fault it follows, where a stage is wrong in the
    same layer without any edit. An input that tells nothing of such a layer is not vacuous: the
    question cannot be put."""
    blind = finding.outcome == Outcome.VACUOUS
    failure = finding.outcome == Outcome.FAIL and not finding.raised
    if question.check in OF_ONE_STAGE or not (blind or failure):
        return finding
    specimen, scenario = question.specimen, clean_scenario(question)
    try:
        roots = bench.broken(specimen, scenario)
    except Exception as error:
        return went_wrong(error, question)
    order = [hook.name for hook in hooks_of(specimen, scenario)]
    if blind:
        wrong = next((name for name in order if name in roots), None)
        words = f"{finding.reason}; {wrong} is wrong without any edit"
        return finding if wrong is None else Finding(Outcome.NOT_EXERCISED, words)
    # a gradient is wrong at the hook point before the stage that is
    named = None if question.clause == "GRAD-1" else finding.divergent
    root = followed(named, roots, order)
    if root == question.hook and question.check == STAGE_CHECK:
        root = None
    return replace(finding, follows=root)


def clean_scenario(question: Question) -> Scenario:
    """Return the calls in which the stages of a question's layer are looked at without any edit:
    its own, where those are of a usual size."""
    usual = (*CORE_CALLS, *OPTED)
    return question.situation if question.scenario in usual else SCENARIO_BY_ID["prefill"]


def not_shown(unsupported: Mapping[str, str], error: NotShown) -> Finding:
    """Return NOT_EXERCISED for a question that needs a hook point which the subject declares not to
    have, else FAIL."""
    if error.hook in unsupported:
        return Finding(
            Outcome.NOT_EXERCISED,
            f"needs the value of {error.hook}, which is unsupported: {unsupported[error.hook]}",
        )
    return failed(str(error), divergent=error.hook)


def went_wrong(error: BaseException, question: Question) -> Finding:
    """Return FAIL for what a subject raised or answered, and JUDGE_ERROR, with the traceback, for
    what the judge raised."""
    if isinstance(error, WrongShape):
        # of another question it may be another hook point, which the clean run names
        own = question.hook if question.check == STAGE_CHECK else None
        return failed(f"{own or 'a tensor'} {error}", divergent=own)
    if is_of_subject(error):
        return replace(failed(raised(error), divergent=question.hook), raised=True)
    told = "".join(traceback.format_exception(error))
    return Finding(Outcome.JUDGE_ERROR, told[-LONGEST:])


def raised(error: BaseException) -> str:
    """Return the text of an exception, cut at LONGEST; its type where it has no text to give."""
    try:
        said = str(error)
    except Exception as again:
        said = f"(its text could not be had: {type(again).__name__})"
    return f"raised {type(error).__name__}: {said}"[:LONGEST]


def declared_gap(gaps: Mapping[str, str], question: Question) -> str:
    """Return why the subject says it does not have this; nothing if it says no such thing."""
    layer = (question.family, question.case, question.scenario)
    wanted = (question.clause, question.check, question.hook, *question.situation.opted_in, *layer)
    return next((reason for name, reason in gaps.items() if name in wanted), "")


def expected_to_fail(
    finding: Finding, question: Question, known: Sequence[KnownFailure], subject: str
) -> Finding:
    """Return a listed failure as KNOWN_FAILURE, until its entry expires; a listed failure that
    passes as FAIL, where the entry is strict (as pytest's xfail_strict)."""
    entry = covering(known, question, subject)
    if entry is None or finding.outcome not in (Outcome.FAIL, Outcome.PASS):
        return finding
    if finding.outcome == Outcome.PASS:
        return (
            failed(
                f"passes, and is listed as a known failure ({entry.reason}); take it off the list"
            )
            if entry.strict
            else finding
        )
    if entry.expired(date.today()):
        return replace(
            finding,
            reason=(
                f"{finding.reason} (a known failure until {entry.expiry}: {entry.reason}; mend it,"
                " or renew its expiry)"
            ),
        )
    return Finding(Outcome.KNOWN_FAILURE, entry.says, finding.difference, finding.divergent)


def verdict(subject: str, question: Question, finding: Finding) -> Verdict:
    """Return the verdict on a question to a subject of this name."""
    return verdict_of(
        finding,
        subject=subject,
        clause=question.clause,
        check=question.check,
        hook=question.hook,
        family=question.family,
        case=question.case,
        scenario=question.scenario,
        dtype=question.dtype,
        device=question.device,
    )


def single_threaded() -> None:
    """Let torch use one thread: tiny layers run fastest so, and several processes share the
    cores."""
    torch.set_num_threads(1)
