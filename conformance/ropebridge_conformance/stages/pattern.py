"""Pattern of the scores (PAT-1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.mutants.applies import (
    all_of,
    always,
    double,
    half,
    has_no_softcap,
    has_rows_that_see_nothing,
    has_sinks,
    in_scenarios,
    many_heads,
    precise,
)
from ropebridge_conformance.mutants.mutant import AXES, Mutant, change, shows_as
from ropebridge_conformance.stages.context import HALF, Context, Expectation, expects
from ropebridge_conformance.stages.scores import scores_before_rounding
from ropebridge_conformance.subjects.parts import Hooks
from ropebridge_conformance.subjects.reference import ReferenceLayer, Run
from ropebridge_reference import make_pattern
from ropebridge_spec import bounds


@expects("hook_pattern")
def expected_pattern(hook: str, c: Context) -> Expectation:
    """Return what PAT-1 makes of the values before: from the scores the subject itself gave to
    softmax, as they were shown or as they were before they were rounded for that."""
    if "hook_attn_scores" not in c.values:
        unseen = c.seen("hook_attn_scores")
        return pattern_of(unseen.value, unseen.error.amax(-1, keepdim=True), c)
    shown = c.values["hook_attn_scores"]
    if c.dtype not in HALF or "hook_pattern" not in c.values:
        return pattern_of(shown, 0.0, c)
    scores, off = scores_before_rounding(c)
    choices = (pattern_of(scores, off, c), pattern_of(shown, 0.0, c))
    return min(choices, key=lambda choice: furthest(c.values["hook_pattern"], choice))


def pattern_of(scores: Tensor, off: Tensor | float, c: Context) -> Expectation:
    """Return the pattern of scores that may be off by so much in each row, (batch, head, query,
    1)."""
    value = c.stages.make_pattern(scores, c.weights.sinks)

    def bound() -> Tensor:
        own = softmax_bound(c, scores, value)
        return own if isinstance(off, float) else own + value * (2 * off).expm1()

    return Expectation(value, bound)


@torch.no_grad()
def furthest(got: Tensor, expected: Expectation) -> float:
    """Return the largest error of a value in terms of its bound; infinity for another shape."""
    if got.shape != expected.value.shape:
        return torch.inf
    error = (got - expected.value).abs()
    return float((error / expected.bound).where(error > 0, 0.0).max())


def softmax_bound(c: Context, scores: Tensor, value: Tensor) -> Tensor:
    """Return the bound of the pattern, 0 where a key is forbidden."""
    top = scores.amax(-1, keepdim=True)
    top = top if c.weights.sinks is None else top.maximum(c.weights.sinks[None, :, None, None])
    below = (top - scores).nan_to_num(nan=0.0, posinf=0.0)
    bound: Tensor = bounds.softmax(value, below, keys=scores.shape[-1] + 1, dtype=c.dtype)
    return bound.masked_fill(scores == -torch.inf, 0.0)


# Faults that prove the judge at this stage.


def pattern_without_sink(s: Tensor, sinks: Tensor | None) -> Tensor:
    return make_pattern(s, None)


def pattern_over_queries(s: Tensor, sinks: Tensor | None) -> Tensor:
    return make_pattern(s.transpose(2, 3), sinks).transpose(2, 3)


def pattern_uniform_where_dead(s: Tensor, sinks: Tensor | None) -> Tensor:
    blind = (s == -math.inf).all(-1, keepdim=True)
    return torch.where(blind, 1.0 / s.shape[-1], make_pattern(s, sinks)).to(s.dtype)


def pattern_to_base_two(s: Tensor, sinks: Tensor | None) -> Tensor:
    return make_pattern(s * math.log(2), None if sinks is None else sinks * math.log(2))


def pattern_half_as_sharp(s: Tensor, sinks: Tensor | None) -> Tensor:
    return make_pattern(s / 2, sinks)


def pattern_unnormed(s: Tensor, sinks: Tensor | None) -> Tensor:
    return torch.exp(
        s - s.amax(-1, keepdim=True).masked_fill(s.amax(-1, keepdim=True) == -math.inf, 0.0)
    )


def pattern_of_the_mean_head(s: Tensor, sinks: Tensor | None) -> Tensor:
    p = make_pattern(s, sinks)
    return p.mean(1, keepdim=True).expand_as(p)


def pattern_of_next_sink(s: Tensor, sinks: Tensor | None) -> Tensor:
    return make_pattern(s, None if sinks is None else sinks.roll(1))


def pattern_of_negated_sink(s: Tensor, sinks: Tensor | None) -> Tensor:
    return make_pattern(s, None if sinks is None else -sinks)


def pattern_with_the_sinks_share(s: Tensor, sinks: Tensor | None) -> Tensor:
    """Make a fault: the sink is not dropped: the first key is given its share."""
    p = make_pattern(s, sinks).clone()
    p[..., 0] = p[..., 0] + (1 - p.sum(-1))
    return p


def pattern_in_float32(s: Tensor, sinks: Tensor | None) -> Tensor:
    return make_pattern(s.float(), sinks).to(s.dtype)


def pattern_in_bfloat16(s: Tensor, sinks: Tensor | None) -> Tensor:
    return make_pattern(s.bfloat16(), sinks).to(s.dtype)


def pattern_without_maximum(s: Tensor, sinks: Tensor | None) -> Tensor:
    """Return e to the score itself, which overflows where scores are large."""
    weight = torch.exp(s.to(torch.promote_types(s.dtype, torch.float32)))
    total = weight.sum(-1, keepdim=True) + (
        0 if sinks is None else sinks.to(weight.dtype).exp().reshape(1, -1, 1, 1)
    )
    return (weight / torch.where(total == 0, 1.0, total)).to(s.dtype)


def pattern_that_repairs_dead_rows(s: Tensor, sinks: Tensor | None) -> Tensor:
    """Make a fault: NaN is replaced by 0, and its gradient is NaN."""
    return (
        torch.softmax(s.to(torch.promote_types(s.dtype, torch.float32)), -1)
        .nan_to_num(0.0)
        .to(s.dtype)
    )


def pattern_summed_in_steps(s: Tensor, sinks: Tensor | None) -> Tensor:
    """Return softmax in the layer's own dtype, each step rounded."""
    top = s.amax(-1, keepdim=True)
    weight = torch.exp(s - top.masked_fill(top == -math.inf, 0.0))
    total = torch.zeros_like(weight[..., :1])
    for key in range(weight.shape[-1]):
        total = total + weight[..., key : key + 1]
    return weight / torch.where(total == 0, 1.0, total)


def weights_before_the_hook(layer: ReferenceLayer) -> Run:
    """Make a fault: the weights that are returned are not those that the hook left."""

    def run(
        inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        out, weights = layer.call(inputs, hooks, backward)
        return out, None if weights is None else weights * 1.25

    return run


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "sink_forgotten",
        "softmax without the sink",
        "hook_pattern",
        has_sinks,
        change(make_pattern=pattern_without_sink),
    ),
    Mutant(
        "softmax_axis",
        "softmax over queries",
        "hook_pattern",
        always,
        change(make_pattern=pattern_over_queries),
    ),
    Mutant(
        "dead_rows_uniform",
        "a row that sees nothing attends to everything",
        "hook_pattern",
        has_rows_that_see_nothing,
        change(make_pattern=pattern_uniform_where_dead),
        clause="MASK-6",
    ),
    Mutant(
        "base_two",
        "powers of two in place of e",
        "hook_pattern",
        stages=change(make_pattern=pattern_to_base_two),
        foil=False,
    ),
    Mutant(
        "half_as_sharp",
        "scores are halved before the softmax",
        "hook_pattern",
        stages=change(make_pattern=pattern_half_as_sharp),
        foil=False,
    ),
    Mutant(
        "not_normed",
        "rows are not divided by their sum",
        "hook_pattern",
        stages=change(make_pattern=pattern_unnormed),
        foil=False,
    ),
    Mutant(
        "mean_head",
        "every head is given the mean pattern",
        "hook_pattern",
        many_heads,
        change(make_pattern=pattern_of_the_mean_head),
        foil=False,
    ),
    Mutant(
        "sink_of_next_head",
        "each head has the sink of the one before",
        "hook_pattern",
        has_sinks,
        change(make_pattern=pattern_of_next_sink),
        foil=False,
    ),
    Mutant(
        "sink_negated",
        "the sink counts the other way",
        "hook_pattern",
        has_sinks,
        change(make_pattern=pattern_of_negated_sink),
        foil=False,
    ),
    Mutant(
        "sink_not_dropped",
        "the sink's share is given to the first key",
        "hook_pattern",
        has_sinks,
        change(make_pattern=pattern_with_the_sinks_share),
        foil=False,
    ),
    Mutant(
        "softmax_in_float32",
        "a float64 layer exponentiates in float32",
        "hook_pattern",
        double,
        change(make_pattern=pattern_in_float32),
        foil=False,
    ),
    Mutant(
        "softmax_in_bfloat16",
        "the softmax is made in bfloat16",
        "hook_pattern",
        precise,
        change(make_pattern=pattern_in_bfloat16),
        foil=False,
    ),
    Mutant(
        "softmax_in_steps",
        "a half-precision layer rounds each step of its softmax",
        "hook_pattern",
        half,
        change(make_pattern=pattern_summed_in_steps),
        foil=False,
    ),
    Mutant(
        "maximum_not_subtracted",
        "e to the score itself",
        "hook_pattern",
        has_no_softcap,
        change(make_pattern=pattern_without_maximum),
        arms=("large_scores_stay_within_their_bounds",),
        foil=False,
    ),
    Mutant(
        "dead_rows_repaired",
        "a row that sees nothing is 0, and its gradient NaN",
        "hook_pattern",
        all_of(has_rows_that_see_nothing, in_scenarios("left_padding")),
        change(make_pattern=pattern_that_repairs_dead_rows),
        clause="MASK-6",
        arms=("gradients_are_finite_where_a_row_sees_no_key",),
        foil=False,
    ),
    Mutant(
        "pattern_by_query",
        "hook_pattern is shown as batch query head key",
        "hook_pattern",
        show=shows_as("hook_pattern", lambda p: p.transpose(1, 2), lambda p: p.transpose(1, 2)),
        clause="PAT-2",
        arms=AXES,
    ),
    Mutant(
        "other_weights",
        "the weights that are returned are not hook_pattern",
        "hook_pattern",
        around=weights_before_the_hook,
        clause="PAT-3",
        arms=("returned_weights_are_the_pattern",),
    ),
)
