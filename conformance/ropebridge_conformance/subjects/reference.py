"""Executable spec as a subject: reads the weights off the wrapped module and calls the reference's
functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, pad

from ropebridge_conformance.stages.functions import STAGES, Stages
from ropebridge_conformance.stages.page import layer_of
from ropebridge_conformance.subjects.kept import read_cache
from ropebridge_conformance.subjects.parts import Hooks, by_name
from ropebridge_conformance.zoo.calls import CallInputs, cache_layer, tables_for, tables_of
from ropebridge_conformance.zoo.selection import call_selector, picked
from ropebridge_conformance.zoo.specimens import layer_number
from ropebridge_conformance.zoo.visibility import bias_of
from ropebridge_conformance.zoo.weights import WeightsOnce
from ropebridge_reference import (
    Output,
    Select,
    Weights,
)
from ropebridge_spec import (
    FAMILIES,
    HOOK_BY_NAME,
    ContractError,
    Family,
    HookFunction,
    HookNeverFired,
    HookSpec,
    OptIn,
    UnknownHook,
    Variant,
    by_role,
    describe,
    hook_order,
    shared_key,
    ungrouped,
)

Run = Callable[[Mapping[str, Any], Hooks, Hooks], tuple[Tensor, Tensor | None]]
"""`run(inputs, hooks, backward_hooks)`: one call of a layer."""
Show = Callable[[str, Tensor, Sequence[HookFunction]], Tensor]
GAPS = dict.fromkeys(
    ("MEM-1", "MEM-2"),
    "the reference makes scores and pattern whether or not anybody watches them: it is written"
    " to be read",
)


def show(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
    """Show a copy to each hook in turn; the layer goes on with what they leave, contiguous whether
    or not anybody watches."""
    if not hooks:
        return value.contiguous()
    copy = shown = value.clone(memory_format=torch.contiguous_format)
    for fn in hooks:
        shown = accepted(name, fn(shown, hook=SimpleNamespace(name=f"blocks.0.attn.{name}")), shown)
    edited = shown is not copy or may_be_written_to(shown)
    if name == "hook_attn_scores" and edited and not shown.is_meta:
        refuse_unfit_scores(shown, value)
    return shown


def refuse_unfit_scores(left: Tensor, scores: Tensor) -> None:
    """Refuse what an edit may not leave of scores: NaN and +inf (SCORE-3), and numbers at keys that
    are forbidden (SCORE-6)."""
    if spoiled(left) and not spoiled(scores):
        raise ContractError(
            "hook 'hook_attn_scores' left NaN or +inf in the scores; clause SCORE-3 requires finite"
            " numbers, or -inf to forbid a key"
        )
    if bool(((scores == -torch.inf) & (left > -torch.inf)).any()):
        raise ContractError(
            "hook 'hook_attn_scores' left numbers at keys that their query may not see; clause"
            " SCORE-6 requires -inf there"
        )


def accepted(name: str, replacement: Any, shown: Tensor) -> Tensor:
    """Return the replacement, where there is one and it fits (EDIT-3)."""
    if replacement is None:
        return shown
    for kind, clause in (
        ("shape", HOOK_BY_NAME[name].axes_clause),
        ("dtype", "EDIT-3"),
        ("device", "EDIT-3"),
    ):
        given, required = getattr(replacement, kind, None), getattr(shown, kind)
        if given != required:
            raise ContractError(
                f"hook {name!r} was given a replacement of {kind} {given}; clause {clause} requires"
                f" {required}"
            )
    kept: Tensor = replacement
    return kept


def may_be_written_to(copy: Tensor) -> bool:
    """Return whether hooks wrote into a copy; of tensors of inference mode nobody counts that."""
    return copy.is_inference() or copy._version > 0


def spoiled(scores: Tensor) -> bool:
    """Return whether a score is NaN or +inf."""
    return not bool((scores < torch.inf).all())


def shown_backwards(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
    """Show the gradient at a value to each backward hook in turn; what they leave goes on
    (GRAD-1)."""
    if not hooks:
        return value
    if not value.requires_grad:
        raise HookNeverFired(
            f"the backward hook at {name!r} cannot fire: no gradient flows through this tensor"
        )
    value = value.view_as(value)
    point = SimpleNamespace(name=f"blocks.0.attn.{name}")
    for fn in hooks:
        value.register_hook(lambda gradient, fn=fn: fn(gradient, hook=point))
    return value


def weights_as_they_are(weights: Weights, variant: Variant) -> Weights:
    """Return the module's own weights, as they are."""
    return weights


def as_it_is(layer: ReferenceLayer) -> Run:
    """Return the layer's own call."""
    return layer.call


UNSEEN = {"hook_attn_scores": -torch.inf, "hook_pattern": 0.0}
"""What hook points with an axis of keys hold of one that nobody may see."""


@dataclass(frozen=True, eq=False)
class ReferenceLayer:
    """Run the reference around one attention module."""

    module: nn.Module
    rotary: nn.Module
    variant: Variant
    opted_in: tuple[OptIn, ...]
    factory: Factory

    @cached_property
    def _weights(self) -> WeightsOnce:
        return WeightsOnce(self.module, self.variant)

    @cached_property
    def points(self) -> dict[str, HookSpec]:
        """Return the hook points by name, in the order in which they fire."""
        variant = ungrouped(self.variant, self.opted_in)
        return {hook.name: hook for hook in hook_order(variant, self.opted_in)}

    def run(
        self, inputs: Mapping[str, Any], hooks: Hooks = (), backward_hooks: Hooks = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Return one call, by the names of the module's own signature; a transformers cache is
        read, and extended.

        Raises:
            ContractError: an argument that is not known, or is refused (ARG-1).
        """
        return self.factory.around(self)(
            self.factory.read(inputs, self.variant), hooks, backward_hooks
        )

    def call(
        self, inputs: Mapping[str, Any], hooks: Hooks, backward_hooks: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        """Return one call of the reference itself, by the contract's names."""
        whole, backward = by_name(hooks, self.points), by_name(backward_hooks, self.points)
        refuse_unknown([name for name, _ in (*whole, *backward)], list(self.points))
        x, cache = inputs["hidden_states"], inputs.get("cache")
        layer = cache_layer(inputs, self.module, self.variant)
        kept = read_cache(inputs, self.variant, layer)
        call = self._with_tables(CallInputs(inputs, first_query=kept.first_query, keys=0))
        span = replace(kept.span, source=call.source_length(self.variant))
        bias = bias_of(inputs["attention_mask"], span, self.variant, x.device, self.factory.stages)
        bias = bias[..., : bias.shape[-1] - kept.room]
        added = call.added_value(self.variant)

        patterns: list[Tensor] = []
        made = layer_of(self.factory.stages)(
            x,
            call.tables(self.variant),
            bias,
            self.factory.weights(self._weights.read(), self.variant),
            self.variant,
            positions=call.positions(self.variant),
            past=kept.past,
            source=call.source(self.variant),
            added_value=added if added is None else added.to(x.dtype),
            select=self._select(call, bias),
            opted_in=self.opted_in,
            at=self._shown_to(whole, backward, patterns, kept.room),
        )
        self._leave(inputs, cache, layer, kept.before, made)
        # a copy: the caller may write into it, and what hooks were shown stays as it was (EDIT-2)
        out = dropout(made.out.clone(), self.variant.output_dropout, self.module.training)
        return out, patterns[0] if inputs.get("output_attentions") else None

    def _shown_to(
        self, whole: Hooks, backward: Hooks, patterns: list[Tensor], room: int
    ) -> Callable[[str, Tensor], Tensor]:
        """Return what shows a value to the hooks of its point, and then to those of its gradient;
        the pattern that they leave is added to a list, before training drops out what goes on to
        the values (DROP-1). Keys that a cache has room for are shown beside those there were, and
        nobody sees them."""

        def of(name: str, hooks: Hooks) -> list[HookFunction]:
            number = layer_number(self.module) or 0
            return [partial(called_by_number, fn, number) for hook, fn in hooks if hook == name]

        def at(name: str, value: Tensor) -> Tensor:
            unseen = UNSEEN.get(name)
            if room and unseen is not None:
                value = pad(value, (0, room), value=unseen)  # (batch, head, query, key)
            shown = self.factory.show(name, value, of(name, whole))
            shown = shown_backwards(name, shown, of(name, backward))
            if name == "hook_pattern":
                patterns.append(shown)
                shown = dropout(shown, self.variant.dropout, self.module.training)
            return shown if unseen is None else shown[..., : shown.shape[-1] - room]

        return at

    def _leave(
        self, inputs: Mapping[str, Any], cache: Any, layer: int, before: int, made: Output
    ) -> None:
        """Leave the call's keys and values in the cache (CACHE-1), and for later layers (KV-1)."""
        pair = [heads.transpose(1, 2) for heads in (made.past.key, made.past.value)]
        if self.variant.calling.kept_kv_argument is not None:
            inputs[self.variant.calling.kept_kv_argument][shared_key(self.module)] = tuple(pair)
        if cache is not None and not self.variant.shared_kv_argument:
            cache.update(*(heads[:, :, before:] for heads in pair), layer)

    def _with_tables(self, call: CallInputs) -> CallInputs:
        """Return the call, with the tables that a layer makes for itself of its positions where it
        is handed none."""
        if (
            self.variant.calling.tables != "own"
            or call.given.get("position_embeddings") is not None
        ):
            return call
        tables = tables_for(
            self.module, self.rotary, self.variant, call.given["hidden_states"], call.ids()
        )
        return replace(call, given={**call.given, "position_embeddings": tables})

    def _select(self, call: CallInputs, bias: Tensor) -> Select | None:
        """Return the module's own selector, or an earlier layer's picks (SEL-1); None in a family
        that selects no keys."""
        selector = self.variant.selector
        if selector is None:
            return None

        def select(x: Tensor, c_q: Tensor | None, tables: Any) -> Tensor:
            tables = tables and with_earlier(
                tables, tables_of(call.given["position_embeddings"], self.variant)
            )
            rank = self.variant.latent.q_rank if self.variant.latent else None
            given = {
                "hidden_states": x,
                "q_latent": None if c_q is None else c_q[..., :rank],
                "tables": tables,
                "position_ids": call.ids(),
                "cache": call.given.get("cache"),
            }
            picks = (
                call.given[selector.picks_argument]
                if selector.picks_argument
                else call_selector(self.module, selector, given, bias)
            )
            return picked(picks, selector, self.variant, bias.shape[-1])

        return select


def called_by_number(fn: HookFunction, number: int, tensor: Tensor, hook: Any) -> Any:
    """Return what a hook does, called by the name that its hook point has in the layer of a
    number (FIRE-4)."""
    if hook is None:
        return fn(tensor, hook=None)
    name = hook.name.replace("blocks.0.", f"blocks.{number}.", 1)
    return fn(tensor, hook=SimpleNamespace(**{**vars(hook), "name": name}))


def refuse_unknown(names: Sequence[str], there: Sequence[str]) -> None:
    """Refuse a hook at a point that the layer does not have: it would never fire (FIRE-3)."""
    unknown = sorted(set(names) - set(there))
    if unknown:
        raise UnknownHook(
            f"the layer has no hook point {', '.join(unknown)} (clause FIRE-3); it has"
            f" {', '.join(there)}"
        )


def with_earlier(
    tables: tuple[Tensor, Tensor], given: tuple[Tensor, Tensor] | None
) -> list[Tensor]:
    """Return the tables of this call after those of earlier positions, where the layer is handed
    those too (POS-1)."""
    assert given is not None
    return [
        torch.cat([whole[..., : -own.shape[-2], :], own], dim=-2)
        for whole, own in zip(given, tables, strict=True)
    ]


@dataclass(frozen=True)
class Factory:
    """Make subjects of the reference; a mutant gives it other stages, other weights, another way to
    show a value to its hooks, something around each call, or another way to read what it is called
    with.

    families: what `describe` knows. unsupported: what it declares not to have.
    """

    name: str = "reference"
    stages: Stages = STAGES
    show: Show = show
    weights: Callable[[Weights, Variant], Weights] = weights_as_they_are
    around: Callable[[ReferenceLayer], Run] = as_it_is
    read: Callable[[Mapping[str, Any], Variant], Mapping[str, Any]] = by_role
    families: Mapping[str, Family | Variant] = field(default_factory=lambda: FAMILIES)
    unsupported: Mapping[str, str] = field(default_factory=lambda: GAPS)

    def layer(
        self, module: nn.Module, *, rotary: nn.Module, opted_in: Sequence[OptIn] = ()
    ) -> ReferenceLayer:
        """Return the reference around an attention module."""
        return ReferenceLayer(
            module, rotary, describe(module, self.families), tuple(opted_in), self
        )
