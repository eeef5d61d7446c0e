"""Numerics: errors that lean one way, scores that are large, and positions that are far."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ropebridge_conformance.checks.values import a_stage_gives_the_value_of_its_clause
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.compare import Difference, compare
from ropebridge_conformance.judging.findings import Finding, failed, passed, vacuous
from ropebridge_conformance.judging.questions import Question, check, value_clause
from ropebridge_conformance.stages.context import Context, Expectation, expect
from ropebridge_conformance.stages.oracle import context_of
from ropebridge_conformance.subjects.traces import record
from ropebridge_conformance.zoo.calls import calls
from ropebridge_conformance.zoo.scenarios import Scenario, possible, tables_go_on, takes_tables
from ropebridge_reference import rotate, rows_for, turns
from ropebridge_spec import HookSpec, Variant, attention_inputs

LEAN = math.sqrt(2 * math.log(2e9))
"""By Hoeffding's inequality independent errors, each within its bound and as likely up as down,
pass it once in 1e9 stages."""
LARGE = 1e4
CLIPPED = ("hook_q", "hook_k", "hook_v", "hook_q_normed", "hook_k_normed")
COPIED = ("hook_in", "hook_cos", "hook_sin")


def computed(hook: HookSpec) -> bool:
    """Accept hook points whose value is worked out, and not only handed on."""
    return hook.name not in COPIED


def by_position(hook: HookSpec) -> bool:
    """Accept hook points that tables reach first."""
    return hook.stage in ("position", "rotate")


def far(scenario: Scenario, variant: Variant) -> bool:
    """Accept layers that can be given the tables of any position."""
    return (
        possible(scenario, variant)
        and variant.rotary is not None
        and tables_go_on(variant)
        and variant.calling.tables != "own"
    )


def scored(scenario: Scenario, variant: Variant) -> bool:
    """Accept layers whose scores grow with their query."""
    return possible(scenario, variant) and variant.key_bias is None


@check(value_clause, scenarios=("large",), hooks=computed, dtypes=("bfloat16", "float16"))
def the_errors_of_a_stage_do_not_lean(bench: Bench, q: Question) -> Finding:
    """Hold the hook point to its value clause, for errors inside the bound: they must not make
    values larger, or smaller, by and large.

    The statistic is sum(e y) / sqrt(sum((b y)^2)) over all elements, e the error, b its bound and y
    the value. In half precision what rounds a value last outweighs what neighbours have in common,
    so that errors are independent. The foil is a value larger by a quarter of its bound.
    """
    assert q.hook is not None
    trace, context = (
        bench.traces(q.specimen, q.situation, "all")[0],
        bench.contexts(q.specimen, q.situation)[0],
    )
    expected = expect(q.hook, context)
    counted = ~tied(q.hook, context, expected.value) & expected.value.isfinite()
    leaning = lean(expected.value + expected.value.sign() * expected.bound / 4, expected, counted)
    if not expected.bound.count_nonzero():
        return (
            passed()
            if torch.equal(trace.values[q.hook].double(), expected.value)
            else failed(f"{q.hook} is not what it copies", divergent=q.hook)
        )
    if abs(leaning) <= LEAN:
        return vacuous(f"errors of a quarter of the bound, all one way, would pass: {leaning:.3g}")
    found = lean(trace.values[q.hook].double(), expected, counted)
    difference = Difference(abs(found) / LEAN, abs(found), LEAN, ())
    if difference.fits:
        return passed(difference)
    return failed(
        f"the errors of {q.hook} lean {'up' if found > 0 else 'down'} by {abs(found):.3g}, which"
        f" chance does not ({LEAN:.2f})",
        difference,
        q.hook,
    )


def tied(hook: str, c: Context, value: Tensor) -> Tensor:
    """Return where values are one number by their making, and so have one error: those that are
    clipped (CLIP-1), and those rotated from two that are."""
    clip, rotary = c.variant.clip, c.variant.rotary
    if clip is not None and rotary is not None and hook in ("hook_rot_q", "hook_rot_k"):
        shown_as = float(torch.tensor(clip, dtype=getattr(torch, c.dtype)))
        clipped = (c.heads_before(hook).value.abs() == shown_as).double()
        turn = turns(
            *rows_for(clipped.shape[1], c.values["hook_cos"], c.values["hook_sin"]), rotary
        )
        return rotate(clipped, torch.ones_like(turn), rotary) == 2  # of the pair both
    bound = c.clips(hook) if hook in CLIPPED else None
    return value.abs() == (torch.inf if bound is None else bound)


def lean(value: Tensor, expected: Expectation, counted: Tensor) -> float:
    """Return the statistic, over the elements that count."""
    e, y, b = (
        t[counted]
        for t in (value - expected.value, expected.value, expected.bound.expand_as(expected.value))
    )
    return float((e * y).sum() / (b * y).square().sum().sqrt())


@check("SCORE-1", scenarios=("prefill",), where=scored, also=("PAT-1", "MIX-1"))
def large_scores_stay_within_their_bounds(bench: Bench, q: Question) -> Finding:
    """SCORE-1, PAT-1, MIX-1: a query so large that scores before the cap reach ten thousand, either
    way; no stage overflows or turns into NaN."""
    layer, query = (
        bench.layer(q.specimen, q.situation.opted_in),
        attention_inputs(q.specimen.variant)[0],
    )
    before = bench.contexts(q.specimen, q.situation)[0]
    largest = float(uncapped(before).abs().max())
    factor = LARGE / largest
    names = bench.watched(q.specimen, q.situation, "all")
    trace = record(
        layer, calls(q.situation, q.specimen, layer), names, {query: lambda tensor: tensor * factor}
    )[0]
    context = context_of(trace, q.specimen, q.situation)
    if not LARGE / 2 < float(uncapped(context).abs().max()) < 2 * LARGE:
        return vacuous("no score is large")
    worst = None
    order = context.hooks
    for name in (n for n in order[order.index("hook_attn_scores") :] if n in names):
        difference = compare(trace.values[name], expect(name, context))
        if not difference.fits:
            return failed(
                f"at scores up to ten thousand {name} is off by {difference.ratio:.3g} bounds at"
                f" {difference.index}",
                difference,
                divergent=name,
            )
        worst = difference if worst is None or difference.ratio > worst.ratio else worst
    unwatched = record(
        layer,
        calls(q.situation, q.specimen, layer),
        [query],
        {query: lambda tensor: tensor * factor},
    )[0].out
    if unwatched is None or not unwatched.isfinite().all():
        return failed(
            "at scores up to ten thousand the output is not finite where nobody watches",
            divergent="hook_attn_scores",
        )
    return passed(worst)


def uncapped(context: Context) -> Tensor:
    """Return the scaled scores of all pairs."""
    return context.stages.score_keys(
        context.query.value,
        context.keys.value,
        torch.zeros_like(context.bias),
        replace(context.variant, softcap=None),
    )


@check(value_clause, scenarios=("far",), hooks=by_position, where=far)
def rotation_is_exact_at_far_positions(bench: Bench, q: Question) -> Finding:
    """POS-1, ROT-1: the tables of positions up to 131071 are shown as they are given, and turn as
    they say."""
    return a_stage_gives_the_value_of_its_clause(bench, q)


@check(value_clause, scenarios=("random_tables",), hooks=by_position, where=takes_tables)
def rotation_reads_its_tables_as_the_class_does(bench: Bench, q: Question) -> Finding:
    """POS-1, ROT-1: tables of random numbers, such as an edit at hook_cos leaves, are shown as they
    are given, and turn as they say."""
    return a_stage_gives_the_value_of_its_clause(bench, q)
