"""Scores (SCORE-1 to SCORE-6)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from ropebridge_conformance.mutants.applies import (
    all_of,
    always,
    double,
    half,
    has,
    has_softcap,
    has_temperature_of_positions,
    many_heads,
    many_kv_heads,
    precise,
    reads_own_cache,
    scales_scores,
    shares_kv_heads,
)
from ropebridge_conformance.mutants.mutant import (
    AXES,
    LEANING,
    Mutant,
    change,
    given_other,
    shows_as,
    turns_to,
)
from ropebridge_conformance.stages.carried import WithError
from ropebridge_conformance.stages.context import Context, Expectation, expects
from ropebridge_conformance.subjects.parts import Hooks
from ropebridge_conformance.subjects.reference import ReferenceLayer, Run, show
from ropebridge_reference import Weights, bias_keys, scale_by_temperature, score_keys
from ropebridge_spec import HookFunction, Temperature, Variant, bounds


@expects("hook_attn_scores")
def expected_scores(hook: str, c: Context) -> Expectation:
    """Return what SCORE-1, SCORE-4 makes of the values before. Forbidden entries are -inf to the
    bit."""
    value = c.stages.score_keys(c.query.value, c.keys.value, c.score_bias, c.variant)
    return Expectation(value, lambda: score_bound(c, value, c.dtype))


def score_bound(c: Context, value: Tensor, dtype: str) -> Tensor:
    """Return the bound of scores made in a dtype, 0 where they are forbidden; what goes into them
    has the layer's own."""
    bare = replace(c.variant, softcap=None, scale=abs(c.variant.scale))
    none, q, k = torch.zeros_like(c.bias), c.query, c.keys
    magnitude = c.stages.score_keys(q.value.abs() + q.error, k.value.abs() + k.error, none, bare)
    finite = value.nan_to_num(neginf=0.0)
    bound: Tensor = bounds.scores(
        finite, magnitude, terms=c.variant.d_head, softcap=c.variant.softcap, dtype=dtype
    )
    if not (q.is_exact and k.is_exact):
        bound = bound + magnitude - c.stages.score_keys(q.value.abs(), k.value.abs(), none, bare)
    if c.variant.temperature is not None:
        bound = bound + bounds.rounded(magnitude, times=2, dtype=c.dtype)
    if c.variant.key_bias is not None:
        own = carry_key_bias(c.all_values, c.weights, c.variant, c.dtype)
        bound = bound + own.error + bounds.rounded(own.value, times=2, dtype=c.dtype)
    return bound.masked_fill(value == -torch.inf, 0.0)


def scores_before_rounding(c: Context) -> tuple[Tensor, Tensor]:
    """Return the scores of query and key where no hook touched what was shown of them, elsewhere
    what hooks left (PAT-1); and how far a row of them may be off in float32, (batch, head, query,
    1). Gradients flow to the scores that were shown."""
    shown = c.values["hook_attn_scores"]
    with torch.no_grad():
        untouched = (shown == c.before_edit.get("hook_attn_scores", shown)) & shown.isfinite()
        unrounded = scores_that_round_to(shown, untouched, c)
        lost = torch.where(untouched, unrounded - shown, 0.0)
        off = score_bound(c, unrounded, "float32").amax(-1, keepdim=True)
    return shown + lost, off


def scores_that_round_to(shown: Tensor, untouched: Tensor, c: Context) -> Tensor:
    """Return the scores of query and key, of the three ways of scaling them the one of which most
    untouched scores round to what was shown: the product is scaled, or first the query, or first
    the key, each rounded to the layer's dtype (SCORE-1)."""
    q, k, variant, bias = c.query, c.keys, c.variant, c.score_bias
    dtype: torch.dtype = getattr(torch, c.dtype)

    def missed(scores: Tensor) -> int:
        return int(((scores.to(dtype) != shown) & untouched).sum())

    unfolded = c.stages.score_keys(q.value, k.value, bias, variant)
    if not (q.is_exact and k.is_exact) or missed(unfolded) == 0:
        return unfolded
    bare = replace(variant, scale=1.0)
    scaled_q = (q.value.to(dtype) * variant.scale).to(shown.dtype)
    scaled_k = (k.value.to(dtype) * variant.scale).to(shown.dtype)
    return min(
        unfolded,
        c.stages.score_keys(scaled_q, k.value, bias, bare),
        c.stages.score_keys(q.value, scaled_k, bias, bare),
        key=missed,
    )


def carry_key_bias(v: WithError, weights: Weights, variant: Variant, dtype: str) -> WithError:
    """Carry value and error through SCORE-5: (batch, head, 1, key); softplus has slope at most 1,
    and each step may be rounded."""
    assert weights.W_dt is not None
    assert weights.A is not None
    value, u = bias_keys(v.value, weights, variant), bounds.UNIT[dtype]
    every = replace(weights, A=torch.ones_like(weights.A))
    soft = bias_keys(v.value, every, variant).log()
    magnitude = torch.einsum("bkhd,ghd->bgk", v.value.abs() + v.error, weights.W_dt.abs()) + (
        0 if weights.b_dt is None else weights.b_dt.abs()[:, None]
    )
    carried = torch.einsum("bkhd,ghd->bgk", v.error, weights.W_dt.abs())
    terms = weights.W_dt.shape[1] * weights.W_dt.shape[2]
    off = carried + bounds.linear(magnitude, magnitude, terms=terms, dtype=dtype, product=magnitude)
    inside = weights.A.abs().repeat_interleave(variant.group)[:, None] * (
        off.repeat_interleave(variant.group, 1) + 2 * u * soft[:, :, 0]
    )
    return WithError(value, value * (inside.unsqueeze(2).expm1() * (1 + u) + 2 * u))


# Faults that prove the judge at this stage.


def keys_of_an_earlier_layer_shifted(
    layer: ReferenceLayer, inputs: Mapping[str, Any]
) -> Mapping[str, Any]:
    name = layer.variant.shared_kv_argument
    if name is None:
        return inputs
    return {**inputs, name: {kind: (k.roll(1, 2), v) for kind, (k, v) in inputs[name].items()}}


def temper_forgotten(q: Tensor, positions: Tensor, temperature: Temperature | None) -> Tensor:
    return q


def temper_one_late(q: Tensor, positions: Tensor, temperature: Temperature | None) -> Tensor:
    return scale_by_temperature(q, positions + 1, temperature)


def tiled(heads: Tensor, group: int) -> Tensor:
    """Return a kv head for every query head, the wrong way about: 0 1 0 1, not 0 0 1 1."""
    return repeat(heads, "batch key kv_head d -> batch key (group kv_head) d", group=group)


def scores_of_tiled_keys(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return score_keys(q, tiled(k, variant.group), bias, replace(variant, kv_heads=variant.heads))


def scores_one_key_late(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return score_keys(q, k.roll(1, 1), bias, variant)


def scores_unscaled(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return score_keys(q, k, bias, replace(variant, scale=1.0))


def scores_scaled_twice(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return score_keys(q, k, bias, replace(variant, scale=variant.scale**2))


def scores_uncapped(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return score_keys(q, k, bias, replace(variant, softcap=None))


def scores_by_width_of_the_model(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return score_keys(q, k, bias, replace(variant, scale=variant.d_model**-0.5))


def scores_scaled_after_cap(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    capped = score_keys(q, k, torch.zeros_like(bias), replace(variant, scale=1.0))
    return (capped * variant.scale + bias).to(capped.dtype)


def scores_cut_off(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    cap = variant.softcap or math.inf
    bare = score_keys(q, k, torch.zeros_like(bias), replace(variant, softcap=None))
    return (bare.clamp(-cap, cap) + bias).to(bare.dtype)


def scores_of_twice_the_cap(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return score_keys(q, k, bias, replace(variant, softcap=variant.softcap and 2 * variant.softcap))


def scores_of_the_first_key_head(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return score_keys(q, k[:, :, :1].expand_as(k), bias, variant)


def scores_of_key_heads_reversed(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return score_keys(q, k.flip(2), bias, variant)


def scores_of_next_query_head(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return score_keys(q.roll(1, 2), k, bias, variant)


def scores_negated(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return score_keys(-q, k, bias, variant)


def scores_in_bfloat16(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    scores = score_keys(q.bfloat16(), k.bfloat16(), bias, variant)
    return scores.bfloat16().to(scores.dtype)


def scores_in_float32(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return score_keys(q.float(), k.float(), bias, variant).to(q.dtype)


def scores_without_the_last_dimension(
    q: Tensor, k: Tensor, bias: Tensor, variant: Variant
) -> Tensor:
    return score_keys(q[..., :-1], k[..., :-1], bias, variant)


def no_key_bias(v: Tensor, weights: Weights, variant: Variant) -> Tensor:
    return torch.zeros_like(bias_keys(v, weights, variant))


def key_bias_of_next_key(v: Tensor, weights: Weights, variant: Variant) -> Tensor:
    return bias_keys(v, weights, variant).roll(1, -1)


def a_little_large(s: Tensor) -> Tensor:
    """Make a fault: larger by a third of the distance between two numbers, which moves those whose
    digits are large: inside every bound."""
    return (s.double() * (1 + torch.finfo(s.dtype).eps / 3)).to(s.dtype)


def unguarded(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
    """Make a fault: whatever hooks leave in the scores is taken."""
    if name != "hook_attn_scores":
        return show(name, value, hooks)
    shown = value.clone()
    for fn in hooks:
        replacement = fn(shown, hook=None)
        shown = shown if replacement is None else replacement
    return shown


def goes_on_with_rounded_scores(layer: ReferenceLayer) -> Run:
    """Make a fault: where somebody watches, softmax is given the scores as they were rounded to be
    shown."""

    def run(
        inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        dtype, stages = inputs["hidden_states"].dtype, layer.factory.stages

        def pattern(scores: Tensor, sinks: Tensor | None) -> Tensor:
            rounded: Tensor = stages.make_pattern(scores.to(dtype).to(scores.dtype), sinks)
            return rounded

        coarse = replace(layer.factory, stages=replace(stages, make_pattern=pattern))
        watched = replace(layer, factory=coarse) if hooks else layer
        return watched.call(inputs, hooks, backward)

    return run


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "given_keys_shifted",
        "an earlier layer's keys are read one position late",
        "hook_attn_scores",
        has("shared_kv_argument"),
        around=given_other(keys_of_an_earlier_layer_shifted),
        clause="KV-1",
    ),
    Mutant(
        "scores_rounded_to_be_shown",
        "where somebody watches, softmax is given the scores as they are shown",
        "hook_out",
        half,
        around=goes_on_with_rounded_scores,
        clause="LOOK-1",
        arms=("watching_costs_no_accuracy",),
    ),
    Mutant(
        "temperature_forgotten",
        "the query has no temperature",
        "hook_attn_scores",
        has_temperature_of_positions,
        change(scale_by_temperature=temper_forgotten),
        clause="SCORE-4",
    ),
    Mutant(
        "temperature_late",
        "the temperature of the position after",
        "hook_attn_scores",
        has_temperature_of_positions,
        change(scale_by_temperature=temper_one_late),
        clause="SCORE-4",
    ),
    Mutant(
        "keys_tiled",
        "query head h reads key head h mod kv heads",
        "hook_attn_scores",
        shares_kv_heads,
        change(score_keys=scores_of_tiled_keys),
    ),
    Mutant(
        "keys_one_late",
        "each query meets the key one place before",
        "hook_attn_scores",
        always,
        change(score_keys=scores_one_key_late),
    ),
    Mutant(
        "scale_forgotten",
        "scores are not scaled",
        "hook_attn_scores",
        scales_scores,
        change(score_keys=scores_unscaled),
    ),
    Mutant(
        "scale_twice",
        "scores are scaled twice",
        "hook_attn_scores",
        scales_scores,
        change(score_keys=scores_scaled_twice),
    ),
    Mutant(
        "softcap_forgotten",
        "scores are not capped",
        "hook_attn_scores",
        has_softcap,
        change(score_keys=scores_uncapped),
    ),
    Mutant(
        "scale_of_model",
        "scores are scaled by the width of the model",
        "hook_attn_scores",
        scales_scores,
        change(score_keys=scores_by_width_of_the_model),
        foil=False,
    ),
    Mutant(
        "scaled_after_cap",
        "scores are capped before they are scaled",
        "hook_attn_scores",
        all_of(has_softcap, scales_scores),
        change(score_keys=scores_scaled_after_cap),
        foil=False,
    ),
    Mutant(
        "cut_off",
        "scores are cut off at the cap, not bent",
        "hook_attn_scores",
        has_softcap,
        change(score_keys=scores_cut_off),
        foil=False,
    ),
    Mutant(
        "cap_doubled",
        "the cap is twice as high",
        "hook_attn_scores",
        has_softcap,
        change(score_keys=scores_of_twice_the_cap),
        foil=False,
    ),
    Mutant(
        "first_key_head",
        "every query head reads the first key head",
        "hook_attn_scores",
        many_kv_heads,
        change(score_keys=scores_of_the_first_key_head),
        foil=False,
    ),
    Mutant(
        "key_heads_reversed",
        "key heads come last first",
        "hook_attn_scores",
        many_kv_heads,
        change(score_keys=scores_of_key_heads_reversed),
        foil=False,
    ),
    Mutant(
        "query_heads_rolled",
        "scores of head h are those of head h-1",
        "hook_attn_scores",
        many_heads,
        change(score_keys=scores_of_next_query_head),
        foil=False,
    ),
    Mutant(
        "scores_negated",
        "the least similar key counts most",
        "hook_attn_scores",
        stages=change(score_keys=scores_negated),
        foil=False,
    ),
    Mutant(
        "scores_in_bfloat16",
        "scores are made in bfloat16",
        "hook_attn_scores",
        precise,
        change(score_keys=scores_in_bfloat16),
        foil=False,
    ),
    Mutant(
        "scores_in_float32",
        "a float64 layer makes its scores in float32",
        "hook_attn_scores",
        double,
        change(score_keys=scores_in_float32),
        foil=False,
    ),
    Mutant(
        "dimension_lost",
        "the last dimension of a head is left out",
        "hook_attn_scores",
        stages=change(score_keys=scores_without_the_last_dimension),
        foil=False,
    ),
    Mutant(
        "key_bias_forgotten",
        "keys are not biased by their values",
        "hook_attn_scores",
        has("key_bias"),
        change(bias_keys=no_key_bias),
        clause="SCORE-5",
    ),
    Mutant(
        "key_bias_of_next_key",
        "each key is given the bias of the one before",
        "hook_attn_scores",
        has("key_bias"),
        change(bias_keys=key_bias_of_next_key),
        clause="SCORE-5",
    ),
    Mutant(
        "a_little_large",
        "scores are larger by a third of the distance between two numbers",
        "hook_attn_scores",
        half,
        show=turns_to("hook_attn_scores", a_little_large),
        arms=LEANING,
    ),
    Mutant(
        "queries_last",
        "hook_attn_scores is shown with key before query",
        "hook_attn_scores",
        reads_own_cache,
        show=shows_as("hook_attn_scores", lambda s: s.transpose(2, 3), lambda s: s.transpose(2, 3)),
        clause="SCORE-2",
        arms=AXES,
    ),
    Mutant(
        "spoiled_scores_taken",
        "NaN and infinity in the scores are taken",
        "hook_attn_scores",
        show=unguarded,
        clause="SCORE-3",
        arms=("scores_that_are_no_numbers_are_refused",),
    ),
    Mutant(
        "forbidden_keys_let_in",
        "numbers at forbidden keys are taken",
        "hook_attn_scores",
        show=unguarded,
        clause="SCORE-6",
        arms=("a_forbidden_key_stays_forbidden",),
    ),
)
