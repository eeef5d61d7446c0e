"""Faults before the norm: which input a head reads, latents, projections, multipliers, clipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from ropebridge_conformance.mutants.applies import (
    all_of,
    clips_projections,
    has,
    has_all_positions,
    has_bias,
    has_hook,
    has_multiplier,
    makes_kv,
    many_heads,
    many_kv_heads,
    opts_in_to,
    precise,
    query_is_direct,
    scales_latents,
    shares_kv_heads,
    shares_kv_heads_in_any_call,
)
from ropebridge_conformance.mutants.mutant import (
    AXES,
    EDITS,
    Mutant,
    change,
    given_other,
    goes_on_with,
    shows_as,
    turns_to,
)
from ropebridge_conformance.subjects.reference import ReferenceLayer, show
from ropebridge_conformance.zoo.scenarios import BATCH
from ropebridge_reference import (
    STAGES,
    Affine,
    Weights,
    make_latent,
    project_heads,
    with_rotary_part,
)
from ropebridge_spec import HookFunction, Norm, Variant


def project_without_bias(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project_heads(x, W, None)


def project_with_heads_rolled(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project_heads(x, W.roll(1, 0), b)


def latent_unnormed(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    affine: Affine,
    norm: Norm,
    scale: float,
    beside: bool = False,
) -> Tensor:
    down = project_heads(x.unsqueeze(2), W[None], None if b is None else b[None]).squeeze(2)
    return torch.cat([scale * down, down], -1) if beside else scale * down


def latent_unscaled(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    affine: Affine,
    norm: Norm,
    scale: float,
    beside: bool = False,
) -> Tensor:
    return make_latent(x, W, b, affine, norm, 1.0, beside)


def latent_normed_twice(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    affine: Affine,
    norm: Norm,
    scale: float,
    beside: bool = False,
) -> Tensor:
    normed = make_latent(x, W, b, affine, norm, scale)
    return torch.cat([normed, normed], -1) if beside else normed


def rotary_part_unnormed(k: Tensor, x: Tensor, weights: Weights, norm: Norm | None) -> Tensor:
    return with_rotary_part(k, x, weights)


def keys_with_rotary_part_first(
    k: Tensor, x: Tensor, weights: Weights, norm: Norm | None
) -> Tensor:
    k = with_rotary_part(k, x, weights, norm)
    return k if weights.W_KR is None else k.roll(weights.W_KR.shape[-1], -1)


def multiply_by_nothing(x: Tensor, factor: float) -> Tensor:
    return x


def clip_forgotten(x: Tensor, bound: float | None) -> Tensor:
    return x


def clip_above_only(x: Tensor, bound: float | None) -> Tensor:
    return x if bound is None else x.clamp(max=bound)


def project_positions_late(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project_heads(x.roll(1, 1), W, b)


def project_with_bias_twice(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project_heads(x, W, None if b is None else 2 * b)


def project_rounding_each_half(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """Return two sums, each rounded to bfloat16."""
    half = x.shape[-1] // 2
    parts = (
        project_heads(x[..., s], W[:, s], None).bfloat16().to(x.dtype)
        for s in (slice(None, half), slice(half, None))
    )
    return sum(parts, x.new_zeros(()) if b is None else b)


def value_by_the_keys_weights(weights: Weights, variant: Variant) -> Weights:
    return replace(weights, W_V=weights.W_K, b_V=weights.b_K)


def key_by_the_values_weights(weights: Weights, variant: Variant) -> Weights:
    return replace(weights, W_K=weights.W_V, b_K=weights.b_V)


def dimensions_reversed(weights: Weights, variant: Variant) -> Weights:
    return replace(weights, W_Q=weights.W_Q.flip(-1))


def rows_one_late(weights: Weights, variant: Variant) -> Weights:
    """Make a fault: each head begins with the last row of the head before."""
    W = rearrange(weights.W_Q, "head d_model d_head -> d_model (head d_head)").roll(1, -1)
    return replace(
        weights,
        W_Q=rearrange(W, "d_model (head d_head) -> head d_model d_head", head=variant.heads),
    )


def keys_bias_for_values(weights: Weights, variant: Variant) -> Weights:
    return replace(weights, b_V=weights.b_K)


def first_heads_copy(x: Tensor) -> Tensor:
    """Return the first head's copy for every head."""
    return x[:, :, :1].expand_as(x)


def first_of_each_group(x: Tensor) -> Tensor:
    """Return for three query heads what the first of them reads."""
    return repeat(x[:, :, ::3], "batch pos group d_model -> batch pos (group head) d_model", head=3)


def copies_shown_and_not_read(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
    """Make a fault: split inputs are shown, and heads read hook_in."""
    left = show(name, value, hooks)
    return value if name in ("hook_q_input", "hook_k_input", "hook_v_input") else left


def other_sequence_shifted(layer: ReferenceLayer, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    source = layer.variant.source
    assert source is not None
    return {**inputs, source.argument: inputs[source.argument].roll(1, 1)}


def keys_of_an_earlier_layer_shifted(
    layer: ReferenceLayer, inputs: Mapping[str, Any]
) -> Mapping[str, Any]:
    name = layer.variant.shared_kv_argument
    if name is None:
        return inputs
    return {**inputs, name: {kind: (k.roll(1, 2), v) for kind, (k, v) in inputs[name].items()}}


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "bias_forgotten",
        "the query projection leaves its bias out",
        "hook_q",
        has_bias("Q"),
        change(project=project_without_bias),
        also=("hook_k", "hook_v"),
    ),
    Mutant(
        "heads_rolled",
        "head h projects with head h-1's weights",
        "hook_q",
        many_heads,
        change(project=project_with_heads_rolled),
        also=("hook_k", "hook_v"),
        also_where=many_kv_heads,
    ),
    Mutant(
        "latent_unnormed",
        "latents are not normed",
        "hook_q_latent",
        has("latent", "q_rank"),
        change(latent=latent_unnormed),
        also=("hook_kv_latent",),
    ),
    Mutant(
        "kv_latent_unnormed",
        "the one latent there is is not normed",
        "hook_kv_latent",
        query_is_direct,
        change(latent=latent_unnormed),
    ),
    Mutant(
        "latent_unscaled",
        "latents are not scaled",
        "hook_q_latent",
        scales_latents,
        change(latent=latent_unscaled),
        also=("hook_kv_latent",),
    ),
    Mutant(
        "rotary_part_first",
        "a key begins with its rotary part",
        "hook_k",
        has("latent"),
        change(with_rotary_part=keys_with_rotary_part_first),
    ),
    Mutant(
        "raw_latent_forgotten",
        "the normed latent stands beside itself",
        "hook_q_latent",
        has("latent", "q_beside"),
        change(latent=latent_normed_twice),
    ),
    Mutant(
        "rotary_part_unnormed",
        "a key's rotary part is not normed",
        "hook_k",
        has("latent", "rotary_norm"),
        change(with_rotary_part=rotary_part_unnormed),
    ),
    Mutant(
        "key_multiplier_forgotten",
        "keys are not multiplied",
        "hook_k",
        has_multiplier("k"),
        change(multiply=multiply_by_nothing),
    ),
    Mutant(
        "value_multiplier_forgotten",
        "values are not multiplied",
        "hook_v",
        has_multiplier("v"),
        change(multiply=multiply_by_nothing),
    ),
    Mutant(
        "clip_forgotten",
        "nothing is clipped",
        "hook_q",
        clips_projections,
        change(clip=clip_forgotten),
        also=("hook_k", "hook_v"),
        clause="CLIP-1",
    ),
    Mutant(
        "clip_above_only",
        "only what is too large is clipped",
        "hook_q",
        clips_projections,
        change(clip=clip_above_only),
        also=("hook_k", "hook_v"),
        clause="CLIP-1",
    ),
    Mutant(
        "projected_late",
        "each position is projected in place of the next",
        "hook_q",
        stages=change(project=project_positions_late),
        applies=has_all_positions,
        foil=False,
    ),
    Mutant(
        "bias_twice",
        "the projection's bias is added twice",
        "hook_q",
        has_bias("Q"),
        change(project=project_with_bias_twice),
        foil=False,
    ),
    Mutant(
        "projected_in_half",
        "projections are summed in bfloat16",
        "hook_q",
        precise,
        change(project=project_rounding_each_half),
        foil=False,
    ),
    Mutant(
        "value_is_key",
        "values are projected by the key's weights",
        "hook_v",
        makes_kv,
        weights=value_by_the_keys_weights,
    ),
    Mutant(
        "key_is_value",
        "keys are projected by the value's weights",
        "hook_k",
        makes_kv,
        weights=key_by_the_values_weights,
    ),
    Mutant(
        "dimensions_reversed",
        "the dimensions of a query head come last first",
        "hook_q",
        weights=dimensions_reversed,
    ),
    Mutant(
        "rows_one_late",
        "each query head begins one row early in its projection",
        "hook_q",
        many_heads,
        weights=rows_one_late,
    ),
    Mutant(
        "key_bias_on_values",
        "values are given the key's bias",
        "hook_v",
        all_of(makes_kv, has_bias("K")),
        weights=keys_bias_for_values,
    ),
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
        "first_heads_input",
        "every query head reads the first one's input",
        "hook_q",
        opts_in_to("split_qkv_input"),
        show=goes_on_with("hook_q_input", first_heads_copy),
        clause="SPLIT-1",
        arms=EDITS,
        foil=False,
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
        "group_reads_first",
        "the heads of a group read what its first head reads",
        "hook_q",
        all_of(opts_in_to("attn_in"), shares_kv_heads_in_any_call),
        show=goes_on_with("hook_attn_in", first_of_each_group),
        clause="SPLIT-3",
        arms=("an_edit_of_one_heads_input_moves_that_head_alone",),
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
        "gate_logits_of_another_head",
        "a head's gate is made of the logits of the head before",
        "hook_q_gate",
        has_hook("hook_q_gate"),
        show=turns_to("hook_q_gate", lambda g: g.roll(1, 2)),
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
        "latent_by_head",
        "hook_kv_latent is shown with an axis of heads",
        "hook_kv_latent",
        has("latent"),
        show=shows_as("hook_kv_latent", lambda c: c.unsqueeze(2), lambda c: c.squeeze(2)),
        clause="LAT-2",
        arms=AXES,
    ),
    Mutant(
        "query_heads_in_one",
        "hook_q is shown with heads and their dimensions in one axis",
        "hook_q",
        show=shows_as("hook_q", lambda q: q.flatten(2), lambda q: q.unflatten(2, (6, -1))),
        clause="PROJ-2",
        arms=AXES,
    ),
    Mutant(
        "given_keys_shifted",
        "an earlier layer's keys are read one position late",
        "hook_attn_scores",
        has("shared_kv_argument"),
        around=given_other(keys_of_an_earlier_layer_shifted),
        clause="KV-1",
    ),
    Mutant(
        "other_sequence_shifted",
        "the states of another sequence are read one position late",
        "hook_kv_in",
        has("source"),
        around=given_other(other_sequence_shifted),
        clause="KV-2",
    ),
    Mutant(
        "clipped_at_half",
        "everything is clipped to half of the bound",
        "hook_q",
        clips_projections,
        change(clip=lambda x, bound: STAGES.clip(x, bound and bound / 2)),
        also=("hook_k", "hook_v"),
        clause="CLIP-1",
        foil=False,
    ),
)
