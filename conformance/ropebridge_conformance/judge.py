"""The judge: puts a question to a subject and gives a verdict, whatever the subject does."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch

from ropebridge_conformance.bench import Bench
from ropebridge_conformance.checks import CHECK, CHECKS
from ropebridge_conformance.known_failures import KnownFailure
from ropebridge_conformance.questions import About, Finding, Question, failed
from ropebridge_conformance.verdicts import Outcome, Verdict
from ropebridge_conformance.zoo import chosen_cases


def plan(
    cases: Sequence[str] | None = None,
    dtypes: Sequence[str] = ("float32", "bfloat16", "float16", "float64"),
    devices: Sequence[str] = ("cpu",),
    about: Collection[About] = ("layer", "class"),
) -> Iterator[Question]:
    """Every question there is, case by case, so that what one needs the next finds made."""
    for case in chosen_cases(cases):
        for device in devices:
            for dtype in dtypes:
                for check in (check for check in CHECKS if check.about in about):
                    yield from check.questions(case.id, dtype, device)


def judge(bench: Bench, question: Question, known: Sequence[KnownFailure] = ()) -> Verdict:
    """The verdict on one question. An exception of the subject is a failure, and the run goes on."""
    gap = declared_gap(bench.subject.unsupported, question)
    if gap:
        return verdict(bench, question, Finding(Outcome.UNSUPPORTED, gap))
    if question.device == "mps" and question.dtype == "float64":
        return verdict(bench, question, Finding(Outcome.NOT_EXERCISED, "mps has no float64"))
    try:
        finding = CHECK[question.check].ask(bench, question)
    except Exception as error:
        finding = failed(f"raised {type(error).__name__}: {error}", divergent=question.hook)
    return verdict(bench, question, expected_to_fail(finding, question, known))


def declared_gap(unsupported: Mapping[str, str], question: Question) -> str:
    """Why the subject says it does not have this; nothing if it says no such thing."""
    wanted = (question.clause, question.hook, *question.situation.opted_in)
    return next((reason for name, reason in unsupported.items() if name in wanted), "")


def expected_to_fail(finding: Finding, question: Question, known: Sequence[KnownFailure]) -> Finding:
    """A failure that was foretold is known; a foretold failure that did not come is a failure of the foretelling."""
    entry = next((k for k in known if k.covers(question)), None)
    if entry is None or finding.outcome not in (Outcome.FAIL, Outcome.PASS):
        return finding
    if finding.outcome == Outcome.PASS:
        return failed(f"passes, and is listed as a known failure ({entry.reason}); take it off the list")
    return Finding(Outcome.KNOWN_FAILURE, f"{entry.reason} {entry.link}".strip(), finding.difference, finding.divergent)


def verdict(bench: Bench, question: Question, finding: Finding) -> Verdict:
    """The line of results for a finding."""
    difference = finding.difference
    return Verdict(
        subject=bench.subject.name,
        clause=question.clause,
        check=question.check,
        hook=question.hook,
        family=question.family,
        case=f"{question.case}-{question.scenario}",
        dtype=question.dtype,
        device=question.device,
        verdict=finding.outcome,
        error=difference.error if difference else None,
        bound=difference.bound if difference else None,
        divergent=finding.divergent,
        reason=finding.reason,
    )


def single_threaded() -> None:
    """Tiny layers run fastest on one thread, and several processes share the cores."""
    torch.set_num_threads(1)
