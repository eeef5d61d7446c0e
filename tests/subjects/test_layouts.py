"""The adapters do not blind the judge: a fault behind a translation of layouts is found where it is
found without, and no right layer is accused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from few import few
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.ids import read_id
from ropebridge_conformance.judging.judge import judge, plan, question_of
from ropebridge_conformance.judging.trial import ARMS, by_case
from ropebridge_conformance.judging.verdicts import BAD, Outcome
from ropebridge_conformance.mutants.catalogue import MUTANTS
from ropebridge_conformance.stages.functions import STAGES
from ropebridge_conformance.subjects import hugging_face
from ropebridge_conformance.subjects.layouts import FINITE_MASK, HEADS_FIRST, translated
from ropebridge_conformance.subjects.reference import Factory, ReferenceLayer
from ropebridge_spec import describe

pytestmark = pytest.mark.slow

LOWEST = torch.finfo(torch.float32).min


def layouts_of(module):
    norm = describe(module).norm
    turned = (
        {"hook_q_normed": HEADS_FIRST, "hook_k_normed": HEADS_FIRST}
        if norm is not None and norm.over == "head"
        else {}
    )
    return {
        **turned,
        "hook_rot_q": HEADS_FIRST,
        "hook_rot_k": HEADS_FIRST,
        "hook_attn_scores": FINITE_MASK,
    }


def there(name, value, layouts):
    """A value of the reference as an implementation of other layouts would hold it."""
    if name not in layouts:
        return value
    if layouts[name] is HEADS_FIRST:
        return value.transpose(1, 2).contiguous()
    return value.masked_fill(value == -torch.inf, torch.finfo(value.dtype).min)


def back(name, value, layouts):
    if name not in layouts:
        return value
    if layouts[name] is HEADS_FIRST:
        return value.transpose(1, 2)
    return value.masked_fill(value == torch.finfo(value.dtype).min, -torch.inf)


@dataclass(frozen=True)
class Foreign:
    """A reference, perhaps a mutant, that shows other layouts, behind the translation that the
    adapters use."""

    of: Factory
    name: str = "foreign"
    unsupported: Mapping[str, str] = ()

    def layer(self, module, *, rotary, opted_in=()):
        layouts = layouts_of(module)

        def show(name, value, hooks):
            shown = there(name, value, layouts) if hooks else value
            left = self.of.show(name, shown, hooks)
            return back(name, left, layouts) if hooks else left

        layer = ReferenceLayer(
            module, rotary, describe(module), tuple(opted_in), replace(self.of, show=show)
        )
        return ForeignLayer(layer, layouts)


@dataclass(frozen=True, eq=False)
class ForeignLayer:
    layer: ReferenceLayer
    layouts: Mapping[str, Any]

    def run(self, inputs, hooks: Sequence[Any] = (), backward_hooks: Sequence[Any] = ()):
        return self.layer.run(
            inputs,
            [(name, translated(name, fn, self.layouts, str)) for name, fn in hooks],
            backward_hooks,
        )


TURNED = (
    "hook_q_normed",
    "hook_k_normed",
    "hook_rot_q",
    "hook_rot_k",
    "hook_attn_scores",
    "hook_pattern",
)
HIDDEN = ("mask_not_infinite",)
"""What the translation makes good, and the subjects declare as a gap for it."""


FAULTS = [m for m in MUTANTS if m.stages is not STAGES and m.foil and m.name not in HIDDEN]
BEHIND = [m for stage in TURNED for m in [m for m in FAULTS if m.stage == stage][:2]]
"""Two faults of each stage whose hook is shown in another layout, and of the pattern that
follows."""


def killer_of(mutant):
    """The first verdict that fails a mutant behind the translation, in the first dtype that can
    show it."""
    bench = Bench(Foreign(mutant.subject(), unsupported={}))
    questions = (
        q
        for dtype in ("bfloat16", "float32", "float64")
        for asked in by_case(mutant, dtype, "cpu")
        for q in asked
    )
    return next(
        (
            verdict
            for verdict in (judge(bench, question) for question in questions)
            if verdict.outcome in BAD
        ),
        None,
    )


@pytest.mark.parametrize("mutant", BEHIND, ids=lambda mutant: mutant.name)
def test_a_mutant_behind_the_translation_is_killed_at_its_stage(mutant):
    killer = killer_of(mutant)
    assert killer is not None, "survived"
    assert killer.divergent == mutant.stage


def test_the_one_fault_that_the_translation_hides_is_a_declared_gap():
    (hidden,) = (mutant for mutant in MUTANTS if mutant.name in HIDDEN)
    question = question_of(
        read_id("test_a_stage_gives_the_value_of_its_clause[hook_attn_scores-llama-float32-cpu]")
    )
    assert judge(Bench(hidden.subject()), question).outcome == Outcome.FAIL
    assert judge(Bench(Foreign(hidden.subject(), unsupported={})), question).outcome == Outcome.PASS
    assert "MASK-5" in hugging_face.GAPS


@pytest.mark.parametrize("case", few(["qwen3"], ["qwen3", "gemma3_local", "gpt_oss_global"]))
def test_a_right_layer_behind_the_translation_is_not_accused(case):
    bench = Bench(Foreign(Factory(), unsupported={}))
    verdicts = [
        judge(bench, question)
        for question in plan([case], ("float32",))
        if question.check in (*ARMS, "an_edit_in_place_is_what_the_rest_of_the_layer_sees")
    ]
    assert [verdict for verdict in verdicts if verdict.outcome in BAD] == []


# ---- one translation ----


def seen_by(name, layout, fn, value):
    return translated(name, fn, {name: layout}, str)(value, hook=type("Hook", (), {"name": name}))


def nothing(edited):
    """What an edit in place hands back."""


def test_a_hook_that_looks_hands_nothing_back():
    shown = []
    scores = torch.tensor([1.0, LOWEST])
    assert (
        seen_by("hook_attn_scores", FINITE_MASK, lambda value, hook: shown.append(value), scores)
        is None
    )
    assert shown[0].tolist() == [1.0, -torch.inf]
    assert scores.tolist() == [1.0, LOWEST]


def test_an_edit_in_place_of_a_copy_is_handed_back_with_the_mask_as_it_was():
    scores = torch.tensor([1.0, LOWEST])
    left = seen_by(
        "hook_attn_scores", FINITE_MASK, lambda value, hook: nothing(value.mul_(2)), scores
    )
    assert left.tolist() == [2.0, LOWEST]


def test_an_edit_that_lifts_the_mask_lifts_it():
    left = seen_by(
        "hook_attn_scores",
        FINITE_MASK,
        lambda value, hook: torch.zeros(2),
        torch.tensor([1.0, LOWEST]),
    )
    assert left.tolist() == [0.0, 0.0]


def test_a_replacement_is_turned_back():
    value = torch.arange(6.0).view(1, 2, 3, 1)
    left = seen_by("hook_rot_q", HEADS_FIRST, lambda shown, hook: shown + 1, value)
    assert torch.equal(left, value + 1)


def test_an_edit_in_place_of_what_is_turned_changes_it_there():
    value = torch.zeros(1, 2, 3, 1)
    assert (
        seen_by(
            "hook_rot_q", HEADS_FIRST, lambda shown, hook: nothing(shown[:, 0, 1].fill_(1.0)), value
        )
        is None
    )
    assert value[0, 1, 0, 0] == 1.0
