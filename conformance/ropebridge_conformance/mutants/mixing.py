"""Faults between the pattern and the output projection."""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from ropebridge_conformance.mutants.applies import (
    all_of,
    has,
    has_gate_of_several_heads,
    has_no_softcap,
    in_dtypes,
    many_heads,
    many_kv_heads,
    no_z_norm,
    norms_and_gates_z,
    opts_in_to_nothing,
    precise,
    shares_kv_heads,
)
from ropebridge_conformance.mutants.mutant import (
    AXES,
    Mutant,
    change,
    shows_as,
)
from ropebridge_conformance.mutants.scores import tiled
from ropebridge_reference import (
    Affine,
    exclude,
    mix_values,
    norm_and_gate,
    open_gate,
    subtract,
)
from ropebridge_spec import Differential, Gate, Norm


def gate_linear(logits: Tensor, kind: Gate) -> Tensor:
    return logits


def gate_of_other_kind(logits: Tensor, kind: Gate) -> Tensor:
    return open_gate(
        logits, replace(kind, activation="softplus" if kind.activation == "sigmoid" else "sigmoid")
    )


def gate_forgotten(mixed: Tensor, g: Tensor | None, affine: Affine, norm: Norm | None) -> Tensor:
    return norm_and_gate(mixed, None, affine, norm)


def gate_of_next_head(mixed: Tensor, g: Tensor | None, affine: Affine, norm: Norm | None) -> Tensor:
    return norm_and_gate(mixed, None if g is None else g.roll(1, 2), affine, norm)


def z_norm_forgotten(mixed: Tensor, g: Tensor | None, affine: Affine, norm: Norm | None) -> Tensor:
    return norm_and_gate(mixed, g, affine, None)


def z_norm_after_gate(mixed: Tensor, g: Tensor | None, affine: Affine, norm: Norm | None) -> Tensor:
    return norm_and_gate(norm_and_gate(mixed, g, affine, None), None, affine, norm)


def mix_of_tiled_values(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(p, tiled(v, p.shape[1] // v.shape[2]))


def mix_with_heads_rolled(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(p, v).roll(1, 2)


def mix_of_late_values(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(p, v.roll(1, 1))


def mix_of_the_first_value_head(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(p, v[:, :, :1].expand_as(v))


def mix_of_value_heads_reversed(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(p, v.flip(2))


def mix_of_the_next_row(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(p, v.roll(1, 0))


def mix_evenly(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(torch.full_like(p, 1 / p.shape[-1]), v)


def mix_in_bfloat16(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(p.bfloat16(), v.bfloat16()).to(p.dtype)


def mix_rescaled(p: Tensor, v: Tensor) -> Tensor:
    """Make a fault: values are divided by the largest there is, which forbidden keys have a part
    in, and multiplied again: the same but for rounding."""
    size = 1.7 * v.detach().abs().amax()
    return mix_values(p, v / size) * size


def gated_twice(mixed: Tensor, g: Tensor | None, affine: Affine, norm: Norm | None) -> Tensor:
    return norm_and_gate(norm_and_gate(mixed, g, affine, norm), g, Affine(), None)


def gated_by_one_more(mixed: Tensor, g: Tensor | None, affine: Affine, norm: Norm | None) -> Tensor:
    return norm_and_gate(mixed, None if g is None else g + 1, affine, norm)


def subtract_nothing(z: Tensor, lambdas: Tensor, kind: Differential) -> Tensor:
    return subtract(z, lambdas, kind) * 0 + z[:, :, : z.shape[2] // 2]


def subtract_neighbours(z: Tensor, lambdas: Tensor, kind: Differential) -> Tensor:
    return subtract(
        rearrange(z, "batch query (pair two) d -> batch query (two pair) d", two=2), lambdas, kind
    )


def subtract_as_strongly_as_it_began(z: Tensor, lambdas: Tensor, kind: Differential) -> Tensor:
    return subtract(z, torch.zeros_like(lambdas), kind)


def exclude_nothing(z: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
    return exclude(z, v, torch.zeros_like(alpha))


def exclude_of_the_next_position(z: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
    return exclude(z, v.roll(1, 1), alpha)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "nothing_excluded",
        "z keeps the part along its own value",
        "hook_z",
        has("exclusive"),
        change(exclude=exclude_nothing),
        clause="MIX-3",
    ),
    Mutant(
        "next_value_excluded",
        "z loses the part along the value of the next position",
        "hook_z",
        has("exclusive"),
        change(exclude=exclude_of_the_next_position),
        clause="MIX-3",
        foil=False,
    ),
    Mutant(
        "gate_linear",
        "the gate has no activation",
        "hook_gate",
        has("gate"),
        change(gate=gate_linear),
    ),
    Mutant(
        "gate_of_other_kind",
        "softplus in place of sigmoid, or the other way",
        "hook_gate",
        has("gate"),
        change(gate=gate_of_other_kind),
    ),
    Mutant(
        "gate_forgotten",
        "z is not gated",
        "hook_z",
        has("gate"),
        change(norm_and_gate=gate_forgotten),
    ),
    Mutant(
        "gate_of_next_head",
        "z of head h is gated by head h-1's gate",
        "hook_z",
        has_gate_of_several_heads,
        change(norm_and_gate=gate_of_next_head),
    ),
    Mutant(
        "z_norm_forgotten",
        "z is not normed",
        "hook_z",
        has("z_norm"),
        change(norm_and_gate=z_norm_forgotten),
    ),
    Mutant(
        "z_norm_after_gate",
        "z is gated before its norm",
        "hook_z",
        norms_and_gates_z,
        change(norm_and_gate=z_norm_after_gate),
    ),
    Mutant(
        "values_tiled",
        "query head h mixes value head h mod kv heads",
        "hook_z",
        shares_kv_heads,
        change(mix=mix_of_tiled_values),
    ),
    Mutant(
        "mixed_heads_rolled",
        "z of head h stands at head h + 1",
        "hook_z",
        many_heads,
        change(mix=mix_with_heads_rolled),
    ),
    Mutant(
        "values_one_late",
        "each pattern entry mixes the value one place before",
        "hook_z",
        stages=change(mix=mix_of_late_values),
        foil=False,
    ),
    Mutant(
        "first_value_head",
        "every query head mixes the first value head",
        "hook_z",
        many_kv_heads,
        change(mix=mix_of_the_first_value_head),
        foil=False,
    ),
    Mutant(
        "value_heads_reversed",
        "value heads come last first",
        "hook_z",
        many_kv_heads,
        change(mix=mix_of_value_heads_reversed),
        foil=False,
    ),
    Mutant(
        "values_of_next_row",
        "the values of another row of the batch are mixed",
        "hook_z",
        stages=change(mix=mix_of_the_next_row),
        foil=False,
    ),
    Mutant(
        "mixed_evenly",
        "every value counts the same",
        "hook_z",
        stages=change(mix=mix_evenly),
        foil=False,
    ),
    Mutant(
        "mixed_in_bfloat16",
        "values are mixed in bfloat16",
        "hook_z",
        all_of(precise, no_z_norm),
        change(mix=mix_in_bfloat16),
        foil=False,
    ),
    Mutant(
        "forbidden_keys_count",
        "forbidden keys have a part in how values are rounded",
        "hook_z",
        all_of(in_dtypes("float32", "float64"), has_no_softcap),
        change(mix=mix_rescaled),
        clause="MASK-7",
        arms=("a_forbidden_key_changes_nothing",),
        foil=False,
    ),
    Mutant(
        "gated_twice",
        "z is gated twice",
        "hook_z",
        has("gate"),
        change(norm_and_gate=gated_twice),
        foil=False,
    ),
    Mutant(
        "gated_by_one_more",
        "z is multiplied by 1 and the gate",
        "hook_z",
        has("gate"),
        change(norm_and_gate=gated_by_one_more),
        foil=False,
    ),
    Mutant(
        "nothing_subtracted",
        "the second head of a pair is not subtracted",
        "hook_z",
        has("differential"),
        change(subtract=subtract_nothing),
        clause="DIFF-1",
        foil=False,
    ),
    Mutant(
        "neighbours_subtracted",
        "pairs are neighbours, not halves",
        "hook_z",
        has("differential"),
        change(subtract=subtract_neighbours),
        clause="DIFF-1",
        foil=False,
    ),
    Mutant(
        "strength_unlearned",
        "the strength of the subtraction is what it began with",
        "hook_z",
        has("differential"),
        change(subtract=subtract_as_strongly_as_it_began),
        clause="DIFF-1",
        foil=False,
    ),
    Mutant(
        "z_flat",
        "hook_z is shown with heads and their dimensions in one axis",
        "hook_z",
        opts_in_to_nothing,
        show=shows_as("hook_z", lambda z: z.flatten(2), lambda z: z.unflatten(2, (6, -1))),
        clause="MIX-2",
        arms=AXES,
    ),
    Mutant(
        "gate_first",
        "hook_gate is shown with its heads first",
        "hook_gate",
        has("gate"),
        show=shows_as("hook_gate", lambda g: g.transpose(1, 2), lambda g: g.transpose(1, 2)),
        clause="GATE-2",
        arms=AXES,
    ),
)
