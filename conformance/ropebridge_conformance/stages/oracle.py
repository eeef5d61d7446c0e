"""Stage-local oracle: each stage recomputed in float64 from what the subject's own hooks held one
stage up.

Errors therefore do not pile up: bounds stay tight, and the first stage that breaks its bound is the
place of the fault.

One function per stage gives what a hook point should hold and how far rounding may move it, from
what the hook points before hold. A value that was recorded is exact. One that was not (a hook that
the subject does not have, or that nobody watched) is itself what its stage should give, with its
error; so the stages after it are judged across the gap. Where nothing is recorded at all, the same
functions carry rounding from one end of the layer to the other (`end_to_end`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ropebridge_conformance.stages import (
    gate,
    inputs,
    latent,
    masks,
    mix,
    norm,
    output,
    pattern,
    projection,
    rotary,
    scores,
)
from ropebridge_conformance.stages.carried import WithError, exact
from ropebridge_conformance.stages.context import PAST, Context, Expectation, SeenPast, expect
from ropebridge_conformance.stages.functions import STAGES, Stages
from ropebridge_conformance.stages.masks import MASKING, bias_in
from ropebridge_conformance.stages.reads import ReadValues
from ropebridge_conformance.subjects.traces import Trace
from ropebridge_conformance.zoo.scenarios import Scenario
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_conformance.zoo.weights import read_weights
from ropebridge_reference import Weights, a_key_for_every_head
from ropebridge_spec import HOOK_BY_NAME, Variant, hook_order, ungrouped
from ropebridge_spec.hooks import resolve

STAGE_FILES = (
    inputs,
    latent,
    projection,
    norm,
    rotary,
    masks,
    scores,
    pattern,
    gate,
    mix,
    output,
)
"""The files of the stages, in the order of the layer; each has its expected values and its
mutants."""


def contexts_of(traces: Sequence[Trace], specimen: Specimen, scenario: Scenario) -> list[Context]:
    """Return the context of each recorded call, which finds what the calls before it left; the
    weights are read once for all of them."""
    weights = read_weights(specimen.module, specimen.variant, torch.float64)
    made: list[Context] = []
    for trace in traces:
        made.append(context_of(trace, specimen, scenario, weights, left_by(made)))
    return made


def left_by(earlier: Sequence[Context]) -> SeenPast | None:
    """Return the keys and values that earlier calls left, as their hooks saw them (EDIT-4); None
    where there were no calls, or keys and values are another layer's (KV-1)."""
    if not earlier or earlier[0].variant.shared_kv_argument:
        return None
    return SeenPast(
        joined_calls([context.own_key for context in earlier]),
        joined_calls([context.own_value for context in earlier]),
    )


def joined_calls(parts: Sequence[WithError]) -> WithError:
    """Return what several calls made, along the positions."""
    return WithError(
        torch.cat([part.value for part in parts], 1),
        torch.cat([part.error for part in parts], 1),
        all(part.is_exact for part in parts),
    )


def contexts_after(edited: Sequence[Trace], before: Sequence[Context]) -> list[Context]:
    """Return the contexts of calls that were run again with an edit, from those of the run without
    it: what the caller gave, and the weights, are the same."""
    made: list[Context] = []
    for trace, context in zip(edited, before, strict=True):
        made.append(
            context.but(
                values=in_float64(well_shaped(trace, context.variant)),
                past=left_by(made) or context.past,
                before_edit=in_float64(trace.before_edit),
            )
        )
    return made


def in_float64(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what each hook point held, by name."""
    return {name: value.double() for name, value in values.items()}


def context_of(
    trace: Trace,
    specimen: Specimen,
    scenario: Scenario,
    weights: Weights | None = None,
    past: SeenPast | None = None,
) -> Context:
    """Return the context of one recorded call, which finds what earlier ones left; the weights are
    read from the module unless they are handed over, in float64."""
    given, call = trace.call.given, trace.call
    tables = call.tables(specimen.variant)
    variant = specimen.variant
    weights = weights or read_weights(specimen.module, variant, torch.float64)
    if "attn_in" in scenario.opted_in:
        weights, variant = a_key_for_every_head(weights, variant)
    x, given_kv = given["hidden_states"], call.given_kv(variant)
    if given_kv is not None:
        past = SeenPast(exact(given_kv.key.double()), exact(given_kv.value.double()))
    points = hook_order(ungrouped(specimen.variant, scenario.opted_in), scenario.opted_in)
    return Context(
        variant=variant,
        weights=weights,
        hooks=tuple(point.name for point in points),
        values=ReadValues(in_float64(well_shaped(trace, variant))),
        before_edit=in_float64(trace.before_edit),
        given={
            "hook_in": x,
            "hook_kv_in": call.source(variant),
            "hook_cos": tables and tables[0],
            "hook_sin": tables and tables[1],
        },
        bias=bias_in(trace, specimen, STAGES),
        past=past,
        first_key=call.first_key,
        positions=call.positions(variant),
        opted_in=scenario.opted_in,
        dtype=str(specimen.dtype).removeprefix("torch."),
        added_value=call.added_value(specimen.variant),
    )


def well_shaped(trace: Trace, variant: Variant) -> dict[str, Tensor]:
    """Return what was recorded in the shape that the contract requires; what has another is judged
    by itself, and those after it across the gap."""
    return {
        name: value
        for name, value in trace.values.items()
        if tuple(value.shape) == trace.call.shape_of(resolve(HOOK_BY_NAME[name], variant), variant)
    }


def foil_of(context: Context, trace: Trace, specimen: Specimen, stages: Stages) -> Context:
    """Return the context of a recorded call with a mutant's stages in place of the right ones."""
    right = all(getattr(stages, name) is getattr(context.stages, name) for name in MASKING)
    bias = context.bias if right else bias_in(trace, specimen, stages)
    return context.but(bias=bias, stages=stages)


def unchanged(hook: str, context: Context, before: Context) -> bool:
    """Return whether a stage, and all that it is made of, is to the bit what it was in an earlier
    run of the same call: then it is as right, or as wrong, as it was there."""
    _ = expect(hook, before).bound  # whatever it is made of has been read
    others = moved_since(context, before)
    return PAST not in others and others.isdisjoint((hook, *before.reads[hook]))


def moved_since(context: Context, before: Context) -> set[str]:
    """Return the names of the values, and PAST, that are not to the bit what they were in an
    earlier run of the same call; worked out once."""
    key = f"moved since {id(before)}"
    if key not in context.memory:
        moved = {
            name
            for name, value in before.values.items()
            if name not in context.values or not torch.equal(context.values[name], value)
        }
        past = set() if same_past(context.past, before.past) else {PAST}
        context.memory[key] = moved | past
    found: set[str] = context.memory[key]
    return found


def same_past(one: SeenPast | None, other: SeenPast | None) -> bool:
    """Return whether two calls were left the same keys and values by earlier ones."""
    if one is None or other is None:
        return one is other
    return torch.equal(one.key.value, other.key.value) and torch.equal(
        one.value.value, other.value.value
    )


@dataclass(frozen=True)
class EndToEnd:
    """Hold the exact pattern and output of a call, each with a bound on its error."""

    pattern: Expectation
    out: Expectation


def end_to_end(context: Context) -> EndToEnd:
    """Return what the stages make of a call's inputs alone, rounding carried from one to the
    next."""
    nothing_seen = context.but(values={})
    return EndToEnd(expect("hook_pattern", nothing_seen), expect("hook_out", nothing_seen))
