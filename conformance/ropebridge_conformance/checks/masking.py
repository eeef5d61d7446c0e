"""Masking: rows that see nothing, and keys that nobody may see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.checks.values import judge_stage, judge_unwatched
from ropebridge_conformance.judging.bench import Bench, Watch
from ropebridge_conformance.judging.findings import Finding, failed, passed, vacuous
from ropebridge_conformance.judging.questions import Question, check
from ropebridge_conformance.judging.verdicts import Outcome
from ropebridge_conformance.subjects.answers import asking
from ropebridge_conformance.subjects.traces import Trace, record
from ropebridge_conformance.subjects.witness import bias_of_call, live_rows
from ropebridge_conformance.zoo.calls import CallInputs, calls
from ropebridge_conformance.zoo.masks import own_keys
from ropebridge_conformance.zoo.scenarios import FREE_FORMS, Scenario, possible
from ropebridge_spec import Variant

POISON = 16.0
OTHER_FORMS = tuple(id for id, _, _ in FREE_FORMS)
OTHER_PADDING = ("padding_numbers", "padding_floats", "padding_square", "right_padding")


def something_is_forbidden(scenario: Scenario, variant: Variant) -> bool:
    """Return whether some row is blind to some key."""
    return possible(scenario, variant) and bool(
        variant.causal or variant.window or scenario.left_padding
    )


def allows_any_key(scenario: Scenario, variant: Variant) -> bool:
    """Accept layers that see what the mask allows: a selector may pick none of it."""
    return possible(scenario, variant) and variant.selector is None


@check("MASK-6", scenarios=("left_padding",))
def a_row_that_sees_no_key_is_zero(bench: Bench, q: Question) -> Finding:
    """MASK-6: pattern and z are exactly 0 there, whether or not anybody watches the pattern."""
    for watch in ("all", "fused"):
        trace = bench.traces(q.specimen, q.situation, watch)[0]
        dead = ~live_rows(q.specimen, trace.call)
        if not dead.any():
            return vacuous("every row sees a key")
        if trace.values["hook_z"][dead].count_nonzero():
            return failed(
                f"hook_z is not 0 in a row that sees no key (watching {watch})", divergent="hook_z"
            )
        if (
            "hook_pattern" in trace.values
            and trace.values["hook_pattern"].transpose(1, 2)[dead].count_nonzero()
        ):
            return failed(
                "hook_pattern is not 0 in a row that sees no key", divergent="hook_pattern"
            )
    return passed()


@check("MASK-6", scenarios=("left_padding",))
def gradients_are_finite_where_a_row_sees_no_key(bench: Bench, q: Question) -> Finding:
    """MASK-6: the gradient of the output by the input is finite, and not 0, with and without a
    watched pattern."""
    layer = bench.layer(q.specimen, q.situation.opted_in)
    for watch in ("all", "none"):
        call = calls(q.situation, q.specimen, layer)[0]
        x: Tensor = call.given["hidden_states"].requires_grad_(True)
        trace = record(layer, [call], bench.watched(q.specimen, q.situation, watch))[0]
        assert trace.out is not None
        with asking():
            (gradient,) = torch.autograd.grad(trace.out.float().square().sum(), x)
        if not gradient.isfinite().all():
            return failed(
                f"the gradient is not finite (watching {watch})", divergent="hook_pattern"
            )
        if not gradient.count_nonzero():
            return vacuous("the gradient is 0 everywhere")
    return passed()


@check("MASK-7", scenarios=("left_padding", "no_mask"), where=something_is_forbidden)
def a_forbidden_key_changes_nothing(bench: Bench, q: Question) -> Finding:
    """MASK-7: an input sixteen times as large, at positions that a row may not see, changes no bit
    of that row: pattern, z nor output."""
    for watch in ("all", "none"):
        finding = poisoned_run(bench, q, watch)
        if finding is not None:
            return finding
    return passed()


def poisoned_run(bench: Bench, q: Question, watch: Watch) -> Finding | None:
    """Return a finding if a row that cannot see the poisoned positions moved, or no row did."""
    layer = bench.layer(q.specimen, q.situation.opted_in)
    call = bench.traces(q.specimen, q.situation, watch)[0].call
    poisoned = poisoned_positions(call, q.specimen.variant)
    names = bench.watched(q.specimen, q.situation, watch)
    clean = rows_of(record(layer, [fresh(call, {})], names)[0])
    moved = rows_of(
        record(layer, [fresh(call, {"hidden_states": poison(call, poisoned)})], names)[0]
    )
    batch = poisoned.shape[0]
    visible = own_keys(
        (bias_of_call(q.specimen, call) > -torch.inf).any(1).expand(batch, -1, -1),
        q.specimen.variant,
    )
    blind = ~(visible & poisoned[:, None, :]).any(-1) & ~poisoned
    changed = {name: (clean[name] != moved[name]).flatten(2).any(-1) for name in clean}
    if not blind.any() or not changed["hook_out"][~blind].any():
        return vacuous("no row is blind to the poisoned positions, or none sees them")
    first = next((name for name in clean if changed[name][blind].any()), None)
    if first is None:
        return None
    return failed(
        f"a row moved at {first} that cannot see the poisoned positions (watching {watch})",
        divergent=first,
    )


def rows_of(trace: Trace) -> dict[str, Tensor]:
    """Return (batch, pos, ...) of pattern and z, as far as they were watched, and of the output."""
    assert trace.out is not None
    seen = {"hook_pattern": 2, "hook_z": 1}
    return {
        **{
            name: trace.values[name].transpose(1, axis)
            for name, axis in seen.items()
            if name in trace.values
        },
        "hook_out": trace.out,
    }


def poisoned_positions(call: CallInputs, variant: Variant) -> Tensor:
    """Return (batch, pos): the last position of each row, and in the last row its first three,
    which padding forbids.

    Where later positions are seen, and padding is all that forbids, the last position of the last
    row is left out.
    """
    x = call.given["hidden_states"]
    poisoned = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    poisoned[:, -1] = True
    poisoned[-1, :3] = True
    poisoned[-1, -1] = variant.causal or variant.window is not None
    return poisoned


def poison(call: CallInputs, where: Tensor) -> Tensor:
    """Return the hidden states, sixteen times as large at some positions, and others: a norm undoes
    what is only larger."""
    x: Tensor = call.given["hidden_states"]
    return torch.where(where[..., None], x.roll(1, -1) * POISON, x)


def fresh(call: CallInputs, changes: Mapping[str, Any]) -> CallInputs:
    """Return the call again, with some inputs changed."""
    return replace(call, given={**call.given, **changes})


@check("MASK-1", scenarios=("free",), where=allows_any_key, also=("MASK-5",))
def the_mask_is_the_whole_truth(bench: Bench, q: Question) -> Finding:
    """MASK-1, MASK-5: a mask that differs by head, allows later keys, and adds numbers; scores,
    pattern and z follow it, watched or not."""
    return judge_visibility(bench, q)


@check(
    "MASK-1",
    scenarios=OTHER_FORMS,
    dtypes=("float32", "bfloat16"),
    where=allows_any_key,
    also=("MASK-5",),
)
def a_mask_in_any_form_is_the_whole_truth(bench: Bench, q: Question) -> Finding:
    """MASK-1, MASK-5: by head or without heads, one row for all queries or for the batch, booleans
    or numbers of any floating dtype, -inf, and flex BlockMasks say what they say."""
    return judge_visibility(bench, q)


@check(
    "MASK-3",
    scenarios=OTHER_PADDING,
    dtypes=("float32", "bfloat16"),
    where=allows_any_key,
)
def padding_at_either_end_is_hidden_in_any_form(bench: Bench, q: Question) -> Finding:
    """MASK-3: a two-axis mask of whole numbers, or of ones and zeros, says what one of booleans
    does; also where it has as many rows as keys, and where padding comes last."""
    return judge_visibility(bench, q)


@check("MASK-3", scenarios=("padding",), where=allows_any_key)
def a_two_axis_mask_says_which_keys_are_padding(bench: Bench, q: Question) -> Finding:
    """MASK-3: what it forbids no query sees; causality, window and chunk hold beside it."""
    return judge_visibility(bench, q)


@check("MASK-2", scenarios=("no_mask",))
def without_a_mask_the_layers_own_reach_holds(bench: Bench, q: Question) -> Finding:
    """MASK-2: earlier positions, in window and chunk; in a layer that is not causal later ones
    too."""
    return judge_visibility(bench, q)


def judge_visibility(bench: Bench, q: Question) -> Finding:
    """Judge scores and pattern by their own clauses, and z over the stages that a kernel may
    fuse."""
    traces, contexts = (
        bench.traces(q.specimen, q.situation, "all"),
        bench.contexts(q.specimen, q.situation),
    )
    shown = bench.watched(q.specimen, q.situation, "all")
    for hook in (name for name in ("hook_attn_scores", "hook_pattern") if name in shown):
        finding = judge_stage(hook, traces, contexts, q.specimen, q.situation)
        if finding.outcome != Outcome.PASS:
            return finding
    return judge_unwatched(bench, q)
