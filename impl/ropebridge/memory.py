"""Keys and values of all positions (clauses CACHE-1, EDIT-4, KV-1, KV-2): of this call, of a cache,
of another layer, of another sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ropebridge.calls import Call
from ropebridge_spec import ContractError, Variant, shared_key

Pair = tuple[Tensor, Tensor]
"""Keys and values, each (batch, kv_head, key, width)."""


def read_shared_kv(call: Call, module: nn.Module) -> Pair:
    """Return the keys and values that an earlier layer left (KV-1)."""
    keys, values = call.shared_kv[shared_key(module)]
    return keys, values


def remember(own: Pair, call: Call, module: nn.Module, variant: Variant) -> Pair:
    """Return this call's keys and values after those of earlier calls, left in the cache as the
    family leaves them (CACHE-1, EDIT-4), and for later layers (KV-1)."""
    pair = own
    if call.cache is not None and variant.source is not None and variant.source.place == "after":
        pair = extend_both_caches(own, call)
    elif call.cache is not None and variant.calling.extends_cache:
        pair = extend_cache(own, call)
    elif call.cache is not None:
        pair = read_cache(call.cache.layers[call.cache_layer], own)
    if variant.calling.kept_kv_argument is not None:
        call.shared_kv[shared_key(module)] = pair
    return pair


def extend_cache(own: Pair, call: Call) -> Pair:
    """Return own keys and values after those in the cache, updated as the wrapped class updates it
    (CACHE-1).

    Raises:
        ContractError: the cache changed the arguments of the call, as paged caches do for a kernel
            of their own.
    """
    passed_on = {name: dict(arguments) for name, arguments in call.update_with.items()}
    cache = cache_of_own_sequence(call.cache)
    keys, values = cache.update(*own, call.cache_layer, **passed_on)
    if any(differ(arguments, call.update_with[name]) for name, arguments in passed_on.items()):
        raise ContractError(
            f"a cache of the class {type(call.cache).__name__} changed the arguments of the call it"
            " was handed; clause ARG-1 refuses paged caches: generate with a DynamicCache or a"
            " StaticCache"
        )
    return keys, values


def cache_of_own_sequence(cache: Any) -> Any:
    """Return the cache of a layer's own positions; RoFormer may be handed those of two
    sequences."""
    return getattr(cache, "self_attention_cache", cache)


def differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two mappings hold other objects, or under other names."""
    return one.keys() != other.keys() or any(one[name] is not other[name] for name in one)


def extend_both_caches(own: Pair, call: Call) -> Pair:
    """Return own keys and values, then those of another sequence, which are cached apart and made
    once (KV-2)."""
    pos, layer, held = (
        call.hidden_states.shape[1],
        call.cache_layer,
        call.cache.cross_attention_cache,
    )
    mine = call.cache.self_attention_cache.update(own[0][:, :, :pos], own[1][:, :, :pos], layer)
    if call.source is not None:
        held.update(own[0][:, :, pos:], own[1][:, :, pos:], layer)
        call.cache.is_updated[layer] = True
    beyond = held.layers[layer]
    return torch.cat([mine[0], beyond.keys], dim=2), torch.cat([mine[1], beyond.values], dim=2)


def read_cache(layer: Any, own: Pair) -> Pair:
    """Return keys and values after those that lie in a layer of a cache, which stays as it is; in a
    static layer before its empty places."""
    held = int(layer.cumulative_length) if layer.is_compileable else layer.keys.shape[2]
    keys, values = (
        torch.cat([old[:, :, :held], new, old[:, :, held:]], dim=2)
        for old, new in ((layer.keys, own[0]), (layer.values, own[1]))
    )
    return keys, values
