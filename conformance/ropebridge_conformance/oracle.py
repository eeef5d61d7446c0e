"""The stage-local oracle: each stage recomputed in float64 from what the subject's own hooks held one stage up.

Errors therefore do not pile up: bounds stay tight, and the first stage that breaks its bound is the place of the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ropebridge_conformance.scenarios import Scenario
from ropebridge_conformance.traces import Trace
from ropebridge_conformance.visibility import bias_of
from ropebridge_conformance.weights import read_weights
from ropebridge_conformance.zoo import Specimen
from ropebridge_reference import STAGES, Past, Stages, Weights
from ropebridge_reference.attention import a_key_for_every_head
from ropebridge_spec import Norm, OptIn, Variant, bounds


@dataclass(frozen=True)
class Expectation:
    """What a stage should have given, and how far off each element may be; bound 0 asks for the very bits."""

    value: Tensor
    bound: Tensor


@dataclass(frozen=True)
class Context:
    """Everything one call's stages are recomputed from, in float64."""

    variant: Variant
    weights: Weights
    values: Mapping[str, Tensor]
    given: Mapping[str, Tensor | None]
    bias: Tensor
    past: Past | None
    opted_in: tuple[OptIn, ...]
    dtype: str
    stages: Stages = STAGES

    @cached_property
    def keys(self) -> Tensor:
        """All rotated keys this call sees, cached ones first."""
        own = self.values["hook_rot_k"]
        return own if self.past is None else self.stages.recall(self.past.key, own)

    @cached_property
    def all_values(self) -> Tensor:
        """All values this call sees, cached ones first."""
        own = self.values["hook_v"]
        return own if self.past is None else self.stages.recall(self.past.value, own)

    @property
    def query(self) -> Tensor:
        """What rotation is given for the query."""
        return self.values["hook_q_normed"].reshape(self.values["hook_q"].shape) if self.variant.norm else self.values["hook_q"]

    @property
    def key(self) -> Tensor:
        """What rotation is given for this call's key."""
        return self.values["hook_k_normed"].reshape(self.values["hook_k"].shape) if self.variant.norm else self.values["hook_k"]

    def input_of(self, role: str) -> Tensor:
        """(batch, pos, heads, d_model): what the heads of a role read."""
        shared = {"attn_in": "hook_attn_in", "split_qkv_input": f"hook_{role}_input"}
        for opt_in, name in shared.items():
            if opt_in in self.opted_in:
                return self.values[name]
        heads = self.variant.heads if role == "q" else self.variant.kv_heads
        return self.values["hook_in"].unsqueeze(2).expand(-1, -1, heads, -1)


def context_of(trace: Trace, specimen: Specimen, scenario: Scenario, stages: Stages = STAGES) -> Context:
    """The context of one recorded call; a mutant's stages make it a foil."""
    given, call = trace.call.given, trace.call
    tables = given["position_embeddings"] or (None, None)
    variant = specimen.variant
    weights = read_weights(specimen.module, variant, torch.float64)
    if "attn_in" in scenario.opted_in:
        weights, variant = a_key_for_every_head(weights, variant)
    x = given["hidden_states"]
    past = trace.past and Past(trace.past.key.double(), trace.past.value.double())
    return Context(
        variant=variant,
        weights=weights,
        values={name: value.double() for name, value in trace.values.items()},
        given={"hook_in": x, "hook_cos": tables[0], "hook_sin": tables[1]},
        bias=bias_of(given["attention_mask"], call.first_query, x.shape[1], specimen.variant, x.device, stages),
        past=past,
        opted_in=scenario.opted_in,
        dtype=str(specimen.dtype).removeprefix("torch."),
        stages=stages,
    )


def expect(hook: str, context: Context) -> Expectation:
    """What a hook point should hold, from the values one stage up."""
    return STAGE_ORACLES[hook](hook, context)


def exactly(value: Tensor) -> Expectation:
    """A stage that only hands on what it is given."""
    return Expectation(value.double(), torch.zeros_like(value, dtype=torch.float64))


def given_exactly(hook: str, c: Context) -> Expectation:
    """IN-1, POS-1."""
    value = c.given[hook]
    assert value is not None
    return exactly(value)


def copied_exactly(hook: str, c: Context) -> Expectation:
    """SPLIT-1: copies of what hook_in left."""
    heads = c.variant.heads if hook in ("hook_attn_in", "hook_q_input") else c.variant.kv_heads
    x = c.values["hook_in"]
    shown: dict[str, Tensor] = {}
    c.stages.split_inputs(x, c.variant, c.opted_in, lambda name, value: shown.setdefault(name, value))
    return exactly(shown[hook].expand(-1, -1, heads, -1))


def projected(hook: str, c: Context) -> Expectation:
    """PROJ-1. An implementation may project hook_in once and add what the split inputs moved: both magnitudes count."""
    role = hook.removeprefix("hook_")
    x, W, b = c.input_of(role), getattr(c.weights, f"W_{role.upper()}"), getattr(c.weights, f"b_{role.upper()}")
    value, product = c.stages.project(x, W, b), c.stages.project(x, W, None)
    magnitude = c.stages.project(x.abs(), W.abs(), None if b is None else b.abs())
    bound = bounds.linear(value, magnitude, terms=c.variant.d_model, dtype=c.dtype, product=0 if b is None else product)
    if c.opted_in:
        twice = magnitude + c.stages.project(c.values["hook_in"].unsqueeze(2).abs().expand_as(x), W.abs(), None)
        bound = bound + 3 * bounds.UNIT[c.dtype] * twice
    return Expectation(value, bound)


def normed(hook: str, c: Context) -> Expectation:
    """NORM-1."""
    assert c.variant.norm is not None
    role, norm = hook[5], c.variant.norm
    x, weight = c.values[f"hook_{role}"], getattr(c.weights, f"{role}_norm")
    value = c.stages.normalise(x, weight, norm)
    terms = c.variant.d_head if norm.over == "head" else value.shape[-1]
    centring = torch.zeros_like(value) if norm.kind == "rms" else mean_error(x.reshape(value.shape), weight, norm)
    return Expectation(value, bounds.norm(value, centring, terms=terms, roundings=2, dtype=c.dtype))


def mean_error(x: Tensor, weight: Tensor, norm: Norm) -> Tensor:
    """How large a layer norm's terms are before the mean cancels them, scaled like its result."""
    size = (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    relative = x.abs().amax(-1, keepdim=True) / size
    factor = (weight if norm.weight == "scale" else 1 + weight).abs()
    return 2 * relative * (1 + relative) * factor.expand_as(x)


def rotated(hook: str, c: Context) -> Expectation:
    """ROT-1; a copy in a layer that does not rotate."""
    x = c.query if hook == "hook_rot_q" else c.key
    if c.variant.rotary is None:
        return exactly(x)
    rotary, cos, sin = c.variant.rotary, c.values["hook_cos"], c.values["hook_sin"]
    value = c.stages.rotate(x, c.stages.turns(cos, sin, rotary), rotary)
    magnitude = c.stages.rotate(x.abs(), c.stages.turns(cos, sin, rotary).abs(), rotary)
    return Expectation(value, bounds.rotate(value, magnitude, precision=rotary.precision, dtype=c.dtype))


def scored(hook: str, c: Context) -> Expectation:
    """SCORE-1. Forbidden entries are -inf to the bit."""
    value = c.stages.scores(c.values["hook_rot_q"], c.keys, c.bias, c.variant)
    return Expectation(value, score_bound(c, value))


def score_bound(c: Context, value: Tensor) -> Tensor:
    """The bound of the scores, 0 where they are forbidden."""
    bare = replace(c.variant, softcap=None, scale=abs(c.variant.scale))
    magnitude = c.stages.scores(c.values["hook_rot_q"].abs(), c.keys.abs(), torch.zeros_like(c.bias), bare)
    finite = value.nan_to_num(neginf=0.0)
    bound: Tensor = bounds.scores(finite, magnitude, terms=c.variant.d_head, softcap=c.variant.softcap, dtype=c.dtype)
    return bound.masked_fill(value == -torch.inf, 0.0)


def patterned(hook: str, c: Context) -> Expectation:
    """PAT-1, from the scores the subject itself gave to softmax."""
    scores = c.values["hook_attn_scores"]
    value = c.stages.pattern(scores, c.weights.sinks)
    return Expectation(value, softmax_bound(c, scores, value))


def softmax_bound(c: Context, scores: Tensor, value: Tensor) -> Tensor:
    """The bound of the pattern, 0 where a key is forbidden."""
    top = scores.amax(-1, keepdim=True)
    top = top if c.weights.sinks is None else top.maximum(c.weights.sinks[None, :, None, None])
    below = (top - scores).nan_to_num(nan=0.0, posinf=0.0)
    bound: Tensor = bounds.softmax(value, below, keys=scores.shape[-1] + 1, dtype=c.dtype)
    return bound.masked_fill(scores == -torch.inf, 0.0)


def mixed(hook: str, c: Context) -> Expectation:
    """MIX-1, from the recorded pattern; over the fused stages where nobody watched it."""
    if "hook_pattern" not in c.values:
        return mixed_unseen(c)
    pattern = c.values["hook_pattern"]
    value = c.stages.mix(pattern, c.all_values)
    magnitude = c.stages.mix(pattern.abs(), c.all_values.abs())
    return Expectation(value, bounds.linear(value, magnitude, terms=pattern.shape[-1], dtype=c.dtype))


def mixed_unseen(c: Context) -> Expectation:
    """z end to end over score, softmax and mix, with the score error carried through the softmax."""
    scores = c.stages.scores(c.values["hook_rot_q"], c.keys, c.bias, c.variant)
    pattern = c.stages.pattern(scores, c.weights.sinks)
    value = c.stages.mix(pattern, c.all_values)
    delta = score_bound(c, scores).amax(-1).transpose(1, 2).unsqueeze(-1)
    magnitude = c.stages.mix(pattern, c.all_values.abs())
    return Expectation(value, bounds.fused(value, magnitude, delta, keys=scores.shape[-1], dtype=c.dtype))


def resulted(hook: str, c: Context) -> Expectation:
    """RES-1."""
    z, W = c.values["hook_z"], c.weights.W_O
    value = c.stages.result(z, W)
    return Expectation(value, bounds.linear(value, c.stages.result(z.abs(), W.abs()), terms=c.variant.d_head_v, dtype=c.dtype))


def put_out(hook: str, c: Context) -> Expectation:
    """OUT-1; where results were made, their sum, whose terms may each have been rounded."""
    z, W, b = c.values["hook_z"], c.weights.W_O, c.weights.b_O
    magnitude = c.stages.output(z.abs(), W.abs(), None if b is None else b.abs())
    terms = c.variant.heads * c.variant.d_head_v
    if "hook_result" in c.values:
        results = c.values["hook_result"]
        value = c.stages.sum_of_results(results, b)
        magnitude = magnitude + results.abs().sum(2)
        bound = bounds.linear(value, magnitude, terms=terms, dtype=c.dtype) + 3 * bounds.UNIT[c.dtype] * magnitude
        return Expectation(value, bound)
    value = c.stages.output(z, W, b)
    product = 0 if b is None else c.stages.output(z, W, None)
    return Expectation(value, bounds.linear(value, magnitude, terms=terms, dtype=c.dtype, product=product))


STAGE_ORACLES: Mapping[str, Callable[[str, Context], Expectation]] = {
    "hook_in": given_exactly,
    "hook_attn_in": copied_exactly,
    "hook_q_input": copied_exactly,
    "hook_k_input": copied_exactly,
    "hook_v_input": copied_exactly,
    "hook_q": projected,
    "hook_k": projected,
    "hook_v": projected,
    "hook_q_normed": normed,
    "hook_k_normed": normed,
    "hook_cos": given_exactly,
    "hook_sin": given_exactly,
    "hook_rot_q": rotated,
    "hook_rot_k": rotated,
    "hook_attn_scores": scored,
    "hook_pattern": patterned,
    "hook_z": mixed,
    "hook_result": resulted,
    "hook_out": put_out,
}
