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
    copy_for_heads,
    exact,
    join_parts,
    side_by_side_with_error,
)
from ropebridge_conformance.stages.reads import ReadValues, remembered
from ropebridge_conformance.subjects.traces import Trace
from ropebridge_conformance.zoo.scenarios import Scenario
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_conformance.zoo.visibility import selected_bias
from ropebridge_conformance.zoo.weights import read_weights
from ropebridge_reference import (
    STAGES,
    Stages,
    Weights,
    a_key_for_every_head,
    copies,
    join_source,
    of_the_largest,
    project_heads,
    rows_for,
)
from ropebridge_spec import (
    HOOK_BY_NAME,
    OptIn,
    Role,
    Variant,
    attention_inputs,
    bounds,
    hook_order,
    ungrouped,
)
from ropebridge_spec.hooks import resolve

MASKING = ("causal_bias", "padding_bias", "bias_of_mask", "selection_bias")
"""The stages that say what each query may see."""
PAST = "past"
"""What stands for the keys and values of earlier calls among the names of values."""
HALF = ("bfloat16", "float16")
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
class SeenPast:
    """Hold keys (batch, key, kv_head, d_head) and values of earlier calls, each with its error."""

    key: WithError
    value: WithError


@dataclass(frozen=True)
class Context:
    """Hold everything that one call's stages are recomputed from, in float64.

    hooks: the hook points that the layer has, in order. values: what was recorded of them, in the
        shape that they should have.
    before_edit: what hook points held that were edited in this call. in_parts: hooks were given
        parts, so that z may come from a kernel that makes no pattern.
    """

    variant: Variant
    weights: Weights
    hooks: tuple[str, ...]
    values: ReadValues
    given: Mapping[str, Tensor | None]
    bias: Tensor
    past: SeenPast | None
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

    @property
    def missing(self) -> tuple[str, ...]:
        """Return the hook points of which nothing was recorded."""
        return tuple(name for name in self.hooks if name not in self.values)

    def seen(self, hook: str) -> WithError:
        """Return what a hook point held, exact where it was recorded, else what it should have held
        and how far off that may be.

        Raises:
            NotShown: the layer has no such hook point.
        """
        if hook in self.values or hook not in self.hooks:
            return exact(self.values[hook])
        expected = expect(hook, self)
        bound = expected.bound
        self.values.read.update(self.reads[hook])
        return WithError(expected.value, bound)

    @remembered
    def query(self) -> WithError:
        """Return what scores are made of, times the query's temperature."""
        own = self.heads(attention_inputs(self.variant)[0])
        return own.map(
            lambda x: self.stages.scale_by_temperature(x, self.positions, self.variant.temperature)
        )

    @remembered
    def own_key(self) -> WithError:
        """Return the keys that this call adds, as scores read them."""
        return self.heads(attention_inputs(self.variant)[1])

    @remembered
    def own_value(self) -> WithError:
        """Return the values that this call adds, as they are mixed."""
        return self.heads(attention_inputs(self.variant)[2])

    @remembered
    def keys(self) -> WithError:
        """Return all keys this call sees, cached ones first."""
        if self.variant.shared_kv_argument and self.past is not None:
            return self.past.key
        own: WithError = self.own_key
        return own if self.past is None else self.past.key.beside(own, self.stages.recall)

    @remembered
    def all_values(self) -> WithError:
        """Return all values this call sees, cached ones first."""
        if self.variant.shared_kv_argument and self.past is not None:
            return self.past.value
        own: WithError = self.own_value
        return own if self.past is None else self.past.value.beside(own, self.stages.recall)

    @remembered
    def score_bias(self) -> Tensor:
        """Return what is added to the scores: what the mask says, and where keys are biased by
        their values that too (SCORE-5)."""
        kind = self.variant.key_bias
        if kind is None:
            return self.bias
        of_keys = self.stages.key_bias(self.all_values.value, self.weights, self.variant)
        return of_the_largest(of_keys, self.bias, kind.keep)

    @remembered
    def paired_values(self) -> WithError:
        """Return what heads mix: all values, side by side where heads come in pairs (DIFF-1)."""
        paired = self.variant.differential is not None
        return side_by_side_with_error(self.all_values) if paired else self.all_values

    def heads(self, hook: str) -> WithError:
        """Return what a hook point held, head by head: a flat norm shows all heads as one axis."""
        like = self.seen(f"hook_{role_of(hook)}").value
        return self.seen(hook).map(lambda x: x.reshape(like.shape))

    def rotation_input(self, role: str) -> WithError:
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

    def input_of(self, role: str) -> WithError:
        """Return (batch, pos, heads, d_model or rank): what the heads of a role read."""
        shared = {"attn_in": "hook_attn_in", "split_qkv_input": f"hook_{role}_input"}
        for opt_in, name in shared.items():
            if opt_in in self.opted_in:
                return self.seen(name)
        latent = "hook_q_latent" if role == "q" else "hook_kv_latent"
        x = self.seen(latent if latent in self.hooks else "hook_in")
        source = self.variant.source
        if role != "q" and source is not None:
            other = self.seen("hook_kv_in")
            x = x.beside(other, lambda own, states: join_source(own, states, source))
        return for_heads(x, self.variant.heads if role == "q" else self.variant.kv_heads)


def role_of(hook: str) -> Role:
    """Return whether a hook point holds something of query, key or value."""
    role = HOOK_BY_NAME[hook].role
    assert role is not None, f"{hook} is of none of the three"
    return role


def for_heads(x: WithError, heads: int) -> WithError:
    """Return (batch, pos, width) as each of so many heads reads it."""
    return copy_for_heads(x.map(lambda value: value.unsqueeze(2)), heads)


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


def handed_on(x: WithError) -> Expectation:
    """Return a stage that only hands on what it is given."""
    return Expectation(x.value.double(), x.error.double())


def expected_input(hook: str, c: Context) -> Expectation:
    """Return what IN-1, POS-1 makes of the values before."""
    value = c.given[hook]
    assert value is not None
    return handed_on(exact(value.double()))


def expected_copies(hook: str, c: Context) -> Expectation:
    """Return what SPLIT-1 makes of the values before: copies of what hook_in left."""
    heads = c.variant.heads if hook in ("hook_attn_in", "hook_q_input") else c.variant.kv_heads
    return handed_on(c.seen("hook_in").map(lambda x: copies(x, heads)))


def expected_latent(hook: str, c: Context) -> Expectation:
    """Return what LAT-1 makes of the values before."""
    latent = c.variant.latent
    assert latent is not None
    role, scale = ("Q", latent.q_scale) if hook == "hook_q_latent" else ("KV", latent.kv_scale)
    affine = c.weights.q_latent_norm if role == "Q" else c.weights.kv_latent_norm
    x = c.seen("hook_in")
    W, b = getattr(c.weights, f"W_D{role}"), getattr(c.weights, f"b_D{role}")
    how = (W, b, affine, latent.norm, scale, latent.q_beside and role == "Q")
    return Expectation(
        c.stages.latent(x.value, *how),
        lambda: carried.carry_latent(x, *how, c.dtype).error.squeeze(2),
    )


def expected_projection(hook: str, c: Context) -> Expectation:
    """Return what PROJ-1, CLIP-1 makes of the values before."""
    role = role_of(hook)
    if role == "v" and c.variant.value_is_key:
        return handed_on(c.seen("hook_k"))
    x, W, b, adapter = projection(role, c)
    product = c.stages.project(x.value, W, b)
    value = c.stages.adapt(product, x.value, adapter)
    if role == "k" and c.weights.W_KR is not None:
        shared = for_heads(c.seen("hook_in"), c.variant.kv_heads).value
        value = c.stages.with_rotary_part(value, shared, c.weights, c.variant.rotary_part_norm)
    value = c.stages.clip(c.stages.multiply(value, multiplier(role, c)), c.clips(hook))
    if role == "v" and c.added_value is not None:
        value = value + added_to(value, c.added_value)
    return Expectation(value, lambda: projection_bound(hook, product, c))


def projection(role: Role, c: Context) -> tuple[WithError, Tensor, Tensor | None, Adapter | None]:
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
    bound = carried.carry_projection(x, W, b, c.dtype, value=product)
    bound = carried.carry_adapter(bound, x, adapter, c.dtype)
    if c.opted_in and c.variant.splits:
        moved = moved_after_projection(x.value, c.seen("hook_in").value, W, b, c.dtype)
        bound = WithError(bound.value, bound.error + moved)
    if role == "k" and c.weights.W_KR is not None:
        shared = for_heads(c.seen("hook_in"), c.variant.kv_heads)
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
        copies(hook_in, x.shape[2]).abs(), W.abs(), None if b is None else b.abs()
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
    result = c.stages.normalise(x.value, affine, norm)
    value = c.stages.clip(result, None if role == "v" else c.clips(hook))

    def bound() -> Tensor:
        error = carried.carry_norm(x, affine, norm, c.dtype, value=result).error
        return error.reshape(value.shape)

    return Expectation(value, bound)


def expected_rotation(hook: str, c: Context) -> Expectation:
    """Return what ROT-1 makes of the values before: a copy of them in a layer that does not
    rotate."""
    x = c.rotation_input(role_of(hook))
    if c.variant.rotary is None:
        return handed_on(x)
    rotary, tables = c.variant.rotary, (c.seen("hook_cos").value, c.seen("hook_sin").value)
    turn = c.stages.turns(*rows_for(x.value.shape[1], *tables), rotary)
    value = c.stages.rotate(x.value, turn, rotary)
    return Expectation(
        value, lambda: carried.carry_rotation(x, turn, rotary, c.dtype, value=value).error
    )


def expected_scores(hook: str, c: Context) -> Expectation:
    """Return what SCORE-1, SCORE-4 makes of the values before. Forbidden entries are -inf to the
    bit."""
    value = c.stages.scores(c.query.value, c.keys.value, c.score_bias, c.variant)
    return Expectation(value, lambda: score_bound(c, value, c.dtype))


def score_bound(c: Context, value: Tensor, dtype: str) -> Tensor:
    """Return the bound of scores made in a dtype, 0 where they are forbidden; what goes into them
    has the layer's own."""
    bare = replace(c.variant, softcap=None, scale=abs(c.variant.scale))
    none, q, k = torch.zeros_like(c.bias), c.query, c.keys
    magnitude = c.stages.scores(q.value.abs() + q.error, k.value.abs() + k.error, none, bare)
    finite = value.nan_to_num(neginf=0.0)
    bound: Tensor = bounds.scores(
        finite, magnitude, terms=c.variant.d_head, softcap=c.variant.softcap, dtype=dtype
    )
    if not (q.is_exact and k.is_exact):
        bound = bound + magnitude - c.stages.scores(q.value.abs(), k.value.abs(), none, bare)
    if c.variant.temperature is not None:
        bound = bound + bounds.rounded(magnitude, times=2, dtype=c.dtype)
    if c.variant.key_bias is not None:
        own = carried.carry_key_bias(c.all_values, c.weights, c.variant, c.dtype)
        bound = bound + own.error + bounds.rounded(own.value, times=2, dtype=c.dtype)
    return bound.masked_fill(value == -torch.inf, 0.0)


def expected_pattern(hook: str, c: Context) -> Expectation:
    """Return what PAT-1 makes of the values before: from the scores the subject itself gave to
    softmax, as they were shown or as they were before they were rounded for that."""
    if "hook_attn_scores" not in c.values:
        unseen = c.seen("hook_attn_scores")
        return pattern_of(unseen.value, unseen.error.amax(-1, keepdim=True), c)
    shown = c.values["hook_attn_scores"]
    if c.dtype not in HALF or "hook_pattern" not in c.values:
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
        unrounded = c.stages.scores(c.query.value, c.keys.value, c.score_bias, c.variant)
        untouched = shown == c.before_edit.get("hook_attn_scores", shown)
        lost = torch.where(untouched & shown.isfinite(), unrounded - shown, 0.0)
        off = score_bound(c, unrounded, "float32").amax(-1, keepdim=True)
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
    return for_heads(c.seen(source), c.variant.heads)


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
    gate, has_hook = c.variant.gate, "hook_q_gate" in c.hooks
    assert gate is not None
    value = c.stages.gate(c.seen("hook_q_gate").value if has_hook else gate_logits(c), gate)

    def bound() -> Tensor:
        logits = c.seen("hook_q_gate") if has_hook else gate_logits_with_error(c)
        return carried.carry_gate(logits, gate, c.dtype).error

    return Expectation(value if gate.per == "channel" else value[..., 0], bound)


def expected_z(hook: str, c: Context) -> Expectation:
    """Return what MIX-1 makes of the values before: from the recorded pattern and gate; over the
    fused stages where nobody watched the pattern."""
    if "hook_pattern" not in c.values:
        return expected_z_of_unseen_pattern(c)
    pattern = c.values["hook_pattern"]
    value = c.stages.mix(pattern, c.paired_values.value)

    def bound() -> WithError:
        mix = carried.carry_mix(exact(pattern), c.paired_values, c.dtype, value=value)
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
    """Return each head's mix of values over score and softmax, and what gives its error; from the
    scores that were recorded, or over those too."""
    scores, off = unseen_scores(c)
    pattern = c.stages.pattern(scores, c.weights.sinks)
    v = c.paired_values
    value = c.stages.mix(pattern, v.value)

    def error() -> Tensor:
        delta = off().amax(-1).transpose(1, 2).unsqueeze(-1)  # (batch, pos, head, 1)
        magnitude = c.stages.mix(pattern, v.value.abs() + v.error)
        bound: Tensor = bounds.fused(value, magnitude, delta, keys=scores.shape[-1], dtype=c.dtype)
        return bound + v.error_through(lambda error: c.stages.mix(pattern, error))  # type: ignore[no-any-return]

    return value, error


def unseen_scores(c: Context) -> tuple[Tensor, Callable[[], Tensor]]:
    """Return the scores that a pattern which nobody saw was made of, and what gives their error: of
    recorded ones what rounding took, which softmax may have been spared (PAT-1)."""
    if "hook_attn_scores" not in c.values:
        value = c.stages.scores(c.query.value, c.keys.value, c.score_bias, c.variant)
        return value, lambda: score_bound(c, value, c.dtype)
    shown = c.values["hook_attn_scores"]
    if c.dtype not in HALF:
        return shown, lambda: torch.zeros_like(shown)

    def rounding() -> Tensor:
        scores, off = scores_before_rounding(c)
        return (scores - shown).nan_to_num(nan=0.0).abs() + off

    return shown, rounding


def expected_z_after_mix(
    c: Context, mix: Tensor, mix_bound: Callable[[], WithError]
) -> Expectation:
    """Return the mix of values, subtracted, normed and gated where the family does so, by the gate
    that its hook held."""
    kind, lambdas = c.variant.differential, c.weights.lambdas
    g = None if c.variant.gate is None else c.seen("hook_gate")
    value, alpha = mix, c.weights.alpha
    if kind is not None and lambdas is not None:
        value = c.stages.subtract(value, lambdas, kind)
    own = c.all_values.map(lambda v: v[:, -mix.shape[1] :])
    if alpha is not None:
        value = c.stages.exclude(value, own.value, alpha)
    gate = None if g is None else g.value
    value = c.stages.norm_and_gate(value, gate, c.weights.z_norm, c.variant.z_norm)

    def bound() -> Tensor:
        error = mix_bound()
        if kind is not None and lambdas is not None:
            error = carried.carry_difference(error, lambdas, kind, c.dtype)
        if alpha is not None:
            error = carried.carry_exclusion(error, own, alpha, c.dtype)
        done = carried.carry_norm_and_gate(error, g, c.weights.z_norm, c.variant.z_norm, c.dtype)
        return carry_factor(done, c.variant.z_multiplier, c.dtype).error

    return Expectation(c.stages.multiply(value, c.variant.z_multiplier), bound)


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


def expected_output(hook: str, c: Context) -> Expectation:
    """Return what OUT-1 makes of the values before: where results were made, their sum, whose
    terms may each have been rounded."""
    if "hook_result" in c.hooks:
        return expected_sum_of_results(c.seen("hook_result"), c)
    z, W, b = c.seen("hook_z"), c.weights.W_O, c.weights.b_O
    value = c.stages.output(z.value, W, b)

    def bound() -> Tensor:
        carried = z.error_through(lambda error: c.stages.output(error, W.abs(), None))
        product = 0 if b is None else c.stages.output(z.value, W, None).abs() + carried
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
    return c.stages.output(z.value.abs() + z.error, W.abs(), None if b is None else b.abs())


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
