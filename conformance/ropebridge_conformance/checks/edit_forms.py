"""Edits in other forms: by two hooks at one point, through views, and where gradients are taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.checks.edits import (
    edit_in_place,
    first_moved,
    lost,
    nudged,
    replace_all,
    what_followed,
)
from ropebridge_conformance.judging.bench import Bench, same_bits
from ropebridge_conformance.judging.findings import Finding, failed, passed, vacuous
from ropebridge_conformance.judging.questions import Question, any_hook, check
from ropebridge_conformance.judging.verdicts import Outcome
from ropebridge_conformance.stages.context import Context
from ropebridge_conformance.stages.oracle import contexts_of
from ropebridge_conformance.subjects.answers import NotShown, answered
from ropebridge_conformance.subjects.traces import Edit, Trace, record
from ropebridge_conformance.zoo.calls import calls

FORMS = ("prefill", "split")


@check("EDIT-1", scenarios=FORMS, hooks=any_hook, dtypes=("float32",))
def of_two_hooks_at_one_point_both_count(bench: Bench, q: Question) -> Finding:
    """EDIT-1: the second of two hooks is shown what the first gave back, what the second leaves in
    place is what hooks after it and the rest of the layer see."""
    assert q.hook is not None
    layer = bench.layer(q.specimen, q.situation.opted_in)
    (call,) = calls(q.situation, q.specimen, layer)
    shown: list[Tensor] = []

    def keep(change: Edit) -> Callable[..., Tensor | None]:
        def called(tensor: Tensor, hook: Any) -> Tensor | None:
            shown.append(tensor.detach().clone())
            return change(tensor)

        return called

    edits: tuple[Edit, ...] = (halved, looked_at, lift, looked_at)
    both, _ = answered(layer.run(call.inputs, [(q.hook, keep(edit)) for edit in edits]))
    if len(shown) != len(edits):
        words = f"of {len(edits)} hooks at {q.hook} {len(shown)} were called"
        return failed(f"{words}; clause EDIT-1 requires all of them", divergent=q.hook)
    first, second, third, last = shown
    if not (torch.equal(second, halved(first)) and torch.equal(third, second)):
        return failed(
            f"the hook after one that replaced {q.hook} was not shown the replacement",
            divergent=q.hook,
        )
    if not torch.equal(last, halved(first) + LIFT):
        return failed(
            f"the hook after one that edited {q.hook} in place was not shown the edit",
            divergent=q.hook,
        )
    one = out_of(layer, q, lambda value: halved(value) + LIFT)
    if torch.equal(one, out_of(layer, q, looked_at)):
        return vacuous("the edit changed nothing")
    if both is None or not torch.equal(both, one):
        return failed(
            f"two hooks at {q.hook} do not give what one with both edits gives", divergent=q.hook
        )
    return passed()


LIFT = 0.25


def halved(value: Tensor) -> Tensor:
    """Give back half of the value; -inf stays."""
    return value * 0.5


def lift(value: Tensor) -> None:
    """Add to the value in place; -inf stays."""
    value.add_(LIFT)


def looked_at(value: Tensor) -> None:
    """Leave the value as it is."""


def out_of(layer: Any, q: Question, edit: Edit) -> Tensor:
    """Return the output of the scenario's call with one edit.

    Raises:
        NotShown: the hook did not fire.
    """
    assert q.hook is not None
    (call,) = calls(q.situation, q.specimen, layer)
    (trace,) = record(layer, [call], [q.hook], {q.hook: edit})
    if trace.out is None:
        raise NotShown("hook_out")
    return trace.out.detach()


@check("EDIT-2", scenarios=FORMS, hooks=any_hook, dtypes=("float32",))
def an_edit_through_a_view_is_an_edit_in_place(bench: Bench, q: Question) -> Finding:
    """EDIT-2: what is written into a reshape, or a transpose, of the tensor that was shown counts
    as what is written into that tensor."""
    assert q.hook is not None
    layer = bench.layer(q.specimen, q.situation.opted_in)
    wanted = out_of(layer, q, edit_in_place)
    if torch.equal(wanted, out_of(layer, q, looked_at)):
        return vacuous("the edit changed nothing")
    for view, edit in VIEWS.items():
        if not torch.equal(out_of(layer, q, edit), wanted):
            return failed(
                f"an edit through {view} of what {q.hook} was shown was lost; clause EDIT-2"
                " requires that it counts",
                divergent=q.hook,
            )
    return passed()


def through_a_reshape(value: Tensor) -> None:
    """Write the edit into the tensor's elements in one row."""
    value.reshape(-1).copy_(nudged(value).reshape(-1))


def through_a_transpose(value: Tensor) -> None:
    """Write the edit into a transpose of the tensor."""
    value.transpose(0, -1).copy_(nudged(value).transpose(0, -1))


VIEWS: dict[str, Edit] = {"a reshape": through_a_reshape, "a transpose": through_a_transpose}


@check(
    "EDIT-1",
    scenarios=("prefill", "left_padding"),
    hooks=any_hook,
    dtypes=("float32",),
    also=("EDIT-2",),
)
def an_edit_counts_where_gradients_are_taken(bench: Bench, q: Question) -> Finding:
    """EDIT-1, EDIT-2: with an input that requires a gradient, a replacement and an edit in place
    are what the rest of the layer sees."""
    assert q.hook is not None
    layer = bench.layer(q.specimen, q.situation.opted_in)
    names = bench.watched(q.specimen, q.situation, "all")
    clean = [recorded(layer, q, names)]
    as_ever = same_bits(clean, bench.traces(q.specimen, q.situation, "all"))
    before = (
        bench.contexts(q.specimen, q.situation)
        if as_ever
        else contexts_of(clean, q.specimen, q.situation)
    )
    findings = [
        judge_with_gradients(bench, q, clean, before, edit) for edit in (replace_all, edit_in_place)
    ]
    return next((found for found in findings if found.outcome != Outcome.PASS), findings[0])


def judge_with_gradients(
    bench: Bench, q: Question, clean: list[Trace], before: list[Context], edit: Edit
) -> Finding:
    """Hold a call with an edit, whose input requires a gradient, to the contract, stage by
    stage."""
    shown: list[Tensor] = []
    layer = bench.layer(q.specimen, q.situation.opted_in)
    edited = [recorded(layer, q, tuple(clean[0].fired), edit, shown)]
    if edited[0].out is None or not edited[0].out.requires_grad:
        return failed("no gradient flows through the layer", divergent="hook_out")
    early = first_moved(q, clean, edited) or lost(q, edited, shown)
    return early or bench.once_for_the_same(
        edited, q, lambda: what_followed(q, clean, edited, before)
    )


def recorded(
    layer: Any,
    q: Question,
    names: Sequence[str],
    edit: Edit = looked_at,
    shown: list[Tensor] | None = None,
) -> Trace:
    """Return the scenario's call with hidden states that require a gradient; what an edit leaves is
    added to `shown`."""
    (call,) = calls(q.situation, q.specimen, layer)
    call.given["hidden_states"].requires_grad_(True)

    def edit_and_keep(value: Tensor) -> Tensor | None:
        result = edit(value)
        if shown is not None:
            shown.append((value if result is None else result).detach().clone())
        return result

    edits = {} if edit is looked_at or q.hook is None else {q.hook: edit_and_keep}
    (trace,) = record(layer, [call], names, edits)
    return trace
