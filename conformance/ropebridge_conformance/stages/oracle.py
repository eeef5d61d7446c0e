"""Stage-local oracle: each stage recomputed in float64 from what the subject's own hooks held one
stage up.

Errors therefore do not pile up: bounds stay tight, and the first stage that breaks its bound is the
place of the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.stages import carried
from ropebridge_conformance.stages.carried import (
    WithError,
    carry_clip,
    carry_factor,
    exact,
    heads_of,
    join_parts,
)
from ropebridge_conformance.stages.reads import ReadValues, remembered
from ropebridge_conformance.subjects.traces import Trace
from ropebridge_conformance.zoo.scenarios import Scenario
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_conformance.zoo.visibility import selected_bias
from ropebridge_conformance.zoo.weights import read_weights
from ropebridge_reference import (
    STAGES,
    Past,
    Stages,
    Weights,
    a_key_for_every_head,
    copies,
    join_source,
    of_the_largest,
    project_heads,
    rows_for,
    side_by_side,
)
from ropebridge_spec import HOOK_BY_NAME, OptIn, Role, Variant, attention_inputs, bounds

MASKING = ("causal_bias", "padding_bias", "bias_of_mask", "selection_bias")
"""The stages that say what each query may see."""
PAST = "past"
"""What stands for the keys and values of earlier calls among the names of values."""
Adapter = tuple[Tensor, Tensor]
"""What an adapter projects down by, and up by."""


class Expectation:
    """Hold what a stage should have given, and how far off each element may be; bound 0 asks for
    the very bits.

    The bound may be given as a function, which is called when the bound is first asked for: much
    is asked of values alone.
    """

    def __init__(self, value: Tensor, bound: Tensor | Callable[[], Tensor]) -> None:
        self.value, self._bound = value, bound

    @property
    def bound(self) -> Tensor:
        """Return how far off each element may be, in the shape of the value."""
        if not isinstance(self._bound, Tensor):
            self._bound = self._bound()
        return self._bound


@dataclass(frozen=True)
class Context:
    """Hold everything that one call's stages are recomputed from, in float64.

    before_edit: what hook points held that were edited in this call. in_parts: hooks were given
        parts, so that z may come from a kernel that makes no pattern.
    """

    variant: Variant
    weights: Weights
    values: ReadValues
    given: Mapping[str, Tensor | None]
    bias: Tensor
    past: Past | None
    positions: Tensor
    opted_in: tuple[OptIn, ...]
    dtype: str
    added_value: Tensor | None = None
    before_edit: Mapping[str, Tensor] = field(default_factory=dict)
    in_parts: bool = False
    stages: Stages = STAGES
    expected: dict[str, Expectation] = field(default_factory=dict, compare=False)
    reads: dict[str, set[str]] = field(default_factory=dict, compare=False)
    memory: dict[str, Any] = field(default_factory=dict, compare=False)
    right: dict[str, bool] = field(default_factory=dict, compare=False)

    def but(self, **changes: Any) -> Context:
        """Return a context with other fields, of which nothing has been worked out yet."""
        if "values" in changes:
            changes["values"] = ReadValues(changes["values"])
        return replace(self, **changes, expected={}, reads={}, memory={}, right={})

    @remembered
    def query(self) -> Tensor:
        """Return what scores are made of, times the query's temperature."""
        return self.stages.scale_by_temperature(
            self.heads(attention_inputs(self.variant)[0]), self.positions, self.variant.temperature
        )

    @remembered
    def keys(self) -> Tensor:
        """Return all keys this call sees, cached ones first."""
        if self.variant.shared_kv_argument and self.past is not None:
            return self.past.key
        own = self.heads(attention_inputs(self.variant)[1])
        return own if self.past is None else self.stages.recall(self.past.key, own)

    @remembered
    def all_values(self) -> Tensor:
        """Return all values this call sees, cached ones first."""
        if self.variant.shared_kv_argument and self.past is not None:
            return self.past.value
        own = self.heads(attention_inputs(self.variant)[2])
        return own if self.past is None else self.stages.recall(self.past.value, own)

    @remembered
    def score_bias(self) -> Tensor:
        """Return what is added to the scores: what the mask says, and where keys are biased by
        their values that too (SCORE-5)."""
        kind = self.variant.key_bias
        return (
            self.bias
            if kind is None
            else of_the_largest(
                self.stages.key_bias(self.all_values, self.weights, self.variant),
                self.bias,
                kind.keep,
            )
        )

    @remembered
    def paired_values(self) -> Tensor:
        """Return what heads mix: all values, side by side where heads come in pairs (DIFF-1)."""
        return (
            self.all_values if self.variant.differential is None else side_by_side(self.all_values)
        )

    def heads(self, hook: str) -> Tensor:
        """Return what a hook point held, head by head: a flat norm shows all heads as one axis."""
        return self.values[hook].reshape(self.values[f"hook_{role_of(hook)}"].shape)

    def rotation_input(self, role: str) -> Tensor:
        """Return what rotation is given."""
        late = role == "v" or self.variant.norm is None or self.variant.norm.after_rotation
        return self.heads(f"hook_{role}" if late else f"hook_{role}_normed")

    def clips(self, hook: str) -> float | None:
        """Return the bound that a hook point's value is clipped to: query and key after a norm that
        comes before rotation (CLIP-1)."""
        early = self.variant.norm is not None and not self.variant.norm.after_rotation
        spec = HOOK_BY_NAME[hook]
        last = "norm" if early and spec.role in ("q", "k") else "project"
        return self.variant.clip if spec.stage == last else None

    def input_of(self, role: str) -> Tensor:
        """Return (batch, pos, heads, d_model or rank): what the heads of a role read."""
        shared = {"attn_in": "hook_attn_in", "split_qkv_input": f"hook_{role}_input"}
        for opt_in, name in shared.items():
            if opt_in in self.opted_in:
                return self.values[name]
        source = "hook_q_latent" if role == "q" else "hook_kv_latent"
        x = self.values[source if source in self.values else "hook_in"]
        if role != "q" and self.variant.source is not None:
            x = join_source(x, self.values["hook_kv_in"], self.variant.source)
        return heads_of(x, self.variant.heads if role == "q" else self.variant.kv_heads).value


def role_of(hook: str) -> Role:
    """Return whether a hook point holds something of query, key or value."""
    role = HOOK_BY_NAME[hook].role
    assert role is not None, f"{hook} is of none of the three"
    return role


def contexts_of(traces: Sequence[Trace], specimen: Specimen, scenario: Scenario) -> list[Context]:
    """Return the context of each recorded call; the weights are read once for all of them."""
    weights = read_weights(specimen.module, specimen.variant, torch.float64)
    return [context_of(trace, specimen, scenario, weights) for trace in traces]


def contexts_after(edited: Sequence[Trace], before: Sequence[Context]) -> list[Context]:
    """Return the contexts of calls that were run again with an edit, from those of the run without
    it: what the caller gave, and the weights, are the same."""
    return [
        context.but(
            values=in_float64(trace.values),
            past=past_after(trace, context),
            before_edit=in_float64(trace.before_edit),
        )
        for trace, context in zip(edited, before, strict=True)
    ]


def past_after(trace: Trace, before: Context) -> Past | None:
    """Return the keys and values that a call finds: those of the edited calls before it, unless an
    earlier layer hands them down (KV-1)."""
    if before.variant.shared_kv_argument or trace.past is None:
        return before.past
    return Past(trace.past.key.double(), trace.past.value.double())


def in_float64(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what each hook point held, by name."""
    return {name: value.double() for name, value in values.items()}


def context_of(
    trace: Trace, specimen: Specimen, scenario: Scenario, weights: Weights | None = None
) -> Context:
    """Return the context of one recorded call; the weights are read from the module unless they
    are handed over, in float64."""
    given, call = trace.call.given, trace.call
    tables = call.tables(specimen.variant)
    variant = specimen.variant
    weights = weights or read_weights(specimen.module, variant, torch.float64)
    if "attn_in" in scenario.opted_in:
        weights, variant = a_key_for_every_head(weights, variant)
    x = given["hidden_states"]
    past = call.given_kv(variant) or trace.past
    past = past and Past(past.key.double(), past.value.double())
    return Context(
        variant=variant,
        weights=weights,
        values=ReadValues(in_float64(trace.values)),
        before_edit=in_float64(trace.before_edit),
        given={
            "hook_in": x,
            "hook_kv_in": call.source(variant),
            "hook_cos": tables and tables[0],
            "hook_sin": tables and tables[1],
        },
        bias=bias_in(trace, specimen, STAGES),
        past=past,
        positions=call.positions(variant),
        opted_in=scenario.opted_in,
        dtype=str(specimen.dtype).removeprefix("torch."),
        added_value=call.added_value(specimen.variant),
    )


def bias_in(trace: Trace, specimen: Specimen, stages: Stages) -> Tensor:
    """Return what is added to the scores of a call, (batch or 1, head or 1, query, key)."""
    given, call, variant = trace.call.given, trace.call, specimen.variant
    x, others = given["hidden_states"], call.source_length(variant)
    return selected_bias(given["attention_mask"], x, call.first_query, variant, stages, others)


def foil_of(context: Context, trace: Trace, specimen: Specimen, stages: Stages) -> Context:
    """Return the context of a recorded call with a mutant's stages in place of the right ones."""
    right = all(getattr(stages, name) is getattr(context.stages, name) for name in MASKING)
    bias = context.bias if right else bias_in(trace, specimen, stages)
    return context.but(bias=bias, stages=stages)


def expect(hook: str, context: Context) -> Expectation:
    """Return what a hook point should hold, from the values one stage up; worked out once for each
    context, which then knows what it is made of."""
    if hook not in context.expected:
        with context.values.noting() as read:
            made = STAGE_ORACLES[hook](hook, context)
        context.reads[hook] = read
        context.expected[hook] = Expectation(
            made.value, lambda: bound_and_its_reads(hook, made, context)
        )
    return context.expected[hook]


def bound_and_its_reads(hook: str, made: Expectation, context: Context) -> Tensor:
    """Return a stage's bound; the context then knows what that is made of too."""
    with context.values.noting() as read:
        bound = made.bound
    context.reads[hook] |= read
    return bound


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


def same_past(one: Past | None, other: Past | None) -> bool:
    """Return whether two calls were left the same keys and values by earlier ones."""
    if one is None or other is None:
        return one is other
    return torch.equal(one.key, other.key) and torch.equal(one.value, other.value)


def exactly(value: Tensor) -> Expectation:
    """Return a stage that only hands on what it is given."""
    return Expectation(value.double(), torch.zeros_like(value, dtype=torch.float64))


def expected_input(hook: str, c: Context) -> Expectation:
    """Return what IN-1, POS-1 makes of the values before."""
    value = c.given[hook]
    assert value is not None
    return exactly(value)


def expected_copies(hook: str, c: Context) -> Expectation:
    """Return what SPLIT-1 makes of the values before: copies of what hook_in left."""
    heads = c.variant.heads if hook in ("hook_attn_in", "hook_q_input") else c.variant.kv_heads
    return exactly(copies(c.values["hook_in"], heads))


def expected_latent(hook: str, c: Context) -> Expectation:
    """Return what LAT-1 makes of the values before."""
    latent = c.variant.latent
    assert latent is not None
    role, scale = ("Q", latent.q_scale) if hook == "hook_q_latent" else ("KV", latent.kv_scale)
    affine = c.weights.q_latent_norm if role == "Q" else c.weights.kv_latent_norm
    x, W, b = (
        c.values["hook_in"],
        getattr(c.weights, f"W_D{role}"),
        getattr(c.weights, f"b_D{role}"),
    )
    how = (x, W, b, affine, latent.norm, scale, latent.q_beside and role == "Q")
    return Expectation(
        c.stages.latent(*how), lambda: carried.carry_latent(*how, c.dtype).error.squeeze(2)
    )


def expected_projection(hook: str, c: Context) -> Expectation:
    """Return what PROJ-1, CLIP-1 makes of the values before."""
    role = role_of(hook)
    if role == "v" and c.variant.value_is_key:
        return exactly(c.values["hook_k"])
    x, W, b, adapter = projection(role, c)
    product = c.stages.project(x, W, b)
    value = c.stages.adapt(product, x, adapter)
    if role == "k" and c.weights.W_KR is not None:
        shared = heads_of(c.values["hook_in"], c.variant.kv_heads).value
        value = c.stages.with_rotary_part(value, shared, c.weights, c.variant.rotary_part_norm)
    value = c.stages.clip(c.stages.multiply(value, multiplier(role, c)), c.clips(hook))
    if role == "v" and c.added_value is not None:
        value = value + added_to(value, c.added_value)
    return Expectation(value, lambda: projection_bound(hook, product, c))


def projection(role: Role, c: Context) -> tuple[Tensor, Tensor, Tensor | None, Adapter | None]:
    """Return what the heads of a role read, and their W, b and adapter."""
    W, b = (getattr(c.weights, f"{kind}_{role.upper()}") for kind in ("W", "b"))
    return c.input_of(role), W, b, c.weights.adapters.get(role.upper())


def multiplier(role: Role, c: Context) -> float:
    """Return what a projection is multiplied by."""
    return {"k": c.variant.k_multiplier, "v": c.variant.v_multiplier}.get(role, 1.0)


def added_to(value: Tensor, added: Tensor) -> Tensor:
    """Return what the model hands down to be added to a value, for every head of it."""
    return added.repeat_interleave(value.shape[2] // added.shape[2], dim=2)


def projection_bound(hook: str, product: Tensor, c: Context) -> Tensor:
    """Return the bound of a projection, of which `product` is x W + b. An implementation may
    project hook_in once and add what the split inputs moved: both magnitudes count."""
    role = role_of(hook)
    x, W, b, adapter = projection(role, c)
    bound = carried.carry_projection(exact(x), W, b, c.dtype, value=product)
    bound = carried.carry_adapter(bound, exact(x), adapter, c.dtype)
    if c.opted_in and c.variant.splits:
        moved = moved_after_projection(x, c.values["hook_in"], W, b, c.dtype)
        bound = WithError(bound.value, bound.error + moved)
    if role == "k" and c.weights.W_KR is not None:
        shared = heads_of(c.values["hook_in"], c.variant.kv_heads)
        part = carried.carry_rotary_part(shared, c.weights, c.variant.rotary_part_norm, c.dtype)
        bound = join_parts(bound, part)
    bound = carry_clip(carry_factor(bound, multiplier(role, c), c.dtype), c.clips(hook))
    if role != "v" or c.added_value is None:
        return bound.error
    largest = bound.value.abs() + bound.error + added_to(bound.value, c.added_value).abs()
    return bound.error + bounds.rounded(largest, times=1, dtype=c.dtype)  # type: ignore[no-any-return]


def moved_after_projection(
    x: Tensor, hook_in: Tensor, W: Tensor, b: Tensor | None, dtype: str
) -> Tensor:
    """Return what is lost where hook_in is projected, and W times what hooks moved is added: both
    are sums of so many terms, and three roundings."""
    before = project_heads(
        heads_of(hook_in, x.shape[2]).value.abs(), W.abs(), None if b is None else b.abs()
    )
    after = project_heads(x.abs(), W.abs(), None if b is None else b.abs())
    return 3 * bounds.UNIT[dtype] * (before + after) + bounds.growth(W.shape[1] + 2, dtype) * (
        2 * before + after
    )


def expected_norm(hook: str, c: Context) -> Expectation:
    """Return what NORM-1, CLIP-1 makes of the values before."""
    role = role_of(hook)
    late = role != "v" and c.variant.norm is not None and c.variant.norm.after_rotation
    x, affine, norm = (
        c.heads(f"hook_rot_{role}" if late else f"hook_{role}"),
        getattr(c.weights, f"{role}_norm"),
        c.variant.norm_in(f"{role}_norm"),
    )
    result = c.stages.normalise(x, affine, norm)
    value = c.stages.clip(result, None if role == "v" else c.clips(hook))

    def bound() -> Tensor:
        error = carried.carry_norm(exact(x), affine, norm, c.dtype, value=result).error
        return error.reshape(value.shape)

    return Expectation(value, bound)


def expected_rotation(hook: str, c: Context) -> Expectation:
    """Return what ROT-1 makes of the values before: a copy of them in a layer that does not
    rotate."""
    x = c.rotation_input(role_of(hook))
    if c.variant.rotary is None:
        return exactly(x)
    rotary, (cos, sin) = (
        c.variant.rotary,
        rows_for(x.shape[1], c.values["hook_cos"], c.values["hook_sin"]),
    )
    turn = c.stages.turns(cos, sin, rotary)
    value = c.stages.rotate(x, turn, rotary)
    return Expectation(
        value, lambda: carried.carry_rotation(exact(x), turn, rotary, c.dtype, value=value).error
    )


def expected_scores(hook: str, c: Context) -> Expectation:
    """Return what SCORE-1, SCORE-4 makes of the values before. Forbidden entries are -inf to the
    bit."""
    value = c.stages.scores(c.query, c.keys, c.score_bias, c.variant)
    return Expectation(value, lambda: score_bound(c, value, c.dtype))


def score_bound(c: Context, value: Tensor, dtype: str) -> Tensor:
    """Return the bound of scores made in a dtype, 0 where they are forbidden; what goes into them
    has the layer's own."""
    bare = replace(c.variant, softcap=None, scale=abs(c.variant.scale))
    magnitude = c.stages.scores(c.query.abs(), c.keys.abs(), torch.zeros_like(c.bias), bare)
    finite = value.nan_to_num(neginf=0.0)
    bound: Tensor = bounds.scores(
        finite, magnitude, terms=c.variant.d_head, softcap=c.variant.softcap, dtype=dtype
    )
    if c.variant.temperature is not None:
        bound = bound + bounds.rounded(magnitude, times=2, dtype=c.dtype)
    if c.variant.key_bias is not None:
        own = carried.carry_key_bias(exact(c.all_values), c.weights, c.variant, c.dtype)
        bound = bound + own.error + bounds.rounded(own.value, times=2, dtype=c.dtype)
    return bound.masked_fill(value == -torch.inf, 0.0)


def expected_pattern(hook: str, c: Context) -> Expectation:
    """Return what PAT-1 makes of the values before: from the scores the subject itself gave to
    softmax, as they were shown or as they were before they were rounded for that."""
    shown = c.values["hook_attn_scores"]
    if c.dtype not in ("bfloat16", "float16") or "hook_pattern" not in c.values:
        return pattern_of(shown, 0.0, c)
    scores, off = scores_before_rounding(c)
    choices = (pattern_of(scores, off, c), pattern_of(shown, 0.0, c))
    return min(choices, key=lambda choice: furthest(c.values["hook_pattern"], choice))


def pattern_of(scores: Tensor, off: Tensor | float, c: Context) -> Expectation:
    """Return the pattern of scores that may be off by so much in each row, (batch, head, query,
    1)."""
    value = c.stages.pattern(scores, c.weights.sinks)

    def bound() -> Tensor:
        own = softmax_bound(c, scores, value)
        return own if isinstance(off, float) else own + value * (2 * off).expm1()

    return Expectation(value, bound)


def scores_before_rounding(c: Context) -> tuple[Tensor, Tensor]:
    """Return the scores of query and key where no hook touched what was shown of them, elsewhere
    what hooks left (PAT-1); and how far a row of them may be off in float32, (batch, head, query,
    1). Gradients flow to the scores that were shown."""
    shown = c.values["hook_attn_scores"]
    with torch.no_grad():
        exact = c.stages.scores(c.query, c.keys, c.score_bias, c.variant)
        untouched = shown == c.before_edit.get("hook_attn_scores", shown)
        lost = torch.where(untouched & shown.isfinite(), exact - shown, 0.0)
        off = score_bound(c, exact, "float32").amax(-1, keepdim=True)
    return shown + lost, off


@torch.no_grad()
def furthest(got: Tensor, expected: Expectation) -> float:
    """Return the largest error of a value in terms of its bound; infinity for another shape."""
    if got.shape != expected.value.shape:
        return torch.inf
    error = (got - expected.value).abs()
    return float((error / expected.bound).where(error > 0, 0.0).max())


def softmax_bound(c: Context, scores: Tensor, value: Tensor) -> Tensor:
    """Return the bound of the pattern, 0 where a key is forbidden."""
    top = scores.amax(-1, keepdim=True)
    top = top if c.weights.sinks is None else top.maximum(c.weights.sinks[None, :, None, None])
    below = (top - scores).nan_to_num(nan=0.0, posinf=0.0)
    bound: Tensor = bounds.softmax(value, below, keys=scores.shape[-1] + 1, dtype=c.dtype)
    return bound.masked_fill(scores == -torch.inf, 0.0)


def expected_gate_logits(hook: str, c: Context) -> Expectation:
    """Return what GATE-1 makes of the values before: the gate's rows of the query projection, which
    read hook_in."""
    return Expectation(gate_logits(c), lambda: gate_logits_with_error(c).error)


def gate_input(c: Context) -> WithError:
    """Return what the gate's projection reads."""
    source = "hook_q_latent" if c.variant.gate_rises else "hook_in"
    return heads_of(c.values[source], c.variant.heads)


def gate_logits(c: Context) -> Tensor:
    """Return the gate before its activation."""
    assert c.weights.W_G is not None
    return c.stages.project(gate_input(c).value, c.weights.W_G, c.weights.b_G)


def gate_logits_with_error(c: Context) -> WithError:
    """Return the gate before its activation, and how far it may be off."""
    assert c.weights.W_G is not None
    return carried.carry_projection(gate_input(c), c.weights.W_G, c.weights.b_G, c.dtype)


def expected_gate(hook: str, c: Context) -> Expectation:
    """Return what GATE-1 makes of the values before."""
    gate, seen = c.variant.gate, c.values.get("hook_q_gate")
    assert gate is not None
    value = c.stages.gate(gate_logits(c) if seen is None else seen, gate)

    def bound() -> Tensor:
        logits = gate_logits_with_error(c) if seen is None else exact(seen)
        return carried.carry_gate(logits, gate, c.dtype).error

    return Expectation(value if gate.per == "channel" else value[..., 0], bound)


def expected_z(hook: str, c: Context) -> Expectation:
    """Return what MIX-1 makes of the values before: from the recorded pattern and gate; over the
    fused stages where nobody watched the pattern."""
    if "hook_pattern" not in c.values:
        return expected_z_of_unseen_pattern(c)
    pattern = c.values["hook_pattern"]
    value = c.stages.mix(pattern, c.paired_values)

    def bound() -> WithError:
        mix = carried.carry_mix(exact(pattern), exact(c.paired_values), c.dtype, value=value)
        if not c.in_parts:
            return mix
        # both that kernel and the pattern that was shown are so far from the truth
        _, error = mix_of_unseen_pattern(c)
        return WithError(mix.value, mix.error + 2 * error())

    return expected_z_after_mix(c, value, bound)


def expected_z_of_unseen_pattern(c: Context) -> Expectation:
    """Return z end to end over score, softmax and mix, with the score error carried through the
    softmax."""
    value, error = mix_of_unseen_pattern(c)
    return expected_z_after_mix(c, value, lambda: WithError(value, error()))


def mix_of_unseen_pattern(c: Context) -> tuple[Tensor, Callable[[], Tensor]]:
    """Return each head's mix of values over score and softmax, and what gives its error."""
    scores = c.stages.scores(c.query, c.keys, c.score_bias, c.variant)
    pattern = c.stages.pattern(scores, c.weights.sinks)
    value = c.stages.mix(pattern, c.paired_values)

    def error() -> Tensor:
        delta = score_bound(c, scores, c.dtype).amax(-1).transpose(1, 2).unsqueeze(-1)
        magnitude = c.stages.mix(pattern, c.paired_values.abs())
        bound: Tensor = bounds.fused(value, magnitude, delta, keys=scores.shape[-1], dtype=c.dtype)
        return bound

    return value, error


def expected_z_after_mix(
    c: Context, mix: Tensor, mix_bound: Callable[[], WithError]
) -> Expectation:
    """Return the mix of values, subtracted, normed and gated where the family does so, by the gate
    that its hook held."""
    g, kind, lambdas = c.values.get("hook_gate"), c.variant.differential, c.weights.lambdas
    value, alpha = mix, c.weights.alpha
    if kind is not None and lambdas is not None:
        value = c.stages.subtract(value, lambdas, kind)
    own = c.all_values[:, -value.shape[1] :] if alpha is not None else value
    if alpha is not None:
        value = c.stages.exclude(value, own, alpha)
    value = c.stages.norm_and_gate(value, g, c.weights.z_norm, c.variant.z_norm)

    def bound() -> Tensor:
        error = mix_bound()
        if kind is not None and lambdas is not None:
            error = carried.carry_difference(error, lambdas, kind, c.dtype)
        if alpha is not None:
            error = carried.carry_exclusion(error, exact(own), alpha, c.dtype)
        gate = None if g is None else exact(g)
        done = carried.carry_norm_and_gate(error, gate, c.weights.z_norm, c.variant.z_norm, c.dtype)
        return carry_factor(done, c.variant.z_multiplier, c.dtype).error

    return Expectation(c.stages.multiply(value, c.variant.z_multiplier), bound)


def expected_result(hook: str, c: Context) -> Expectation:
    """Return what RES-1 makes of the values before."""
    z, W = c.values["hook_z"], c.weights.W_O
    value = c.stages.result(z, W)

    def bound() -> Tensor:
        magnitude = c.stages.result(z.abs(), W.abs())
        return bounds.linear(value, magnitude, terms=c.variant.d_z, dtype=c.dtype)  # type: ignore[no-any-return]

    return Expectation(value, bound)


def expected_output(hook: str, c: Context) -> Expectation:
    """Return what OUT-1 makes of the values before: where results were made, their sum, whose
    terms may each have been rounded."""
    if "hook_result" in c.values:
        return expected_sum_of_results(c.values["hook_result"], c)
    z, W, b = c.values["hook_z"], c.weights.W_O, c.weights.b_O
    value = c.stages.output(z, W, b)

    def bound() -> Tensor:
        product = 0 if b is None else c.stages.output(z, W, None)
        return output_bound(value, output_magnitude(c), product, c)

    return Expectation(value, bound)


def expected_sum_of_results(results: Tensor, c: Context) -> Expectation:
    """Return what OUT-1 makes of the results of all heads."""
    value = c.stages.sum_of_results(results, c.weights.b_O)

    def bound() -> Tensor:
        magnitude = output_magnitude(c) + results.abs().sum(2)
        return output_bound(value, magnitude, 0, c) + 3 * bounds.UNIT[c.dtype] * magnitude

    return Expectation(value, bound)


def output_magnitude(c: Context) -> Tensor:
    """Return the output projection of absolute values."""
    z, W, b = c.values["hook_z"], c.weights.W_O, c.weights.b_O
    return c.stages.output(z.abs(), W.abs(), None if b is None else b.abs())


def output_bound(value: Tensor, magnitude: Tensor, product: Tensor | float, c: Context) -> Tensor:
    """Return the bound of a sum over all heads and their channels."""
    terms = c.variant.z_heads * c.variant.d_z
    return bounds.linear(value, magnitude, terms=terms, dtype=c.dtype, product=product)  # type: ignore[no-any-return]


STAGE_ORACLES: Mapping[str, Callable[[str, Context], Expectation]] = {
    "hook_in": expected_input,
    "hook_kv_in": expected_input,
    "hook_attn_in": expected_copies,
    "hook_q_input": expected_copies,
    "hook_k_input": expected_copies,
    "hook_v_input": expected_copies,
    "hook_q_latent": expected_latent,
    "hook_kv_latent": expected_latent,
    "hook_q": expected_projection,
    "hook_k": expected_projection,
    "hook_v": expected_projection,
    "hook_q_normed": expected_norm,
    "hook_k_normed": expected_norm,
    "hook_v_normed": expected_norm,
    "hook_cos": expected_input,
    "hook_sin": expected_input,
    "hook_rot_q": expected_rotation,
    "hook_rot_k": expected_rotation,
    "hook_rot_v": expected_rotation,
    "hook_attn_scores": expected_scores,
    "hook_pattern": expected_pattern,
    "hook_q_gate": expected_gate_logits,
    "hook_gate": expected_gate,
    "hook_z": expected_z,
    "hook_result": expected_result,
    "hook_out": expected_output,
}
