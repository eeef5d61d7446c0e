"""The executable spec as a subject: reads the weights off the wrapped module and calls the reference's functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from ropebridge_conformance.scenarios import CallInputs, tables_of
from ropebridge_conformance.visibility import bias_of
from ropebridge_conformance.weights import read_weights
from ropebridge_reference import STAGES, Past, Stages, attention
from ropebridge_spec import FAMILIES, Family, HookFunction, OptIn, Variant, describe, shared_key

Show = Callable[[str, Tensor, Sequence[HookFunction]], Tensor]


def show(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
    """Show a copy to each hook in turn; the layer goes on with what they leave."""
    value = value.clone() if hooks else value
    for fn in hooks:
        replacement = fn(value, hook=SimpleNamespace(name=f"blocks.0.attn.{name}"))
        value = value if replacement is None else replacement
    return value


@dataclass(frozen=True)
class ReferenceLayer:
    """The reference around one attention module."""

    module: nn.Module
    variant: Variant
    opted_in: tuple[OptIn, ...]
    stages: Stages
    show: Show

    def run(self, inputs: Mapping[str, Any], hooks: Sequence[tuple[str, HookFunction]] = ()) -> tuple[Tensor, Tensor | None]:
        """One call; a transformers cache in `inputs["past_key_values"]` is read, and extended."""
        x, cache = inputs["hidden_states"], inputs.get("past_key_values")
        call = CallInputs(inputs, 0, 0)
        past = call.given_kv(self.variant) or self._past(cache)
        first = 0 if past is None else past.key.shape[1] - (x.shape[1] if self.variant.kv_given else 0)
        bias = bias_of(inputs["attention_mask"], first, x.shape[1], self.variant, x.device, self.stages)

        def at(name: str, value: Tensor) -> Tensor:
            return self.show(name, value, [fn for hook, fn in hooks if hook == name])

        made = attention(
            x,
            tables_of(inputs["position_embeddings"]),
            bias,
            read_weights(self.module, self.variant),
            self.variant,
            positions=replace(call, first_query=first).positions(self.variant),
            past=past,
            opted_in=self.opted_in,
            at=at,
            stages=self.stages,
        )
        if self.variant.calling.kv_left is not None:
            inputs[self.variant.calling.kv_left][shared_key(self.module)] = tuple(t.transpose(1, 2) for t in (made.past.key, made.past.value))
        if cache is not None and not self.variant.kv_given:
            layer: Any = self.module.layer_idx
            cache.update(*(t[:, first:].transpose(1, 2) for t in (made.past.key, made.past.value)), layer)
        return made.out, made.pattern if inputs.get("output_attentions") else None

    def _past(self, cache: Any) -> Past | None:
        layer: Any = getattr(self.module, "layer_idx", 0)
        if cache is None or cache.get_seq_length(layer) == 0:
            return None
        held = cache.layers[layer]
        return Past(held.keys.transpose(1, 2), held.values.transpose(1, 2))


@dataclass(frozen=True)
class Factory:
    """The reference as a subject; a mutant gives it other stages, or another way to show a value to its hooks.

    families: what `describe` knows.
    """

    name: str = "reference"
    stages: Stages = STAGES
    show: Show = show
    families: Mapping[str, Family | Variant] = field(default_factory=lambda: FAMILIES)

    @property
    def unsupported(self) -> Mapping[str, str]:
        """The reference has everything."""
        return {}

    def layer(self, module: nn.Module, *, rotary: nn.Module, opted_in: Sequence[OptIn] = ()) -> ReferenceLayer:
        """The reference around an attention module."""
        return ReferenceLayer(module, describe(module, self.families), tuple(opted_in), self.stages, self.show)
