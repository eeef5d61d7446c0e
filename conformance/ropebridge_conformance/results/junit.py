"""Results as JUnit XML, which continuous integration systems show."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from ropebridge_conformance.judging.clauses import clauses_told
from ropebridge_conformance.judging.verdicts import BAD, Outcome, Verdict

UNSAYABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, escaped or not."""


def junit(provenance: Mapping[str, object], verdicts: Iterable[Verdict]) -> str:
    """Return the document: one suite per subject, one case per verdict. Outcomes are not merged:
    the type of a failure and the message of a skip name them."""
    root = Element("testsuites", name="ropebridge")
    by_subject: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_subject[verdict.subject].append(verdict)
    for subject, given in by_subject.items():
        add_suite(root, subject, given, provenance)
    indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{tostring(root, encoding="unicode")}\n'


def add_suite(
    root: Element, subject: str, verdicts: list[Verdict], provenance: Mapping[str, object]
) -> None:
    """Add the suite of one subject, with what its verdicts were made under."""
    errors = sum(v.outcome == Outcome.JUDGE_ERROR for v in verdicts)
    failures = sum(v.outcome in BAD for v in verdicts) - errors
    skipped = sum(v.outcome not in (*BAD, Outcome.PASS) for v in verdicts)
    suite = SubElement(
        root,
        "testsuite",
        name=sayable(subject),
        tests=str(len(verdicts)),
        failures=str(failures),
        errors=str(errors),
        skipped=str(skipped),
    )
    properties = SubElement(suite, "properties")
    for name, value in provenance.items():
        told = clauses_told(value) if name == "clauses" and isinstance(value, list) else value
        SubElement(properties, "property", name=sayable(name), value=sayable(told))
    for verdict in verdicts:
        add_case(suite, verdict)


def add_case(suite: Element, verdict: Verdict) -> None:
    """Add the test case of one verdict to its suite."""
    parts = (verdict.hook or "layer", verdict.case, verdict.scenario, verdict.dtype, verdict.device)
    name = "-".join(part for part in parts if part)
    case = SubElement(
        suite,
        "testcase",
        classname=sayable(f"{verdict.subject}.{verdict.check}"),
        name=sayable(name),
    )
    if verdict.outcome in BAD:
        failure = SubElement(
            case,
            "error" if verdict.outcome == Outcome.JUDGE_ERROR else "failure",
            type=str(verdict.outcome),
            message=sayable(f"clause {verdict.clause}: {verdict.reason}"),
        )
        failure.text = sayable(
            f"first divergent stage: {verdict.divergent}\nerror: {verdict.error}\nbound:"
            f" {verdict.bound}"
        )
    elif verdict.outcome != Outcome.PASS:
        SubElement(case, "skipped", message=sayable(f"{verdict.outcome}: {verdict.reason}"))


def sayable(value: object) -> str:
    """Return text that XML can hold; what it cannot is shown as its code."""
    return UNSAYABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", str(value))
