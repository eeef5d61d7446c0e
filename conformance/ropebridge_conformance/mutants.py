"""Mutants: the reference with one named fault in one stage. They prove the judge, and their values serve as foils.

A *foil* is what a mutant would give on the very input a check uses: where every foil of a stage stays within the bound, the
input could not have told right from wrong, and the verdict is vacuous.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from ropebridge_conformance.scenarios import Scenario
from ropebridge_conformance.subjects.reference import Factory, Show, show
from ropebridge_conformance.weights import read_weights
from ropebridge_conformance.zoo import Specimen
from ropebridge_reference import (
    STAGES,
    Affine,
    Stages,
    Weights,
    causal_bias,
    gate,
    gated,
    latent,
    mix,
    normalise,
    output,
    pattern,
    project,
    rotate,
    scores,
    temper,
    turns,
    with_rotary_part,
)
from ropebridge_spec import Gate, HookFunction, Norm, Rotary, Temperature, Variant

Applies = Callable[[Specimen, Scenario], bool]


def always(specimen: Specimen, scenario: Scenario) -> bool:
    """Every layer."""
    return True


@dataclass(frozen=True)
class Mutant:
    """A named fault.

    fault: what is wrong, in a sentence.
    stage: the hook point at which it shows first. also: others at which it shows by itself, in layers of which also_where is true.
    applies: whether a specimen and a scenario can show it.
    stages: the reference's functions, one of them wrong. show: how values are shown to hooks, perhaps wrongly.
    """

    name: str
    fault: str
    stage: str
    applies: Applies
    stages: Stages = STAGES
    show: Show = show
    also: tuple[str, ...] = ()
    also_where: Applies = always

    def hooks(self, specimen: Specimen, scenario: Scenario) -> tuple[str, ...]:
        """The hook points whose own value is wrong, and can be seen to be."""
        if not self.applies(specimen, scenario):
            return ()
        return (self.stage, *self.also) if self.also_where(specimen, scenario) else (self.stage,)

    def subject(self) -> Factory:
        """The mutant as a subject."""
        return Factory(name=self.name, stages=self.stages, show=self.show)


# ---- when a fault can show ----


def rotates(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers that rotate."""
    return specimen.variant.rotary is not None


def many_heads(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers with more than one query head."""
    return specimen.variant.heads > 1


def many_kv_heads(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers with more than one kv head."""
    return specimen.variant.kv_heads > 1


def grouped(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers whose query heads share several, but fewer, kv heads."""
    return 1 < specimen.variant.kv_heads < specimen.variant.heads and "attn_in" not in scenario.opted_in


def normed(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers with a q/k norm."""
    return specimen.variant.norm is not None


def weighted(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers whose q/k norm has a weight."""
    return specimen.variant.norm is not None and specimen.variant.norm.weight != "none"


def layer_normed(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers with a q/k layer norm."""
    return specimen.variant.norm is not None and specimen.variant.norm.kind == "layer"


def flat_normed(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers that norm all heads at once."""
    return specimen.variant.norm is not None and specimen.variant.norm.over == "flat"


def capped(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers with a softcap."""
    return specimen.variant.softcap is not None


def forbidding(specimen: Specimen, scenario: Scenario) -> bool:
    """Calls in which some query may not see some key."""
    return bool(specimen.variant.causal or specimen.variant.window or scenario.left_padding)


def capped_and_forbidding(specimen: Specimen, scenario: Scenario) -> bool:
    """Such calls of layers with a softcap."""
    return capped(specimen, scenario) and forbidding(specimen, scenario)


def sinking(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers with sinks."""
    return specimen.variant.sinks is not None


def unmasked(specimen: Specimen, scenario: Scenario) -> bool:
    """Calls in which causality is the layer's own."""
    return scenario.mask == "none" and specimen.variant.causal


def bidirectional(specimen: Specimen, scenario: Scenario) -> bool:
    """Calls in which a layer sees later positions of its own."""
    return scenario.mask == "none" and not specimen.variant.causal


def windowed(specimen: Specimen, scenario: Scenario) -> bool:
    """Calls in which a window is the layer's own."""
    return specimen.variant.window is not None and scenario.mask == "none"


def chunked(specimen: Specimen, scenario: Scenario) -> bool:
    """Calls in which chunks are the layer's own."""
    return specimen.variant.chunk is not None and scenario.mask == "none"


def scaling(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers whose scores are scaled."""
    return specimen.variant.scale != 1


def has(*path: str) -> Applies:
    """Layers whose variant has something, at a path of its fields."""

    def applies(specimen: Specimen, scenario: Scenario) -> bool:
        value: Any = specimen.variant
        for name in path:
            value = value and getattr(value, name)
        return bool(value)

    return applies


def multiplied(role: str) -> Applies:
    """Layers with a multiplier on key or value."""
    return lambda specimen, scenario: getattr(specimen.variant, f"{role}_multiplier") != 1


def clipped_at_once(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers that clip their projections, and no norm's result."""
    return specimen.variant.clip is not None and specimen.variant.norm is None


def query_is_direct(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers with latents, but none of the query."""
    return specimen.variant.latent is not None and specimen.variant.latent.q_rank is None


def latent_scaled(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers that scale their latents."""
    return specimen.variant.latent is not None and specimen.variant.latent.kv_scale != 1


def partial(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers that rotate a part of each head."""
    return specimen.variant.rotary is not None and specimen.variant.rotary.width < specimen.variant.d_head


def gated_by_channel(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers whose gate has several heads to confuse."""
    return specimen.variant.gate is not None and specimen.variant.heads > 1


def z_normed_and_gated(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers that norm z and gate it."""
    return specimen.variant.z_norm is not None and specimen.variant.gate is not None


def warm(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers whose query has a temperature that is made of positions."""
    return specimen.variant.temperature is not None and specimen.variant.temperature.given is None


def cached(specimen: Specimen, scenario: Scenario) -> bool:
    """Calls that read a cache of the layer's own."""
    return scenario.steps > 0 and specimen.variant.kv_given is None


def dead(specimen: Specimen, scenario: Scenario) -> bool:
    """Calls with rows that see no key, in a layer without sinks: a sink leaves such a row 0 by itself."""
    return scenario.left_padding > 0 and specimen.variant.sinks is None


def biased(role: str) -> Applies:
    """Layers whose projection in a role has a bias."""

    def applies(specimen: Specimen, scenario: Scenario) -> bool:
        return getattr(read_weights(specimen.module, specimen.variant), f"b_{role}") is not None

    return applies


# ---- wrong stages ----


def project_without_bias(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project(x, W, None)


def project_with_heads_rolled(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project(x, W.roll(1, 0), b)


def norm_with_other_weight(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    return normalise(x, affine, replace(norm, weight="scale" if norm.weight == "one_plus" else "one_plus"))


def norm_without_centring(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    return normalise(x, affine, replace(norm, kind="rms"))


def norm_head_by_head(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    by_head = None if affine.weight is None else rearrange(affine.weight, "(head d_head) -> head d_head", head=x.shape[2])
    return rearrange(normalise(x, Affine(by_head), replace(norm, over="head")), "batch pos head d_head -> batch pos (head d_head)")


def norm_skipped(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    return rearrange(x, "batch pos head d_head -> batch pos (head d_head)") if norm.over == "flat" else x


def values_unnormed(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    return x if norm.q == "v_norm" else normalise(x, affine, norm)


def norm_without_bias(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    return normalise(x, Affine(affine.weight), norm)


def latent_unnormed(x: Tensor, W: Tensor, b: Tensor | None, affine: Affine, norm: Norm, scale: float) -> Tensor:
    return scale * project(x.unsqueeze(2), W[None], None if b is None else b[None]).squeeze(2)


def latent_unscaled(x: Tensor, W: Tensor, b: Tensor | None, affine: Affine, norm: Norm, scale: float) -> Tensor:
    return latent(x, W, b, affine, norm, 1.0)


def keys_with_rotary_part_first(k: Tensor, x: Tensor, weights: Weights) -> Tensor:
    k = with_rotary_part(k, x, weights)
    return k if weights.W_KR is None else k.roll(weights.W_KR.shape[-1], -1)


def multiply_by_nothing(x: Tensor, factor: float) -> Tensor:
    return x


def clip_forgotten(x: Tensor, bound: float | None) -> Tensor:
    return x


def clip_above_only(x: Tensor, bound: float | None) -> Tensor:
    return x if bound is None else x.clamp(max=bound)


def rotate_other_end(x: Tensor, turn: Tensor, rotary: Rotary) -> Tensor:
    return rotate(x, turn, replace(rotary, end="trailing" if rotary.end == "leading" else "leading"))


def temper_forgotten(q: Tensor, positions: Tensor, temperature: Temperature | None) -> Tensor:
    return q


def temper_one_late(q: Tensor, positions: Tensor, temperature: Temperature | None) -> Tensor:
    return temper(q, positions + 1, temperature)


def gate_linear(logits: Tensor, kind: Gate) -> Tensor:
    return logits


def gate_of_other_kind(logits: Tensor, kind: Gate) -> Tensor:
    return gate(logits, replace(kind, activation="softplus" if kind.activation == "sigmoid" else "sigmoid"))


def gate_forgotten(mixed: Tensor, g: Tensor | None, affine: Affine, norm: Norm | None) -> Tensor:
    return gated(mixed, None, affine, norm)


def gate_of_next_head(mixed: Tensor, g: Tensor | None, affine: Affine, norm: Norm | None) -> Tensor:
    return gated(mixed, None if g is None else g.roll(1, 2), affine, norm)


def z_norm_forgotten(mixed: Tensor, g: Tensor | None, affine: Affine, norm: Norm | None) -> Tensor:
    return gated(mixed, g, affine, None)


def z_norm_after_gate(mixed: Tensor, g: Tensor | None, affine: Affine, norm: Norm | None) -> Tensor:
    return gated(gated(mixed, g, affine, None), None, affine, norm)


def turns_backwards(cos: Tensor, sin: Tensor, rotary: Rotary) -> Tensor:
    return turns(cos, -sin, rotary)


def turns_one_late(cos: Tensor, sin: Tensor, rotary: Rotary) -> Tensor:
    return turns(cos.roll(1, 1), sin.roll(1, 1), rotary)


def turns_without_sin(cos: Tensor, sin: Tensor, rotary: Rotary) -> Tensor:
    return turns(cos, torch.zeros_like(sin), rotary)


def rotate_other_pairs(x: Tensor, turn: Tensor, rotary: Rotary) -> Tensor:
    return rotate(x, turn, replace(rotary, pairing="half" if rotary.pairing == "interleaved" else "interleaved"))


def rotate_transposed(x: Tensor, turn: Tensor, rotary: Rotary) -> Tensor:
    return rotate(x, turn.flip(2), rotary)


def tiled(heads: Tensor, group: int) -> Tensor:
    """A kv head for every query head, the wrong way about: 0 1 0 1, not 0 0 1 1."""
    return repeat(heads, "batch key kv_head d -> batch key (group kv_head) d", group=group)


def recall_new_first(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat([new, past], dim=1)


def recall_one_short(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat([past[:, :1], past[:, :-1], new], dim=1)


def scores_of_tiled_keys(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return scores(q, tiled(k, variant.group), bias, replace(variant, kv_heads=variant.heads))


def scores_one_key_late(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return scores(q, k.roll(1, 1), bias, variant)


def scores_unscaled(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return scores(q, k, bias, replace(variant, scale=1.0))


def scores_scaled_twice(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return scores(q, k, bias, replace(variant, scale=variant.scale**2))


def scores_uncapped(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return scores(q, k, bias, replace(variant, softcap=None))


def scores_capped_after_mask(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    cap = variant.softcap or math.inf
    return cap * torch.tanh(scores(q, k, bias, replace(variant, softcap=None)) / cap)


def scores_masked_with_lowest(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    s = scores(q, k, bias, variant)
    return s.masked_fill(s == -math.inf, torch.finfo(s.dtype).min)


def window_one_wide(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query, key, replace(reach, window=reach.window and reach.window + 1))


def window_forgotten(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query, key, replace(reach, window=None))


def future_seen(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query + 1, key, replace(reach, window=reach.window and reach.window + 1))


def causal_all_the_same(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query, key, replace(reach, causal=True))


def chunk_forgotten(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query, key, replace(reach, chunk=None))


def chunk_shifted(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query + 1, key + 1, reach)


def pattern_without_sink(s: Tensor, sinks: Tensor | None) -> Tensor:
    return pattern(s, None)


def pattern_over_queries(s: Tensor, sinks: Tensor | None) -> Tensor:
    return pattern(s.transpose(2, 3), sinks).transpose(2, 3)


def pattern_uniform_where_dead(s: Tensor, sinks: Tensor | None) -> Tensor:
    blind = (s == -math.inf).all(-1, keepdim=True)
    return torch.where(blind, 1.0 / s.shape[-1], pattern(s, sinks)).to(s.dtype)


def mix_of_tiled_values(p: Tensor, v: Tensor) -> Tensor:
    return mix(p, tiled(v, p.shape[1] // v.shape[2]))


def mix_with_heads_rolled(p: Tensor, v: Tensor) -> Tensor:
    return mix(p, v).roll(1, 2)


def output_without_bias(z: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return output(z, W, None)


def output_of_rolled_heads(z: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return output(z, W.roll(1, 0), b)


# ---- wrong ways to show a value ----


def drops_edits(hook: str) -> Show:
    """The hook is shown a copy, and what it leaves is thrown away."""

    def shown(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
        edited = show(name, value, hooks)
        return value if name == hook else edited

    return shown


def fires_twice(hook: str) -> Show:
    """Every hook is called a second time."""
    return lambda name, value, hooks: show(name, value, [*hooks, *hooks] if name == hook else hooks)


def never_fires(hook: str) -> Show:
    """The hook point is passed by."""
    return lambda name, value, hooks: show(name, value, [] if name == hook else hooks)


def shows_heads_first(hook: str) -> Show:
    """The value is shown as batch head pos d_head."""

    def shown(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
        return show(name, value.transpose(1, 2), hooks).transpose(1, 2) if name == hook else show(name, value, hooks)

    return shown


def shows_float32(hook: str) -> Show:
    """The value is shown, and kept, in float32."""

    def shown(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
        return show(name, value.float(), hooks).to(value.dtype) if name == hook else show(name, value, hooks)

    return shown


def half_precision(specimen: Specimen, scenario: Scenario) -> bool:
    """Layers in a dtype other than float32."""
    return specimen.dtype != torch.float32


def change(**wrong: Callable[..., Any]) -> Stages:
    """The reference's stages with one of them replaced."""
    return replace(STAGES, **wrong)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "bias_forgotten",
        "the query projection leaves its bias out",
        "hook_q",
        biased("Q"),
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
        "norm_weight",
        "w in place of 1 + w, or the other way",
        "hook_q_normed",
        weighted,
        change(normalise=norm_with_other_weight),
        also=("hook_k_normed",),
    ),
    Mutant(
        "norm_mean",
        "a layer norm that keeps the mean",
        "hook_q_normed",
        layer_normed,
        change(normalise=norm_without_centring),
        also=("hook_k_normed",),
    ),
    Mutant("norm_axis", "a flat norm taken head by head", "hook_q_normed", flat_normed, change(normalise=norm_head_by_head), also=("hook_k_normed",)),
    Mutant(
        "norm_forgotten",
        "query and key are not normed",
        "hook_q_normed",
        normed,
        change(normalise=norm_skipped),
        also=("hook_k_normed",),
    ),
    Mutant(
        "norm_bias_forgotten",
        "the norm leaves its bias out",
        "hook_q_normed",
        has("norm", "bias"),
        change(normalise=norm_without_bias),
        also=("hook_k_normed",),
    ),
    Mutant("value_norm_forgotten", "the value is not normed", "hook_v_normed", has("value_norm"), change(normalise=values_unnormed)),
    Mutant("latent_unnormed", "latents are not normed", "hook_q_latent", has("latent", "q_rank"), change(latent=latent_unnormed), also=("hook_kv_latent",)),
    Mutant("kv_latent_unnormed", "the one latent there is is not normed", "hook_kv_latent", query_is_direct, change(latent=latent_unnormed)),
    Mutant("latent_unscaled", "latents are not scaled", "hook_q_latent", latent_scaled, change(latent=latent_unscaled), also=("hook_kv_latent",)),
    Mutant("rotary_part_first", "a key begins with its rotary part", "hook_k", has("latent"), change(with_rotary_part=keys_with_rotary_part_first)),
    Mutant("key_multiplier_forgotten", "keys are not multiplied", "hook_k", multiplied("k"), change(multiply=multiply_by_nothing)),
    Mutant("value_multiplier_forgotten", "values are not multiplied", "hook_v", multiplied("v"), change(multiply=multiply_by_nothing)),
    Mutant("clip_forgotten", "nothing is clipped", "hook_q", clipped_at_once, change(clip=clip_forgotten), also=("hook_k", "hook_v")),
    Mutant("clip_above_only", "only what is too large is clipped", "hook_q", clipped_at_once, change(clip=clip_above_only), also=("hook_k", "hook_v")),
    Mutant("other_end", "the other end of each head rotates", "hook_rot_q", partial, change(rotate=rotate_other_end), also=("hook_rot_k",)),
    Mutant("temperature_forgotten", "the query has no temperature", "hook_attn_scores", warm, change(temper=temper_forgotten)),
    Mutant("temperature_late", "the temperature of the position after", "hook_attn_scores", warm, change(temper=temper_one_late)),
    Mutant("causal_all_the_same", "a layer that sees later positions does not", "hook_attn_scores", bidirectional, change(causal_bias=causal_all_the_same)),
    Mutant("chunk_forgotten", "no chunks", "hook_attn_scores", chunked, change(causal_bias=chunk_forgotten)),
    Mutant("chunk_shifted", "chunks begin one position early", "hook_attn_scores", chunked, change(causal_bias=chunk_shifted)),
    Mutant("gate_linear", "the gate has no activation", "hook_gate", has("gate"), change(gate=gate_linear)),
    Mutant("gate_of_other_kind", "softplus in place of sigmoid, or the other way", "hook_gate", has("gate"), change(gate=gate_of_other_kind)),
    Mutant("gate_forgotten", "z is not gated", "hook_z", has("gate"), change(gated=gate_forgotten)),
    Mutant("gate_of_next_head", "z of head h is gated by head h-1's gate", "hook_z", gated_by_channel, change(gated=gate_of_next_head)),
    Mutant("z_norm_forgotten", "z is not normed", "hook_z", has("z_norm"), change(gated=z_norm_forgotten)),
    Mutant("z_norm_after_gate", "z is gated before its norm", "hook_z", z_normed_and_gated, change(gated=z_norm_after_gate)),
    Mutant("sin_sign", "rotation by the opposite angle", "hook_rot_q", rotates, change(turns=turns_backwards), also=("hook_rot_k",)),
    Mutant("one_position_late", "tables of the position before", "hook_rot_q", rotates, change(turns=turns_one_late), also=("hook_rot_k",)),
    Mutant("sin_forgotten", "only the cos term", "hook_rot_q", rotates, change(turns=turns_without_sin), also=("hook_rot_k",)),
    Mutant("other_pairs", "halves paired as neighbours, or the other way", "hook_rot_q", rotates, change(rotate=rotate_other_pairs), also=("hook_rot_k",)),
    Mutant(
        "frequencies_reversed",
        "the fastest frequency on the last pair",
        "hook_rot_q",
        rotates,
        change(rotate=rotate_transposed),
        also=("hook_rot_k",),
    ),
    Mutant("keys_tiled", "query head h reads key head h mod kv heads", "hook_attn_scores", grouped, change(scores=scores_of_tiled_keys)),
    Mutant("keys_one_late", "each query meets the key one place before", "hook_attn_scores", always, change(scores=scores_one_key_late)),
    Mutant("scale_forgotten", "scores are not scaled", "hook_attn_scores", scaling, change(scores=scores_unscaled)),
    Mutant("scale_twice", "scores are scaled twice", "hook_attn_scores", scaling, change(scores=scores_scaled_twice)),
    Mutant("softcap_forgotten", "scores are not capped", "hook_attn_scores", capped, change(scores=scores_uncapped)),
    Mutant("softcap_after_mask", "the mask is capped too", "hook_attn_scores", capped_and_forbidding, change(scores=scores_capped_after_mask)),
    Mutant("mask_not_infinite", "forbidden scores are the lowest number", "hook_attn_scores", forbidding, change(scores=scores_masked_with_lowest)),
    Mutant("window_one_wide", "the window sees one key too many", "hook_attn_scores", windowed, change(causal_bias=window_one_wide)),
    Mutant("window_forgotten", "no window", "hook_attn_scores", windowed, change(causal_bias=window_forgotten)),
    Mutant("future_seen", "each position sees the next", "hook_attn_scores", unmasked, change(causal_bias=future_seen)),
    Mutant("cache_reversed", "cached keys come after the new ones", "hook_attn_scores", cached, change(recall=recall_new_first), also=("hook_z",)),
    Mutant("cache_shifted", "each cached key stands one place late", "hook_attn_scores", cached, change(recall=recall_one_short), also=("hook_z",)),
    Mutant("sink_forgotten", "softmax without the sink", "hook_pattern", sinking, change(pattern=pattern_without_sink)),
    Mutant("softmax_axis", "softmax over queries", "hook_pattern", always, change(pattern=pattern_over_queries)),
    Mutant("dead_rows_uniform", "a row that sees nothing attends to everything", "hook_pattern", dead, change(pattern=pattern_uniform_where_dead)),
    Mutant("values_tiled", "query head h mixes value head h mod kv heads", "hook_z", grouped, change(mix=mix_of_tiled_values)),
    Mutant("mixed_heads_rolled", "z of head h stands at head h + 1", "hook_z", many_heads, change(mix=mix_with_heads_rolled)),
    Mutant("output_bias_forgotten", "the output projection leaves its bias out", "hook_out", biased("O"), change(output=output_without_bias)),
    Mutant("output_heads_rolled", "z of head h goes through head h-1's weights", "hook_out", many_heads, change(output=output_of_rolled_heads)),
    Mutant("edit_of_k_dropped", "hook_rot_k is shown a copy", "hook_rot_k", always, show=drops_edits("hook_rot_k")),
    Mutant("edit_of_pattern_dropped", "hook_pattern is shown a copy", "hook_pattern", always, show=drops_edits("hook_pattern")),
    Mutant("edit_of_z_dropped", "hook_z is shown a copy", "hook_z", always, show=drops_edits("hook_z")),
    Mutant("edit_of_out_dropped", "hook_out is shown a copy", "hook_out", always, show=drops_edits("hook_out")),
    Mutant("fires_twice", "hook_v fires twice", "hook_v", always, show=fires_twice("hook_v")),
    Mutant("never_fires", "hook_z never fires", "hook_z", always, show=never_fires("hook_z")),
    Mutant("heads_first", "hook_q is shown as batch head pos d_head", "hook_q", always, show=shows_heads_first("hook_q")),
    Mutant("promoted", "hook_attn_scores is shown in float32", "hook_attn_scores", half_precision, show=shows_float32("hook_attn_scores")),
)
MUTANT: Mapping[str, Mutant] = {mutant.name: mutant for mutant in MUTANTS}


def foils(hook: str, specimen: Specimen, scenario: Scenario) -> list[Mutant]:
    """The mutants whose wrong value at this hook an input must be able to tell from the right one.

    A fault of the whole output stands aside where results are made head by head: it is then another stage's.
    """
    by_results = hook == "hook_out" and "attn_result" in scenario.opted_in
    return [m for m in MUTANTS if m.stages is not STAGES and hook in m.hooks(specimen, scenario) and not by_results]
