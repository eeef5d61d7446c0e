"""Refusals: what does not fit is refused, with words that name the clause, and never taken for
something else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.checks.gradients import on_the_way
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.findings import Finding, failed, passed, vacuous
from ropebridge_conformance.judging.questions import Question, any_hook, check
from ropebridge_conformance.subjects.answers import NotShown
from ropebridge_conformance.zoo.calls import CallInputs, calls
from ropebridge_spec import HookSpec, arguments_of

CLAUSE_ID = re.compile(r"\b[A-Z]+-\d+\b")
Unfit = Callable[[Tensor], object]


def scores_alone(hook: HookSpec) -> bool:
    """Return the hook point before softmax."""
    return hook.name == "hook_attn_scores"


ONCE = ("float32",)


@check("FIRE-3", scenarios=("prefill",), dtypes=ONCE)
def a_hook_point_that_is_not_there_is_refused(bench: Bench, q: Question) -> Finding:
    """FIRE-3: a hook that could never fire is an error, and not a call without it."""
    layer, call = prepared(bench, q)
    before, gaps = layer.run(call.inputs)[0], bench.gaps(q.specimen)
    there = {*gaps, *(hook.name for hook in bench.hooks_of(q.specimen, q.situation))}
    for name in sorted({"hook_nowhere", "hook_result", "hook_attn_in"} - there):
        if refusal(layer, call, name, lambda tensor: None) is None:
            return failed(
                f"a hook at {name}, which the layer does not have, was neither called nor refused",
                divergent="hook_in",
            )
    return harmless(layer, call, before)


@check("FIRE-3", scenarios=("prefill",), hooks=on_the_way, dtypes=ONCE)
def a_backward_hook_that_cannot_fire_is_refused(bench: Bench, q: Question) -> Finding:
    """FIRE-3: a backward hook in a call of which no gradient is taken is an error."""
    assert q.hook is not None
    layer, call = prepared(bench, q)
    before = layer.run(call.inputs)[0]
    asked = [(q.hook, lambda gradient, hook: None)]
    with torch.no_grad():
        words = words_of(lambda: layer.run(call.inputs, (), asked))
    if words is None:
        return failed(
            f"a backward hook at {q.hook}, where no gradient is taken, was not refused",
            divergent=q.hook,
        )
    return harmless(layer, call, before)


@check("EDIT-3", scenarios=("prefill",), hooks=any_hook, dtypes=ONCE, also=("FIRE-4",))
def a_replacement_that_does_not_fit_is_refused(bench: Bench, q: Question) -> Finding:
    """EDIT-3, FIRE-4: another shape, dtype or device, or no tensor at all, is refused in words that
    name a clause."""
    assert q.hook is not None
    layer, call = prepared(bench, q)
    before = layer.run(call.inputs)[0]
    for what, unfit in UNFIT.items():
        words = refusal(layer, call, q.hook, unfit)
        if words is None:
            return failed(
                f"a replacement of another {what} was taken at {q.hook}; clause EDIT-3 requires"
                " that it is refused",
                divergent=q.hook,
            )
        if not CLAUSE_ID.search(words):
            return failed(
                f"the refusal of another {what} at {q.hook} names no clause: {words}",
                divergent=q.hook,
            )
    return harmless(layer, call, before)


@check("SCORE-3", scenarios=("prefill",), hooks=scores_alone)
def scores_that_are_no_numbers_are_refused(bench: Bench, q: Question) -> Finding:
    """SCORE-3: NaN and +inf, given back or left in place, are refused; -inf forbids a key, and is
    not."""
    layer, call = prepared(bench, q)
    before = layer.run(call.inputs)[0]
    for value in (torch.nan, torch.inf):
        for edit in (spoil(value), spoil_in_place(value)):
            if refusal(layer, call, "hook_attn_scores", edit) is None:
                return failed(
                    f"an edit that left {value} in the scores was taken; clause SCORE-3 requires"
                    " that it is refused",
                    divergent="hook_attn_scores",
                )
    words = refusal(layer, call, "hook_attn_scores", spoil(-torch.inf))
    if words is not None:
        return failed(
            f"-inf, which forbids a key, was refused: {words}", divergent="hook_attn_scores"
        )
    return harmless(layer, call, before)


@check("SCORE-6", scenarios=("left_padding",), hooks=scores_alone)
def a_forbidden_key_stays_forbidden(bench: Bench, q: Question) -> Finding:
    """SCORE-6: zeros in place of the scores, given back or left in place, are refused where a query
    may not see a key; the same edit of the other scores is not."""
    layer, call = prepared(bench, q)
    forbidden: list[bool] = []
    look = ("hook_attn_scores", lambda tensor, hook: forbidden.append(has_forbidden(tensor)))
    layer.run(call.inputs, [look])
    if not forbidden:
        raise NotShown("hook_attn_scores")
    if not any(forbidden):
        return vacuous("every query may see every key")
    for edit in (torch.zeros_like, wipe):
        if refusal(layer, call, "hook_attn_scores", edit) is None:
            return failed(
                "an edit that left 0 at keys that their query may not see was taken; clause SCORE-6"
                " requires that it is refused",
                divergent="hook_attn_scores",
            )
    words = refusal(
        layer,
        call,
        "hook_attn_scores",
        lambda scores: torch.where(scores == -torch.inf, scores, 0.0),
    )
    if words is None:
        return passed()
    return failed(
        f"zeros at keys that may be seen were refused: {words}", divergent="hook_attn_scores"
    )


def wipe(tensor: Tensor) -> None:
    """Leave zeros in place."""
    tensor.zero_()


def has_forbidden(scores: Tensor) -> bool:
    """Return whether a key is forbidden to a query."""
    return bool((scores == -torch.inf).any())


@check("MASK-4", scenarios=("left_padding",), dtypes=ONCE)
def a_mask_that_does_not_fit_is_refused(bench: Bench, q: Question) -> Finding:
    """MASK-4: a mask of another form or shape is refused; that of the scenario is not."""
    layer, call = prepared(bench, q)
    if words_of(lambda: layer.run(call.inputs)) is not None:
        return vacuous("the layer refuses a mask that fits")
    before = layer.run(call.inputs)[0]
    for what, mask in unfit_masks(call):
        if words_of(partial(layer.run, with_mask(call, mask))) is None:
            return failed(
                f"a mask that is {what} was taken; clause MASK-4 requires that it is refused",
                divergent="hook_attn_scores",
            )
    return harmless(layer, call, before)


@check("ARG-1", scenarios=("prefill",), dtypes=ONCE)
def an_argument_that_is_not_understood_is_refused(bench: Bench, q: Question) -> Finding:
    """ARG-1: arguments that nobody knows, or that change what is computed in a way that is not
    served, are refused, and the next call is what it was."""
    layer, call = prepared(bench, q)
    before = layer.run(call.inputs)[0]
    bidirectional = {"is_causal": False} if q.specimen.variant.causal else {}
    for name, value in {**REFUSED, **bidirectional}.items():
        if words_of(partial(layer.run, {**call.inputs, name: value})) is None:
            return failed(
                f"the argument {name} was taken and ignored; clause ARG-1 requires that it is"
                " refused",
                divergent="hook_in",
            )
    ignored = {
        name: True
        for name, argument in arguments_of(q.specimen.variant).items()
        if argument.use == "ignored"
    }
    words = words_of(partial(layer.run, {**call.inputs, **ignored}))
    if words is not None:
        return failed(
            f"arguments that are safe to ignore were refused: {words}", divergent="hook_in"
        )
    return harmless(layer, call, before)


def harmless(layer: Any, call: CallInputs, before: Tensor) -> Finding:
    """Return whether a call without hooks gives, to the bit, what it gave before the refusals."""
    if torch.equal(layer.run(call.inputs)[0], before):
        return passed()
    return failed("after a refusal the same call gave something else", divergent="hook_out")


REFUSED: dict[str, object] = {
    "an_argument_that_nobody_knows": 1,
    "cu_seq_lens_q": torch.tensor([0, 5, 13], dtype=torch.int32),
    "seq_idx": torch.zeros(2, 13, dtype=torch.int32),
    "block_table": torch.zeros(2, 1, dtype=torch.int32),
}
"""An unknown argument, those of packed sequences, and one of a paged cache; a causal layer refuses
is_causal=False beside them."""


def with_mask(call: CallInputs, mask: object) -> dict[str, Any]:
    """Return what a layer is called with, with another mask."""
    return replace(call, given={**call.given, "attention_mask": mask}).inputs


def unfit_masks(call: CallInputs) -> Iterator[tuple[str, object]]:
    """Yield masks that say nothing about this call."""
    batch, pos, _ = call.given["hidden_states"].shape
    yield "a key too long", torch.ones(batch, pos + 1, dtype=torch.bool)
    yield "a row too long", torch.ones(batch, 1, pos + 1, pos, dtype=torch.bool)
    yield "of five axes", torch.ones(batch, 1, 1, pos, pos, dtype=torch.bool)
    yield "of one axis", torch.ones(pos, dtype=torch.bool)
    yield "of four axes and whole numbers", torch.ones(batch, 1, pos, pos, dtype=torch.long)
    yield "a text", "causal"


UNFIT: dict[str, Unfit] = {
    "shape": lambda tensor: tensor[..., :-1],
    "shape, which would broadcast,": lambda tensor: one_of_many(tensor),
    "number of axes": lambda tensor: tensor[None],
    "dtype": lambda tensor: tensor.to(
        torch.float16 if tensor.dtype != torch.float16 else torch.float64
    ),
    "device": lambda tensor: tensor.to("meta"),
    "kind": lambda tensor: 0.0,
}


def one_of_many(tensor: Tensor) -> Tensor:
    """Return the first along the last axis that has several."""
    axis = max(axis for axis in range(tensor.ndim) if tensor.shape[axis] > 1)
    return tensor.narrow(axis, 0, 1)


def spoil(value: float) -> Unfit:
    """Give back scores with another number in the last place of each last row, which may be
    seen."""

    def edit(scores: Tensor) -> Tensor:
        spoiled = scores.clone()
        spoiled[:, :, -1, -1] = value
        return spoiled

    return edit


def spoil_in_place(value: float) -> Unfit:
    """Leave another number there in place."""

    def edit(scores: Tensor) -> None:
        scores[:, :, -1, -1] = value

    return edit


def prepared(bench: Bench, q: Question) -> tuple[Any, CallInputs]:
    """Return the layer, and the scenario's first call."""
    layer = bench.layer(q.specimen, q.situation.opted_in)
    return layer, calls(q.situation, q.specimen, layer)[0]


def refusal(layer: Any, call: CallInputs, name: str, edit: Unfit) -> str | None:
    """Return in which words a call with this edit is refused; None if it is not."""
    return words_of(lambda: layer.run(call.inputs, [(name, lambda tensor, hook: edit(tensor))]))


def words_of(run: Callable[[], object]) -> str | None:
    """Return what a call says when it raises; None if it does not."""
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
