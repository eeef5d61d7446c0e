"""Output of all heads, and each head's result (OUT-1, RES-1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.mutants.applies import (
    all_of,
    half,
    has_all_positions,
    has_bias,
    many_heads,
    opts_in_to,
    opts_in_to_nothing,
    precise,
)
from ropebridge_conformance.mutants.mutant import AXES, EDITS, Mutant, change, shows_as
from ropebridge_conformance.stages.carried import WithError
from ropebridge_conformance.stages.context import Context, Expectation, expects
from ropebridge_conformance.subjects.parts import Hooks
from ropebridge_conformance.subjects.reference import ReferenceLayer, Run
from ropebridge_conformance.zoo.scenarios import BATCH
from ropebridge_reference import project_output, result, sum_of_results
from ropebridge_spec import bounds


@expects("hook_result")
def expected_result(hook: str, c: Context) -> Expectation:
    """Return what RES-1 makes of the values before."""
    z, W = c.seen("hook_z"), c.weights.W_O
    value = c.stages.result(z.value, W)

    def bound() -> Tensor:
        magnitude = c.stages.result(z.value.abs() + z.error, W.abs())
        own: Tensor = bounds.linear(value, magnitude, terms=c.variant.d_z, dtype=c.dtype)
        own += z.error_through(lambda error: c.stages.result(error, W.abs()))
        return own

    return Expectation(value, bound)


@expects("hook_out")
def expected_output(hook: str, c: Context) -> Expectation:
    """Return what OUT-1 makes of the values before: where results were made, their sum, whose
    terms may each have been rounded."""
    if "hook_result" in c.hooks:
        return expected_sum_of_results(c.seen("hook_result"), c)
    z, W, b = c.seen("hook_z"), c.weights.W_O, c.weights.b_O
    value = c.stages.project_output(z.value, W, b)

    def bound() -> Tensor:
        carried = z.error_through(lambda error: c.stages.project_output(error, W.abs(), None))
        product = 0 if b is None else c.stages.project_output(z.value, W, None).abs() + carried
        return carried + output_bound(value, output_magnitude(c), product, c)

    return Expectation(value, bound)


def expected_sum_of_results(results: WithError, c: Context) -> Expectation:
    """Return what OUT-1 makes of the results of all heads."""
    value = c.stages.sum_of_results(results.value, c.weights.b_O)

    def bound() -> Tensor:
        magnitude = output_magnitude(c) + (results.value.abs() + results.error).sum(2)
        own = output_bound(value, magnitude, 0, c) + 3 * bounds.UNIT[c.dtype] * magnitude
        return own + results.error_through(lambda error: error.sum(2))

    return Expectation(value, bound)


def output_magnitude(c: Context) -> Tensor:
    """Return the output projection of absolute values."""
    z, W, b = c.seen("hook_z"), c.weights.W_O, c.weights.b_O
    return c.stages.project_output(z.value.abs() + z.error, W.abs(), None if b is None else b.abs())


def output_bound(value: Tensor, magnitude: Tensor, product: Tensor | float, c: Context) -> Tensor:
    """Return the bound of a sum over all heads and their channels."""
    terms = c.variant.z_heads * c.variant.d_z
    return bounds.linear(value, magnitude, terms=terms, dtype=c.dtype, product=product)  # type: ignore[no-any-return]


# Faults that prove the judge at this stage.


def output_without_bias(z: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project_output(z, W, None)


def output_of_rolled_heads(z: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project_output(z, W.roll(1, 0), b)


def output_with_bias_twice(z: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project_output(z, W, None if b is None else 2 * b)


def output_one_late(z: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project_output(z.roll(1, 1), W, b)


def output_of_the_first_heads(z: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project_output(z[:, :, :-1], W[:-1], b)


def output_in_bfloat16(z: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project_output(z.bfloat16(), W.bfloat16(), b).to(z.dtype)


def output_rounded_head_by_head(z: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """Return a running sum in the layer's own dtype."""
    total = torch.zeros_like(project_output(z, W, None))
    for head in range(z.shape[2]):
        total = total + project_output(z[:, :, head : head + 1], W[head : head + 1], None)
    return total if b is None else total + b


def result_of_next_head(z: Tensor, W: Tensor) -> Tensor:
    return result(z.roll(1, 2), W)


def result_of_other_dimensions(z: Tensor, W: Tensor) -> Tensor:
    return result(z.flip(-1), W)


def sum_without_the_last(r: Tensor, b: Tensor | None) -> Tensor:
    return sum_of_results(r[:, :, :-1], b)


def sum_without_bias(r: Tensor, b: Tensor | None) -> Tensor:
    return sum_of_results(r, None)


def unwatched_otherwise(layer: ReferenceLayer) -> Run:
    """Compute something else where nobody watches."""

    def run(
        inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        out, weights = layer.call(inputs, hooks, backward)
        return (out if hooks else out * 8), weights

    return run


def returned_as_it_was(layer: ReferenceLayer) -> Run:
    """Make a fault: what is returned is what hook_out was shown, whatever it left."""

    def run(
        inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        kept: list[Tensor] = []
        _, weights = layer.call(
            inputs,
            [("hook_out", lambda tensor, hook: kept.append(tensor.clone())), *hooks],
            backward,
        )
        return kept[0], weights

    return run


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "output_bias_forgotten",
        "the output projection leaves its bias out",
        "hook_out",
        has_bias("O"),
        change(project_output=output_without_bias),
    ),
    Mutant(
        "output_heads_rolled",
        "z of head h goes through head h-1's weights",
        "hook_out",
        many_heads,
        change(project_output=output_of_rolled_heads),
    ),
    Mutant(
        "output_bias_twice",
        "the output bias is added twice",
        "hook_out",
        has_bias("O"),
        change(project_output=output_with_bias_twice),
        foil=False,
    ),
    Mutant(
        "output_one_late",
        "each position is given the output of the one before",
        "hook_out",
        all_of(opts_in_to_nothing, has_all_positions),
        change(project_output=output_one_late),
        foil=False,
    ),
    Mutant(
        "last_head_lost",
        "the last head is not projected",
        "hook_out",
        all_of(opts_in_to_nothing, many_heads),
        change(project_output=output_of_the_first_heads),
        foil=False,
    ),
    Mutant(
        "output_in_bfloat16",
        "the output is projected in bfloat16",
        "hook_out",
        all_of(opts_in_to_nothing, precise),
        change(project_output=output_in_bfloat16),
        foil=False,
    ),
    Mutant(
        "output_in_steps",
        "a half-precision layer rounds the sum after each head",
        "hook_out",
        all_of(opts_in_to_nothing, half),
        change(project_output=output_rounded_head_by_head),
        clause="PAR-2",
        arms=("half_precision_is_as_near_the_truth_as_hugging_face",),
        foil=False,
    ),
    Mutant(
        "result_of_next_head",
        "the result of head h is made of head h-1",
        "hook_result",
        opts_in_to("attn_result"),
        change(result=result_of_next_head),
    ),
    Mutant(
        "result_reversed",
        "results are made of z with its dimensions last first",
        "hook_result",
        opts_in_to("attn_result"),
        change(result=result_of_other_dimensions),
        foil=False,
    ),
    Mutant(
        "results_last_lost",
        "the last result is not added",
        "hook_out",
        opts_in_to("attn_result"),
        change(sum_of_results=sum_without_the_last),
        foil=False,
    ),
    Mutant(
        "results_without_bias",
        "results are added without the bias",
        "hook_out",
        all_of(opts_in_to("attn_result"), has_bias("O")),
        change(sum_of_results=sum_without_bias),
        foil=False,
    ),
    Mutant(
        "results_first",
        "hook_result is shown with its heads first",
        "hook_result",
        opts_in_to("attn_result"),
        show=shows_as("hook_result", lambda r: r.transpose(1, 2), lambda r: r.transpose(1, 2)),
        clause="RES-2",
        arms=AXES,
    ),
    Mutant(
        "output_flat",
        "hook_out is shown with batch and pos in one axis",
        "hook_out",
        show=shows_as("hook_out", lambda x: x.flatten(0, 1), lambda x: x.unflatten(0, (BATCH, -1))),
        clause="OUT-2",
        arms=AXES,
    ),
    Mutant(
        "returned_as_it_was",
        "what is returned is not what hook_out left",
        "hook_out",
        around=returned_as_it_was,
        clause="OUT-1",
        arms=EDITS,
    ),
    Mutant(
        "unwatched_otherwise",
        "where nobody watches the output is eight times as large",
        "hook_out",
        around=unwatched_otherwise,
        clause="PAR-1",
        arms=("the_output_agrees_with_hugging_face",),
    ),
    Mutant(
        "watched_otherwise",
        "where somebody watches the output is an eighth",
        "hook_out",
        around=unwatched_otherwise,
        clause="LOOK-1",
        arms=("looking_changes_nothing",),
    ),
)
