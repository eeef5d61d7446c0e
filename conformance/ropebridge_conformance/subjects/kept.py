"""Keys and values that a call of the reference finds: in a transformers cache, or handed down by an
earlier layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ropebridge_conformance.zoo.calls import CallInputs
from ropebridge_conformance.zoo.visibility import Span
from ropebridge_reference import Past
from ropebridge_spec import Variant


@dataclass(frozen=True)
class Kept:
    """Hold what earlier calls left of a layer.

    past: the keys and values; None where there are none. before: how many of them are not this
        call's.
    first_key: the position of the first. queries: how many positions this call has.
    room: how many keys more a static cache gives back, which are not written yet.
    """

    past: Past | None
    before: int
    first_key: int
    queries: int
    room: int

    @property
    def first_query(self) -> int:
        """Return the position of the call's first query."""
        return self.first_key + self.before

    @property
    def span(self) -> Span:
        """Return where queries and keys stand."""
        keys = self.before + self.queries + self.room
        return Span(self.first_query, self.queries, self.first_key, keys)


def read_cache(inputs: Mapping[str, Any], variant: Variant, layer: int) -> Kept:
    """Return what a call finds of this layer, by the contract's names of its arguments."""
    pos, cache = inputs["hidden_states"].shape[1], inputs.get("cache")
    handed_down = CallInputs(inputs, first_query=0, keys=0).given_kv(variant)
    if handed_down is not None:
        # its own positions are the last of them
        return Kept(handed_down, handed_down.key.shape[1] - pos, 0, pos, 0)
    if cache is None:
        return Kept(None, 0, 0, pos, 0)
    seen = int(cache.get_seq_length(layer))
    held = cache.layers[layer] if seen else None
    before = 0 if held is None else min(seen, held.keys.shape[2])
    given_back, _ = cache.get_mask_sizes(pos, layer)
    room = max(int(given_back) - before - pos, 0)
    if held is None:
        return Kept(None, 0, 0, pos, room)
    key, value = (heads[:, :, :before].transpose(1, 2) for heads in (held.keys, held.values))
    return Kept(Past(key, value), before, seen - before, pos, room)
