"""Clauses that a run asks about, and those that it does not, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from ropebridge_conformance.judging.questions import Question
from ropebridge_conformance.zoo.scenarios import Scenario
from ropebridge_spec import CLAUSES, Variant

NOT_ASKED: Mapping[str, str] = {
    "CFG-1": "what a bridge's constructor accepts: a subject is given a module, and no constructor",
    "CFG-2": "what get_random_inputs gives: a subject need not have it",
    "CFG-3": "what happens without tables, which the judge always gives",
    "CFG-4": "what a bridge's constructor refuses: a subject is given a module, and no constructor",
}
"""Clauses that no check asks about, and why; tests of this project hold the bridge to them."""
UNUSED = "no layer or call of this run brings them into play"

InPlay = Callable[[Variant, Scenario], object]
IN_PLAY: Mapping[str, InPlay] = {
    "CLIP-1": lambda variant, scenario: variant.clip is not None,
    "SCORE-4": lambda variant, scenario: variant.temperature,
    "SCORE-5": lambda variant, scenario: variant.key_bias,
    "DIFF-1": lambda variant, scenario: variant.differential,
    "KV-1": lambda variant, scenario: variant.shared_kv_argument or variant.value_is_key,
    "SEL-1": lambda variant, scenario: variant.selector,
    "MIX-3": lambda variant, scenario: variant.exclusive,
    "NORM-3": lambda variant, scenario: variant.norm and variant.norm.after_rotation,
    "MASK-6": lambda variant, scenario: scenario.left_padding,
    "EDIT-4": lambda variant, scenario: scenario.steps,
}
"""Where a check decides a clause besides its own: whether a layer and a call bring that into play.
Clauses that are not here are always."""


def clauses_asked(questions: Iterable[Question]) -> list[str]:
    """Return the clauses that questions decide, in the contract's order."""
    asked: set[str] = set()
    seen: set[tuple[str, str, str]] = set()
    for question in questions:
        asked.add(question.clause)
        kind = (question.check, question.case, question.scenario)
        if kind not in seen:
            seen.add(kind)
            asked.update(decided_beside(question))
    return [clause.id for clause in CLAUSES if clause.id in asked]


def decided_beside(question: Question) -> Iterator[str]:
    """Yield the clauses that a question decides besides its own."""
    for clause in question.asked.also:
        in_play = IN_PLAY.get(clause)
        if in_play is None or in_play(question.specimen.variant, question.situation):
            yield clause


def clauses_told(asked: Collection[str]) -> str:
    """Return, in a line, how many clauses were asked about, and which were not, with the
    reason."""
    reasons: dict[str, list[str]] = {}
    for clause in CLAUSES:
        if clause.id not in asked:
            reasons.setdefault(NOT_ASKED.get(clause.id, UNUSED), []).append(clause.id)
    told = f"asked {len(CLAUSES) - sum(map(len, reasons.values()))} of {len(CLAUSES)} clauses"
    if not reasons:
        return told
    return f"{told}; not asked: " + "; ".join(
        f"{', '.join(ids)} ({reason})" for reason, ids in reasons.items()
    )
