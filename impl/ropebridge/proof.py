"""Calls by which a bridge is proved: one of all positions, a decode with a cache, one that reaches
beyond every length in the layer and its config, and those of the model's own implementation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache

from ropebridge.inputs import SOURCE, random_inputs
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
FEW = 3
"""How many positions a call has that reaches far."""
FARTHEST = 2**24
"""Positions that float32 can tell from the next."""
MOST_KEYS = 2**13
"""The greatest length that a call reaches beyond by keys; greater ones it reaches by positions."""
ROOM = 2**29
"""How many bytes the keys and values of all heads may take, in a call that reaches far."""


Caches = tuple[Any, Any, int]
"""The module's cache and the bridge's, and which layer of them is this one's."""


@dataclass(frozen=True)
class ProofCall:
    """Hold one call of a proof.

    module_inputs, bridge_inputs: what the module and the bridge are called with, by the names of
        the class's own signature; the same but for the cache.
    caches: the module's cache and the bridge's, and which layer of them is this one's; None where
        the call has none.
    implementation: by which the module attends.
    last: the last position of the call, or how many keys it sees, whichever is more.
    optional: the module may refuse it: one that cannot run without a mask is never without.
    """

    module_inputs: dict[str, Any]
    bridge_inputs: dict[str, Any]
    caches: Caches | None = None
    implementation: str = "eager"
    last: int = POS
    optional: bool = False


def proof_calls(twin: PositionEmbeddingsAttentionBridge, own: str | None) -> Iterator[ProofCall]:
    """Yield the calls in order: all positions without a cache; where the class takes a cache, those
    of `SPANS` with one; one that reaches far; and those of the model's own implementation.

    Args:
        own: by what the model attends: eager, sdpa, flex_attention, or None.
    """
    given = {
        **by_role(
            twin.get_random_inputs(BATCH, POS, seed=0, left_padding=LEFT_PADDING), twin.variant
        ),
        "cache": None,
    }
    yield plain_call(twin, given)
    caches = None
    if takes_cache(twin):
        for call in decoding_calls(twin, given):
            yield call
            caches = call.caches
    # what a graph of flex attention costs to compile is not worth a proof of its own
    by_sdpa = own == "sdpa" and twin.variant.softcap is None
    if twin.variant.selector is None:  # which picks among keys by their positions
        yield far_call(twin, "sdpa" if by_sdpa else "eager", caches)
    if by_sdpa:
        yield plain_call(twin, given, "sdpa")
    if sees_the_same_unmasked(twin.variant, by_sdpa):
        call = plain_call(twin, inputs_without_mask(twin), "sdpa" if by_sdpa else "eager")
        yield replace(call, optional=True)


def plain_call(
    twin: PositionEmbeddingsAttentionBridge,
    given: Mapping[str, Any],
    implementation: str = "eager",
    last: int = POS,
) -> ProofCall:
    """Return one call of all positions, without a cache."""
    by_module, by_bridge = (
        arguments(twin, with_empty_mapping(given, twin.variant)) for _ in ("module", "bridge")
    )
    return ProofCall(by_module, by_bridge, implementation=implementation, last=last)


def takes_cache(twin: PositionEmbeddingsAttentionBridge) -> bool:
    """Return whether a layer takes a cache; one that is handed an earlier layer's keys and values
    (KV-1) reads none."""
    names = own_names(type(twin.wrapped), twin.variant)
    return names["cache"] is not None and twin.variant.shared_kv_argument is None


def sees_the_same_unmasked(variant: Variant, by_sdpa: bool) -> bool:
    """Return whether a layer without a mask means what its contract says (MASK-2): eager attention
    then sees everything, sdpa everything that is not later, and windows stand in masks alone."""
    if variant.source is not None or variant.key_bias is not None:
        return False
    if not variant.causal:
        return variant.window is None and variant.chunk is None
    by_itself = variant.window is None and variant.chunk is None and variant.selector is None
    return by_sdpa and by_itself


def inputs_without_mask(twin: PositionEmbeddingsAttentionBridge) -> dict[str, Any]:
    """Return inputs without a mask; where the config makes an encoder of the layer, with what the
    model around then passes."""
    given = {
        **by_role(twin.get_random_inputs(BATCH, POS, seed=0), twin.variant),
        "cache": None,
        "attention_mask": None,
    }
    says = getattr(twin.config_in_force, "is_causal", None)
    return given if says is None else {**given, "is_causal": says}


def far_call(
    twin: PositionEmbeddingsAttentionBridge, implementation: str, caches: Caches | None
) -> ProofCall:
    """Return a call at positions beyond every number in the module and its config: few, after so
    many keys in a cache as there is room for, where they can be made up; else without any.

    Args:
        caches: what a decode left, of the module and of the bridge: Falcon caches a key head for
            every query head.
    """
    variant = twin.variant
    farthest = max(number for _, number in numbers_of(twin.wrapped))
    first = min(farthest, table_rows(twin) - POS - 1)
    earlier = many_keys(variant, lengths_of(twin.wrapped)) if can_make_up_cache(twin) else 0
    inputs = random_inputs(
        twin, 1, FEW if earlier else POS, None, None, 0, None, left_padding=0, first=first
    )
    given = {**by_role(inputs, variant), "cache": None}
    last = max(first + POS, earlier + POS)
    if not earlier:
        return plain_call(twin, given, implementation, last)
    layer = cache_layer(twin.wrapped, given.get(variant.calling.layer or ""))
    mask = F.pad(given["attention_mask"].expand(-1, -1, FEW, -1), (earlier, 0), value=0.0)
    theirs, ours = DynamicCache(), DynamicCache()
    heads_apart = 1
    if caches is not None:
        left, made = (cached_tensors(cache, layer)["keys"] for cache in caches[:2])
        heads_apart = left.shape[1] // made.shape[1]
    fill(theirs, twin, 1, earlier, layer, copies=heads_apart)
    fill(ours, twin, 1, earlier, layer)
    by_module, by_bridge = (
        arguments(
            twin, {**with_empty_mapping(given, variant), "attention_mask": mask, "cache": cache}
        )
        for cache in (theirs, ours)
    )
    return ProofCall(by_module, by_bridge, (theirs, ours, layer), implementation, last)


def can_make_up_cache(twin: PositionEmbeddingsAttentionBridge) -> bool:
    """Return whether a cache of the layer holds keys and values of heads and nothing else, so that
    any numbers will do."""
    variant = twin.variant
    return (
        takes_cache(twin)
        and variant.calling.extends_cache
        and variant.latent is None
        and variant.selector is None
        and variant.source is None
    )


def many_keys(variant: Variant, lengths: Sequence[int]) -> int:
    """Return one more than the largest length whose keys there is room for."""
    room = ROOM // (8 * variant.heads * (variant.d_head + variant.d_head_v))
    most = max(min(room - 1, MOST_KEYS), POS)
    return 1 + max(length for length in lengths if length <= most)


NO_LENGTHS = ("theta", "vocab", "token", "hidden_size", "intermediate_size")
"""Parts of the names of numbers that no class counts keys by: to reach beyond them costs time."""


def lengths_of(module: Any) -> list[int]:
    """Return the whole numbers that a module and its config hold and that may count keys; at least
    `POS`."""
    named = numbers_of(module)
    return [
        POS,
        *(number for name, number in named if not any(part in name for part in NO_LENGTHS)),
    ]


def numbers_of(module: Any) -> list[tuple[str, int]]:
    """Return the whole numbers that a module and its config hold, from `POS` on, each with its
    name: every length that its forward could know of is among them."""
    config: Any = getattr(module, "config", None)
    held = (vars(module), config.to_dict() if hasattr(config, "to_dict") else {})
    found = [pair for values in held for pair in whole_numbers("", values)]
    return [("", POS), *((name, number) for name, number in found if POS < number < FARTHEST)]


def whole_numbers(name: str, value: Any) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers in a value of this name, and in the items of mappings and
    sequences."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from whole_numbers(str(key), item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from whole_numbers(name, item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1:
        yield name, int(value)


def table_rows(twin: PositionEmbeddingsAttentionBridge) -> int:
    """Return for how many positions there are tables: of a module that keeps them in a buffer as
    many as it has rows, of others any number."""
    buffer = twin.variant.calling.table_buffer
    if buffer is not None:
        return int(getattr(twin.wrapped, buffer).shape[0])
    if twin.rotary_emb is None:
        return FARTHEST
    held = chain(twin.rotary_emb.parameters(), twin.rotary_emb.buffers())
    return min((int(table.shape[0]) for table in held if table.ndim > 1), default=FARTHEST)


def decoding_calls(
    twin: PositionEmbeddingsAttentionBridge, given: Mapping[str, Any]
) -> Iterator[ProofCall]:
    """Yield the calls of `SPANS` with a cache; of a layer that only reads a cache, one with it."""
    variant = twin.variant
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
        fill(cache, twin, BATCH, EARLIER, layer)
    return cache


def fill(
    cache: Any,
    twin: PositionEmbeddingsAttentionBridge,
    batch: int,
    keys: int,
    layer: int,
    *,
    copies: int = 1,
) -> None:
    """Put made-up keys and values (batch, kv_head, key, width) into a layer of a cache: the same
    each time, and of each head so many copies."""
    draw, like = torch.Generator().manual_seed(1), next(twin.wrapped.parameters())
    widths = (twin.variant.d_head, twin.variant.d_head_v)
    shapes = [(batch, twin.variant.kv_heads, keys, width) for width in widths]
    made = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    made = [tensor.repeat_interleave(copies, dim=1).to(like.device) for tensor in made]
    cache.update(made[0], made[1], layer)


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
