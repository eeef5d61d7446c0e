"""Faults of what is cached, and of how it is read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.mutants.applies import (
    all_of,
    has,
    in_scenarios,
    many_kv_heads,
    opts_in_to_nothing,
    precise,
    reads_own_cache,
    rotates,
    shares_nothing,
    tables_in_pairs,
)
from ropebridge_conformance.mutants.mutant import (
    EDITS,
    STEPS,
    Around,
    Mutant,
    change,
    given_other,
)
from ropebridge_conformance.subjects.parts import Hooks
from ropebridge_conformance.subjects.reference import ReferenceLayer, Run
from ropebridge_conformance.zoo.calls import cache_layer
from ropebridge_conformance.zoo.scenarios import SPARE
from ropebridge_reference import (
    causal_bias,
    make_pattern,
    rotate,
    turns,
)
from ropebridge_spec import Variant


def recall_new_first(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat([new, past], dim=1)


def recall_one_short(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat([past[:, :1], past[:, :-1], new], dim=1)


def recall_the_next_row(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat([past.roll(1, 0), new], dim=1)


def recall_without_the_oldest(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(past[:, :1]), past[:, 1:], new], dim=1)


def recall_in_other_heads(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat([past.roll(1, 2), new], dim=1)


def recall_in_bfloat16(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat([past.bfloat16().to(new.dtype), new], dim=1)


Rewrite = Callable[[ReferenceLayer, Mapping[str, Any], Tensor, Tensor], tuple[Tensor, Tensor]]


def caches(wrong: Rewrite) -> Around:
    """Make a fault: what a call adds to the cache is rewritten: keys and values (batch kv_head pos
    width)."""

    def around(layer: ReferenceLayer) -> Run:
        def run(
            inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
        ) -> tuple[Tensor, Tensor | None]:
            made, cache = layer.call(inputs, hooks, backward), inputs.get("cache")
            if cache is not None:
                held, pos = (
                    cache.layers[cache_layer(inputs, layer.module, layer.variant)],
                    inputs["hidden_states"].shape[1],
                )
                held.keys[:, :, -pos:], held.values[:, :, -pos:] = wrong(
                    layer, inputs, held.keys[:, :, -pos:], held.values[:, :, -pos:]
                )
            return made

        return run

    return around


def key_rotated_again(
    layer: ReferenceLayer, inputs: Mapping[str, Any], keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    rotary, tables = layer.variant.rotary, inputs["position_embeddings"]
    assert rotary is not None
    return (
        rotate(keys.transpose(1, 2), turns(tables[0], tables[1], rotary), rotary).transpose(1, 2),
        values,
    )


def values_forgotten(
    layer: ReferenceLayer, inputs: Mapping[str, Any], keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    return keys, torch.zeros_like(values)


def last_of_several_cached(
    layer: ReferenceLayer, inputs: Mapping[str, Any], keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    seen = inputs["cache"].get_seq_length(cache_layer(inputs, layer.module, layer.variant))
    if seen == keys.shape[2]:
        return keys, values
    last = torch.arange(keys.shape[2], device=keys.device)[:, None] == keys.shape[2] - 1
    return keys * last, values * last


def steps_count_from_zero(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query - query[0], key, reach)


def steps_see_all(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    last = query if query[0] == 0 else query[-1].expand_as(query)
    return causal_bias(last, key, reach)


def steps_forget_the_window(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query, key, reach if query[0] == 0 else replace(reach, window=None))


def window_counts_from_the_first_key_kept(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query, key - key[0], reach)


def unwritten_keys_take_part(s: Tensor, sinks: Tensor | None) -> Tensor:
    room = s.new_zeros((*s.shape[:3], SPARE))
    return make_pattern(torch.cat([s, room], -1), sinks)[..., : s.shape[-1]]


def padding_in_the_first_call_alone(
    layer: ReferenceLayer, inputs: Mapping[str, Any]
) -> Mapping[str, Any]:
    mask = inputs["attention_mask"]
    first = mask.shape[-1] == mask.shape[-2]
    return inputs if first else {**inputs, "attention_mask": torch.ones_like(mask)}


def keys_as_they_were(layer: ReferenceLayer) -> Run:
    """Make a fault: the cache is given keys and values that no hook has edited."""

    def run(
        inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        cache = inputs.get("cache")
        if cache is None:
            return layer.call(inputs, hooks, backward)
        beside = copy.deepcopy(cache)
        made = layer.call({**inputs, "cache": beside}, hooks, backward)
        layer.call(inputs, [], [])
        return made

    return run


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "cache_reversed",
        "cached keys come after the new ones",
        "hook_attn_scores",
        reads_own_cache,
        change(recall=recall_new_first),
        also=("hook_z",),
        clause="CACHE-1",
    ),
    Mutant(
        "cache_shifted",
        "each cached key stands one place late",
        "hook_attn_scores",
        reads_own_cache,
        change(recall=recall_one_short),
        also=("hook_z",),
        clause="CACHE-1",
    ),
    Mutant(
        "cached_rows_swapped",
        "each row of the batch reads the cache of another",
        "hook_attn_scores",
        reads_own_cache,
        change(recall=recall_the_next_row),
        also=("hook_z",),
        clause="CACHE-1",
        foil=False,
    ),
    Mutant(
        "oldest_lost",
        "the oldest key of the cache is nought",
        "hook_attn_scores",
        reads_own_cache,
        change(recall=recall_without_the_oldest),
        clause="CACHE-1",
        foil=False,
    ),
    Mutant(
        "cached_heads_rolled",
        "cached keys stand at the next head",
        "hook_attn_scores",
        all_of(reads_own_cache, many_kv_heads),
        change(recall=recall_in_other_heads),
        also=("hook_z",),
        clause="CACHE-1",
        foil=False,
    ),
    Mutant(
        "cached_in_bfloat16",
        "the cache is rounded to bfloat16",
        "hook_attn_scores",
        all_of(reads_own_cache, precise),
        change(recall=recall_in_bfloat16),
        also=("hook_z",),
        clause="CACHE-1",
        foil=False,
    ),
    Mutant(
        "cached_key_rotated_twice",
        "keys are rotated again on their way into the cache",
        "hook_attn_scores",
        all_of(reads_own_cache, rotates, tables_in_pairs),
        around=caches(key_rotated_again),
        clause="CACHE-1",
    ),
    Mutant(
        "values_not_cached",
        "the cache holds no values",
        "hook_z",
        reads_own_cache,
        around=caches(values_forgotten),
        clause="CACHE-1",
    ),
    Mutant(
        "steps_count_from_zero",
        "without a mask the positions of a step count from 0",
        "hook_attn_scores",
        in_scenarios("decode_no_mask", "decode_several"),
        change(causal_bias=steps_count_from_zero),
        clause="CACHE-1",
        arms=STEPS,
    ),
    Mutant(
        "steps_see_all",
        "several positions after a cache see one another whatever their order",
        "hook_attn_scores",
        all_of(shares_nothing, in_scenarios("decode_several", "decode_static")),
        change(causal_bias=steps_see_all),
        clause="CACHE-1",
        arms=STEPS,
    ),
    Mutant(
        "steps_forget_the_window",
        "a window holds in the first call alone",
        "hook_attn_scores",
        all_of(has("window"), in_scenarios("decode_several", "decode_into_window")),
        change(causal_bias=steps_forget_the_window),
        clause="CACHE-1",
        arms=STEPS,
    ),
    Mutant(
        "window_counts_from_the_first_key_kept",
        "the first key that a sliding cache kept is taken for position 0",
        "hook_attn_scores",
        all_of(has("window"), in_scenarios("decode_sliding")),
        change(causal_bias=window_counts_from_the_first_key_kept),
        clause="CACHE-1",
        arms=STEPS,
    ),
    Mutant(
        "unwritten_keys_take_part",
        "keys that a static cache has room for take part in the softmax",
        "hook_pattern",
        in_scenarios("decode_static", "decode_static_mask"),
        change(make_pattern=unwritten_keys_take_part),
        clause="CACHE-1",
        arms=STEPS,
        foil=False,
    ),
    Mutant(
        "padding_in_the_first_call_alone",
        "the mask of a step is not read",
        "hook_attn_scores",
        in_scenarios("decode_left_padding"),
        around=given_other(padding_in_the_first_call_alone),
        clause="CACHE-1",
        arms=STEPS,
    ),
    Mutant(
        "last_of_several_cached",
        "of several positions after a cache only the last is kept",
        "hook_attn_scores",
        all_of(in_scenarios("decode_several"), reads_own_cache),
        around=caches(last_of_several_cached),
        clause="CACHE-1",
        arms=STEPS,
    ),
    Mutant(
        "edits_not_cached",
        "the cache is given keys and values that no hook has edited",
        "hook_attn_scores",
        all_of(reads_own_cache, opts_in_to_nothing, shares_nothing),
        around=keys_as_they_were,
        clause="EDIT-4",
        arms=EDITS,
    ),
)
