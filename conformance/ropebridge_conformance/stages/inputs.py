"""Inputs of a layer: hidden states, another sequence, and the copies that heads read (IN-1,
SPLIT-1, KV-2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ropebridge_conformance.mutants.applies import (
    all_of,
    has,
    makes_kv,
    opts_in_to,
    shares_kv_heads,
)
from ropebridge_conformance.mutants.mutant import (
    AXES,
    EDITS,
    Mutant,
    given_other,
    shows_as,
    turns_to,
)
from ropebridge_conformance.stages.context import Context, Expectation, as_given, expects, handed_on
from ropebridge_conformance.subjects.reference import ReferenceLayer, show
from ropebridge_conformance.zoo.scenarios import BATCH
from ropebridge_reference import copies
from ropebridge_spec import HookFunction


@expects("hook_in", "hook_kv_in")
def expected_input(hook: str, c: Context) -> Expectation:
    """Return what IN-1, KV-2 asks for: the states that the layer is given."""
    return as_given(hook, c)


@expects("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")
def expected_copies(hook: str, c: Context) -> Expectation:
    """Return what SPLIT-1 makes of the values before: copies of what hook_in left."""
    heads = c.variant.heads if hook in ("hook_attn_in", "hook_q_input") else c.variant.kv_heads
    return handed_on(c.seen("hook_in").map(lambda x: copies(x, heads)))


# Faults that prove the judge at this stage.


def copies_shown_and_not_read(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
    """Make a fault: split inputs are shown, and heads read hook_in."""
    left = show(name, value, hooks)
    return value if name in ("hook_q_input", "hook_k_input", "hook_v_input") else left


def other_sequence_shifted(layer: ReferenceLayer, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    source = layer.variant.source
    assert source is not None
    return {**inputs, source.argument: inputs[source.argument].roll(1, 1)}


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "input_scaled",
        "hook_in is shown something else than the layer is given",
        "hook_in",
        show=turns_to("hook_in", lambda x: x * 1.5),
    ),
    Mutant(
        "input_flat",
        "hook_in is shown with batch and pos in one axis",
        "hook_in",
        show=shows_as("hook_in", lambda x: x.flatten(0, 1), lambda x: x.unflatten(0, (BATCH, -1))),
        clause="IN-2",
        arms=AXES,
    ),
    Mutant(
        "copies_not_read",
        "split inputs are shown, and heads read hook_in",
        "hook_q_input",
        opts_in_to("split_qkv_input"),
        show=copies_shown_and_not_read,
        clause="SPLIT-1",
        arms=EDITS,
        foil=False,
    ),
    Mutant(
        "inputs_of_other_positions",
        "each query head's input is the position before's",
        "hook_attn_in",
        opts_in_to("attn_in"),
        show=turns_to("hook_attn_in", lambda x: x.roll(1, 1)),
        clause="SPLIT-1",
    ),
    Mutant(
        "value_inputs_of_another_row",
        "the values read the input of another row of the batch",
        "hook_v_input",
        all_of(opts_in_to("split_qkv_input"), makes_kv),
        show=turns_to("hook_v_input", lambda x: x.roll(1, 0)),
        clause="SPLIT-1",
    ),
    Mutant(
        "key_input_by_query_head",
        "hook_k_input is shown once a query head",
        "hook_k_input",
        all_of(opts_in_to("split_qkv_input"), shares_kv_heads),
        show=shows_as("hook_k_input", lambda x: x.repeat_interleave(3, 2), lambda x: x[:, :, ::3]),
        clause="SPLIT-2",
        arms=AXES,
    ),
    Mutant(
        "other_sequence_shifted",
        "the states of another sequence are read one position late",
        "hook_kv_in",
        has("source"),
        around=given_other(other_sequence_shifted),
        clause="KV-2",
    ),
)
