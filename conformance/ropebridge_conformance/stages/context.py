"""Recorded values that stages are recomputed from, and what a stage should have given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from ropebridge_conformance.stages.carried import (
    WithError,
    copy_for_heads,
    exact,
    side_by_side_with_error,
)
from ropebridge_conformance.stages.functions import STAGES, Stages
from ropebridge_conformance.stages.reads import ReadValues, remembered
from ropebridge_reference import Weights, join_source, of_the_largest
from ropebridge_spec import HOOK_BY_NAME, OptIn, Role, Variant, hook_chain

PAST = "past"
"""What stands for the keys and values of earlier calls among the names of values."""
HALF = ("bfloat16", "float16")


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

    variant, weights: of the layer.
    hooks: the hook points that the layer has, in order. values: what was recorded of them, in the
        shape that they should have.
    given: hook point -> what the call was given for it: hidden states, another sequence, tables.
    bias: (batch or 1, head or 1, query, key), what the mask adds to scores. past: keys and values
        of earlier calls. positions: (batch or 1, pos), of the queries. added_value: (batch, pos,
        added_head, d_head_v), what the model adds to the value.
    opted_in: what the layer was built with. dtype: that the layer computes in.
    first_key: the position of the first key along the axis of keys.
    before_edit: what hook points held that were edited in this call. in_parts: hooks were given
        parts, so that z may come from a kernel that makes no pattern.
    stages: the functions that values are made by; a foil has a mutant's.
    expected, reads, memory, right: what was worked out already, by hook point or name: what should
        stand there, of which values it was made, what several stages share, and whether the run
        without an edit is right there.
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
    first_key: int = 0
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
        own = self.heads(hook_chain_of("q", self.variant)[-1])
        return own.map(
            lambda x: self.stages.scale_by_temperature(x, self.positions, self.variant.temperature)
        )

    @remembered
    def own_key(self) -> WithError:
        """Return the keys that this call adds, as scores read them."""
        return self.heads(hook_chain_of("k", self.variant)[-1])

    @remembered
    def own_value(self) -> WithError:
        """Return the values that this call adds, as they are mixed."""
        return self.heads(hook_chain_of("v", self.variant)[-1])

    @remembered
    def keys(self) -> WithError:
        """Return all keys this call sees, cached ones first."""
        if self.variant.shared_kv_argument and self.past is not None:
            return self.past.key
        own: WithError = self.own_key
        return self.held(None if self.past is None else self.past.key, own)

    @remembered
    def all_values(self) -> WithError:
        """Return all values this call sees, cached ones first."""
        if self.variant.shared_kv_argument and self.past is not None:
            return self.past.value
        own: WithError = self.own_value
        return self.held(None if self.past is None else self.past.value, own)

    def held(self, past: WithError | None, own: WithError) -> WithError:
        """Return keys or values along the axis of keys: earlier ones and this call's, without those
        that the cache forgot, and 0 where it has room for more."""
        joined = own if past is None else past.beside(own, self.stages.recall)
        room = self.bias.shape[-1] - (joined.value.shape[1] - self.first_key)
        if not room and not self.first_key:
            return joined
        # (batch, key, kv_head, width)
        return joined.map(lambda x: pad(x[:, self.first_key :], (0, 0, 0, 0, 0, room)))

    @remembered
    def score_bias(self) -> Tensor:
        """Return what is added to the scores: what the mask says, and where keys are biased by
        their values that too (SCORE-5)."""
        kind = self.variant.key_bias
        if kind is None:
            return self.bias
        of_keys = self.stages.bias_keys(self.all_values.value, self.weights, self.variant)
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

    def heads_before(self, hook: str) -> WithError:
        """Return the heads that a norm or a rotation is given."""
        return self.heads(self.hook_before(hook))

    def hook_before(self, hook: str) -> str:
        """Return the hook point whose heads a norm or a rotation is given."""
        chain = hook_chain_of(role_of(hook), self.variant)
        return chain[chain.index(hook) - 1]

    def clips(self, hook: str) -> float | None:
        """Return the bound that a hook point's value is clipped to (CLIP-1): query and key where
        they go to rotation, the value where it is projected."""
        role = role_of(hook)
        last = "hook_v" if role == "v" else self.hook_before(f"hook_rot_{role}")
        return self.variant.clip if hook == last else None

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


hook_chain_of = lru_cache(maxsize=64)(hook_chain)
"""`hook_chain`, worked out once for a variant: stages ask for it many times a call."""

Oracle = Callable[[str, Context], Expectation]
STAGE_ORACLES: dict[str, Oracle] = {}
"""What gives the expectation of each hook point: each file of a stage adds its own."""


def expects(*hooks: str) -> Callable[[Oracle], Oracle]:
    """Return a decorator of what gives the expectation of some hook points."""

    def register(oracle: Oracle) -> Oracle:
        STAGE_ORACLES.update(dict.fromkeys(hooks, oracle))
        return oracle

    return register


def role_of(hook: str) -> Role:
    """Return whether a hook point holds something of query, key or value."""
    role = HOOK_BY_NAME[hook].role
    assert role is not None, f"{hook} is of none of the three"
    return role


def for_heads(x: WithError, heads: int) -> WithError:
    """Return (batch, pos, width) as each of so many heads reads it."""
    return copy_for_heads(x.map(lambda value: value.unsqueeze(2)), heads)


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


def as_given(hook: str, c: Context) -> Expectation:
    """Return what the call was given for a hook point, to the bit."""
    value = c.given[hook]
    assert value is not None
    return handed_on(exact(value.double()))


def handed_on(x: WithError) -> Expectation:
    """Return a stage that only hands on what it is given."""
    return Expectation(x.value.double(), x.error.double())
