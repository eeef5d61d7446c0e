"""Rotation by position, and its tables (ROT-1, POS-1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ropebridge_conformance.mutants.applies import (
    all_of,
    has,
    has_all_positions,
    has_padding,
    in_scenarios,
    makes_kv,
    many_pairs,
    one_table,
    opts_in_to_nothing,
    precise,
    reads_copies,
    reads_own_cache,
    rotates,
    rotates_in_part,
    shares_kv_heads,
    tables_by_row,
    tables_in_pairs,
)
from ropebridge_conformance.mutants.mutant import (
    AXES,
    LENGTHS,
    Around,
    Mutant,
    change,
    given_other,
    shows_as,
    turns_to,
)
from ropebridge_conformance.stages.carried import WithError
from ropebridge_conformance.stages.context import (
    Context,
    Expectation,
    as_given,
    expects,
    handed_on,
)
from ropebridge_conformance.subjects.parts import Hooks
from ropebridge_conformance.subjects.reference import ReferenceLayer, Run
from ropebridge_conformance.zoo.calls import cache_layer
from ropebridge_reference import rotate, rows_for, turns
from ropebridge_spec import Rotary, bounds, hook_before


@expects("hook_cos", "hook_sin")
def expected_table(hook: str, c: Context) -> Expectation:
    """Return what POS-1 asks for: the table that the layer is given."""
    return as_given(hook, c)


@expects("hook_rot_q", "hook_rot_k", "hook_rot_v")
def expected_rotation(hook: str, c: Context) -> Expectation:
    """Return what ROT-1 makes of the values before: a copy of them in a layer that does not
    rotate."""
    x = c.heads_before(hook)
    if c.variant.rotary is None:
        return handed_on(x)
    rotary, tables = c.variant.rotary, (c.seen("hook_cos").value, c.seen("hook_sin").value)
    turn = c.stages.turns(*rows_for(x.value.shape[1], *tables), rotary)
    value = c.stages.rotate(x.value, turn, rotary)
    return Expectation(value, lambda: carry_rotation(x, turn, rotary, c.dtype, value=value).error)


def carry_rotation(
    x: WithError, turn: Tensor, rotary: Rotary, dtype: str, value: Tensor | None = None
) -> WithError:
    """Carry value and error through ROT-1: the stage on the value, and its bound."""
    value, steps = rotate(x.value, turn, rotary) if value is None else value, turn.abs()
    magnitude = rotate(x.value.abs() + x.error, steps, rotary)
    carried = x.error_through(lambda error: rotate(error, steps, rotary))
    return WithError(
        value,
        carried + bounds.rotate(value, magnitude, precision=rotary.precision, dtype=dtype),
    )


# Faults that prove the judge at this stage.


def rotate_other_end(x: Tensor, turn: Tensor, rotary: Rotary) -> Tensor:
    return rotate(
        x, turn, replace(rotary, end="trailing" if rotary.end == "leading" else "leading")
    )


def turns_backwards(cos: Tensor, sin: Tensor, rotary: Rotary) -> Tensor:
    return turns(cos, -sin, rotary)


def turns_one_late(cos: Tensor, sin: Tensor, rotary: Rotary) -> Tensor:
    return turns(cos.roll(1, 1), sin.roll(1, 1), rotary)


def turns_without_sin(cos: Tensor, sin: Tensor, rotary: Rotary) -> Tensor:
    return turns(cos, torch.zeros_like(sin), rotary)


def rotate_other_pairs(x: Tensor, turn: Tensor, rotary: Rotary) -> Tensor:
    return rotate(
        x,
        turn,
        replace(rotary, pairing="half" if rotary.pairing == "interleaved" else "interleaved"),
    )


def rotate_transposed(x: Tensor, turn: Tensor, rotary: Rotary) -> Tensor:
    return rotate(x, turn.flip(2), rotary)


def turns_swapped(cos: Tensor, sin: Tensor, rotary: Rotary) -> Tensor:
    return turns(sin, cos, rotary)


def turns_of_the_first_row(cos: Tensor, sin: Tensor, rotary: Rotary) -> Tensor:
    return turns(cos[:1].expand_as(cos), sin[:1].expand_as(sin), rotary)


def turns_in_bfloat16(cos: Tensor, sin: Tensor, rotary: Rotary) -> Tensor:
    return turns(cos.bfloat16().to(cos.dtype), sin.bfloat16().to(sin.dtype), rotary)


def turns_by_other_copies(cos: Tensor, sin: Tensor, rotary: Rotary) -> Tensor:
    """Make a fault: pairs read the first copy of a frequency where they read both, and both where
    they read the first."""
    if rotary.table == "full" and rotary.pairing == "interleaved":
        return turns(halves_repeated(cos), halves_repeated(sin), replace(rotary, table="repeated"))
    return turns(first_copy(cos, rotary), first_copy(sin, rotary), replace(rotary, table="half"))


def halves_repeated(table: Tensor) -> Tensor:
    """Return a table of two halves, (..., width), with the copies of a frequency side by side."""
    copies: Tensor = table.unflatten(-1, (2, -1)).mT  # (..., pair, 2)
    return copies.flatten(-2)


def first_copy(table: Tensor, rotary: Rotary) -> Tensor:
    """Return the first copy of each frequency, (..., width / 2)."""
    return table[..., ::2] if rotary.table == "repeated" else table.chunk(2, -1)[0]


def rotate_twice(x: Tensor, turn: Tensor, rotary: Rotary) -> Tensor:
    return rotate(rotate(x, turn, rotary), turn, rotary)


def rotate_in_bfloat16(x: Tensor, turn: Tensor, rotary: Rotary) -> Tensor:
    return rotate(x.bfloat16(), turn.bfloat16(), replace(rotary, precision="input")).to(x.dtype)


def rotate_and_drop_the_rest(x: Tensor, turn: Tensor, rotary: Rotary) -> Tensor:
    """Make a fault: the dimensions that pass through are lost."""
    return rotate(x, turn, rotary) * rotates_there(x, rotary)


def rotates_there(x: Tensor, rotary: Rotary) -> Tensor:
    """Return 1 where a dimension rotates, else 0."""
    ones = torch.zeros(x.shape[-1], dtype=x.dtype, device=x.device)
    ones[: rotary.width] = 1
    return ones if rotary.end == "leading" else ones.flip(0)


def half_the_pairs(x: Tensor, turn: Tensor, rotary: Rotary) -> Tensor:
    """Make a fault: the pairs of the higher half of the frequencies do not turn."""
    still = torch.eye(2, dtype=turn.dtype, device=turn.device).expand_as(turn).clone()
    still[..., : turn.shape[2] // 2, :, :] = turn[..., : turn.shape[2] // 2, :, :]
    return rotate(x, still, rotary)


def tables_of_position_nought(
    layer: ReferenceLayer, inputs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Make a fault: a step that reads a cache is given the tables of the first position."""
    cache, tables = inputs.get("cache"), inputs["position_embeddings"]
    if (
        cache is None
        or cache.get_seq_length(cache_layer(inputs, layer.module, layer.variant)) == 0
        or not isinstance(tables, tuple)
    ):
        return inputs
    return {
        **inputs,
        "position_embeddings": (torch.ones_like(tables[0]), torch.zeros_like(tables[1])),
    }


def unrotated(role: Literal["k", "v"]) -> Around:
    """Make a fault: the key, or the value, is the one there was before rotation."""

    def around(layer: ReferenceLayer) -> Run:
        source = hook_before(f"hook_rot_{role}", layer.variant)

        def run(
            inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
        ) -> tuple[Tensor, Tensor | None]:
            kept: list[Tensor] = []
            last = (source, lambda tensor, hook: kept.append(tensor.clone()))
            first = (f"hook_rot_{role}", lambda tensor, hook: kept[0].view_as(tensor))
            return layer.call(inputs, [first, *hooks, last], backward)

        return run

    return around


def one_position_unturned(x: Tensor, turn: Tensor, rotary: Rotary) -> Tensor:
    return x if x.shape[1] == 1 else rotate(x, turn, rotary)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "one_position_unturned",
        "a single position is not turned",
        "hook_rot_q",
        all_of(rotates, in_scenarios("length_1")),
        change(rotate=one_position_unturned),
        clause="ROT-1",
        arms=LENGTHS,
        foil=False,
        also=("hook_rot_k",),
    ),
    Mutant(
        "other_copies",
        "pairs read another copy of a frequency than the class does",
        "hook_rot_q",
        reads_copies,
        change(turns=turns_by_other_copies),
        also=("hook_rot_k",),
        arms=("rotation_reads_its_tables_as_the_class_does",),
    ),
    Mutant(
        "other_end",
        "the other end of each head rotates",
        "hook_rot_q",
        rotates_in_part,
        change(rotate=rotate_other_end),
        also=("hook_rot_k",),
    ),
    Mutant(
        "sin_sign",
        "rotation by the opposite angle",
        "hook_rot_q",
        rotates,
        change(turns=turns_backwards),
        also=("hook_rot_k",),
    ),
    Mutant(
        "one_position_late",
        "tables of the position before",
        "hook_rot_q",
        rotates,
        change(turns=turns_one_late),
        also=("hook_rot_k",),
    ),
    Mutant(
        "sin_forgotten",
        "only the cos term",
        "hook_rot_q",
        rotates,
        change(turns=turns_without_sin),
        also=("hook_rot_k",),
    ),
    Mutant(
        "other_pairs",
        "halves paired as neighbours, or the other way",
        "hook_rot_q",
        rotates,
        change(rotate=rotate_other_pairs),
        also=("hook_rot_k",),
    ),
    Mutant(
        "frequencies_reversed",
        "the fastest frequency on the last pair",
        "hook_rot_q",
        rotates,
        change(rotate=rotate_transposed),
        also=("hook_rot_k",),
    ),
    Mutant(
        "cos_for_sin",
        "cos and sin are swapped",
        "hook_rot_q",
        rotates,
        change(turns=turns_swapped),
        also=("hook_rot_k",),
        foil=False,
    ),
    Mutant(
        "first_rows_positions",
        "every row of the batch is turned by the first one's tables",
        "hook_rot_q",
        all_of(rotates, has_padding, tables_by_row),
        change(turns=turns_of_the_first_row),
        also=("hook_rot_k",),
        foil=False,
    ),
    Mutant(
        "tables_in_bfloat16",
        "tables are rounded to bfloat16",
        "hook_rot_q",
        all_of(rotates, precise),
        change(turns=turns_in_bfloat16),
        also=("hook_rot_k",),
        foil=False,
    ),
    Mutant(
        "rotated_twice",
        "query and key are rotated twice",
        "hook_rot_q",
        rotates,
        change(rotate=rotate_twice),
        also=("hook_rot_k",),
        foil=False,
    ),
    Mutant(
        "rotated_in_bfloat16",
        "rotation is done in bfloat16",
        "hook_rot_q",
        all_of(rotates, precise),
        change(rotate=rotate_in_bfloat16),
        also=("hook_rot_k",),
        foil=False,
    ),
    Mutant(
        "passing_part_lost",
        "the dimensions that do not rotate are nought",
        "hook_rot_q",
        rotates_in_part,
        change(rotate=rotate_and_drop_the_rest),
        also=("hook_rot_k",),
        foil=False,
    ),
    Mutant(
        "half_the_pairs",
        "only half of the pairs turn",
        "hook_rot_q",
        all_of(rotates, many_pairs),
        change(rotate=half_the_pairs),
        also=("hook_rot_k",),
        foil=False,
    ),
    Mutant(
        "keys_unrotated",
        "the key is not rotated",
        "hook_rot_k",
        all_of(rotates, makes_kv),
        around=unrotated("k"),
    ),
    Mutant(
        "values_unrotated",
        "the value is not rotated, in a layer that rotates it",
        "hook_rot_v",
        has("rotary", "values"),
        around=unrotated("v"),
    ),
    Mutant(
        "step_at_position_nought",
        "a step that reads a cache rotates as the first position",
        "hook_cos",
        all_of(rotates, reads_own_cache, tables_in_pairs),
        around=given_other(tables_of_position_nought),
    ),
    Mutant(
        "table_without_batch",
        "hook_cos is shown without its batch axis",
        "hook_cos",
        all_of(rotates, has_all_positions, one_table),
        show=shows_as("hook_cos", lambda t: t[0], lambda t: t[None]),
        clause="POS-2",
        arms=AXES,
    ),
    Mutant(
        "keys_by_query_head",
        "hook_rot_k is shown once a query head",
        "hook_rot_k",
        all_of(shares_kv_heads, opts_in_to_nothing),
        show=shows_as("hook_rot_k", lambda k: k.repeat_interleave(3, 2), lambda k: k[:, :, ::3]),
        clause="ROT-2",
        arms=AXES,
    ),
    Mutant(
        "table_scaled",
        "hook_sin is shown something else than the layer is given",
        "hook_sin",
        rotates,
        show=turns_to("hook_sin", lambda t: t * 1.25),
    ),
)
