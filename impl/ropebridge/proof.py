"""Calls by which a bridge is proved: one of all positions, and a decode with a cache, as the
wrapped class is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache

from ropebridge.inputs import SOURCE
from ropebridge.memory import cache_of_own_sequence
from ropebridge_spec import (
    Variant,
    accepted_arguments,
    by_role,
    cache_layer,
    own_names,
    shared_key,
)

if TYPE_CHECKING:
    from ropebridge.bridge import PositionEmbeddingsAttentionBridge

BATCH, POS, LEFT_PADDING = 2, 12, 2
SPANS = ((0, 8), (8, 9), (9, 12))
"""A prefill, one step, and three positions at once after a cache."""
EARLIER = 3
"""How many positions lie in a cache that a layer only reads."""


@dataclass(frozen=True)
class ProofCall:
    """Hold one call of a proof.

    module_inputs, bridge_inputs: what the module and the bridge are called with, by the names of
        the class's own signature; the same but for the cache.
    caches: the module's cache and the bridge's, and which layer of them is this one's; None where
        the call has none.
    """

    module_inputs: dict[str, Any]
    bridge_inputs: dict[str, Any]
    caches: tuple[Any, Any, int] | None = None


def proof_calls(twin: PositionEmbeddingsAttentionBridge) -> Iterator[ProofCall]:
    """Yield the calls in order: all positions without a cache, and where the class takes a cache
    those of `SPANS` with one.

    A layer that is handed an earlier layer's keys and values (KV-1) reads no cache, and one that
    only reads a cache is called once with it.
    """
    variant, names = twin.variant, own_names(type(twin.wrapped), twin.variant)
    given = {
        **by_role(twin.get_random_inputs(BATCH, POS, seed=0, left_padding=LEFT_PADDING), variant),
        "cache": None,
    }
    yield ProofCall(
        arguments(twin, with_empty_mapping(given, variant)),
        arguments(twin, with_empty_mapping(given, variant)),
    )
    if names["cache"] is None or variant.shared_kv_argument is not None:
        return
    layer = cache_layer(twin.wrapped, given.get(variant.calling.layer or ""))
    ours, theirs = new_cache(twin, layer), new_cache(twin, layer)
    for start, stop in SPANS if variant.calling.extends_cache else ((0, POS),):
        span = cut_inputs(given, variant, start, stop, theirs, layer)
        by_module, by_bridge = (
            {**with_empty_mapping(span, variant), "cache": cache} for cache in (theirs, ours)
        )
        yield ProofCall(
            arguments(twin, by_module), arguments(twin, by_bridge), (theirs, ours, layer)
        )


def arguments(twin: PositionEmbeddingsAttentionBridge, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the wrapped class's forward takes, by its own names; None for what it must be
    given and is not."""
    kind = type(twin.wrapped)
    names = own_names(kind, twin.variant)
    named = ((names.get(role, role), value) for role, value in given.items())
    return accepted_arguments(kind, {name: value for name, value in named if name is not None})


def new_cache(twin: PositionEmbeddingsAttentionBridge, layer: int) -> Any:
    """Return a cache such as the model around would make; one that a layer only reads holds
    `EARLIER` positions."""
    variant, config = twin.variant, getattr(twin.wrapped, "config", None)
    cache: Any = (
        DynamicCache()
        if config is None or variant.source is not None
        else DynamicCache(config=config)
    )
    if layer >= len(cache.layers):
        cache = DynamicCache()
    if variant.source is not None and variant.source.place == "after":
        return EncoderDecoderCache(cache, DynamicCache())
    if not variant.calling.extends_cache:
        draw, like = torch.Generator().manual_seed(1), next(twin.wrapped.parameters())
        shapes = [
            (BATCH, variant.kv_heads, EARLIER, width)
            for width in (variant.d_head, variant.d_head_v)
        ]
        keys, values = (
            torch.randn(shape, generator=draw, dtype=torch.float64).to(like.device)
            for shape in shapes
        )
        cache.update(keys, values, layer)
    return cache


def with_empty_mapping(span: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """Return the same inputs, with an empty mapping of their own to leave keys and values in
    (KV-1)."""
    leaves_in = variant.calling.kept_kv_argument
    return {**span, leaves_in: {}} if leaves_in is not None else dict(span)


def cut_inputs(
    given: Mapping[str, Any], variant: Variant, start: int, stop: int, cache: Any, layer: int
) -> dict[str, Any]:
    """Return the inputs of the positions from start to stop, which see keys up to stop, as far as
    the cache still holds them.

    Another sequence comes whole: once, where its keys go into the same cache; in every call, where
        they are cached by themselves.
    """
    before = variant.source is not None and variant.source.place == "before"
    rows = slice(
        0 if variant.calling.tables_of == "keys" or start == 0 else start + SOURCE * before,
        stop + SOURCE * before,
    )
    cut = {
        name: cut_along(name, value, variant, slice(start, stop)) for name, value in given.items()
    }
    cut["hidden_states"] = given["hidden_states"][:, start:stop]
    cut["position_embeddings"] = rows_of(given["position_embeddings"], rows)
    mask = given["attention_mask"].expand(-1, -1, POS, -1)  # (batch, 1, query, key)
    cut["attention_mask"] = mask_of_keys(mask[:, :, start:stop], variant, stop, cache, layer)
    if variant.source is not None:
        states = given[variant.source.argument]
        cut[variant.source.argument] = states[:, :0] if before and start else states
    return cut


def cut_along(name: str, value: Any, variant: Variant, span: slice) -> Any:
    """Return the positions of an input that a family adds: ids, temperatures, picks, what is added
    to the value."""
    temperature = variant.temperature
    if not isinstance(value, Tensor):
        return value
    return (
        value[:, :, span]
        if temperature is not None and name == temperature.factor_argument
        else value[:, span]
    )


def rows_of(tables: Any, rows: slice) -> Any:
    """Return the tables of some positions."""
    if isinstance(tables, Tensor):
        return tables[..., rows, :]
    return tables and tuple(table[..., rows, :] for table in tables)


def mask_of_keys(mask: Tensor, variant: Variant, stop: int, cache: Any, layer: int) -> Tensor:
    """Return the mask (batch, 1, query, key) of the keys up to stop that the cache gives back, and
    of another sequence's."""
    source, beyond = variant.source, mask[..., :0]
    if not variant.calling.extends_cache:
        return F.pad(mask, (EARLIER, 0), value=0.0)
    if source is not None and source.place == "before":
        return mask[..., : stop + SOURCE]
    if source is not None:
        mask, beyond = mask[..., :-SOURCE], mask[..., -SOURCE:]
        cache = cache_of_own_sequence(cache)
    held, first = cache.get_mask_sizes(mask.shape[2], layer)
    return torch.cat([mask[..., first : first + held], beyond], dim=-1)


def cached_tensors(cache: Any, layer: int) -> dict[str, Tensor]:
    """Return what a cache holds of a layer's own positions: name -> (batch, head, key, width)."""
    own = cache_of_own_sequence(cache).layers[layer]
    return {
        name: value
        for name, value in vars(own).items()
        if isinstance(value, Tensor) and value.ndim == 4
    }


def kv_for_later_layers(
    inputs: Mapping[str, Any], module: Any, variant: Variant
) -> dict[str, Tensor]:
    """Return the keys and values (batch, kv_head, key, width) that a call left for later layers
    (KV-1); nothing where it leaves none."""
    name = variant.calling.kept_kv_argument
    if name is None:
        return {}
    keys, values = inputs[name][shared_key(module)]
    return {"keys": keys, "values": values}
