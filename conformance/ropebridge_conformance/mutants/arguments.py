"""Faults of what a call is handed: each argument of the table is ignored in turn (ARG-1), or what
nobody knows is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.mutants.applies import (
    Applies,
    all_of,
    always,
    has,
    has_mask,
    has_one_sequence,
    has_padding,
    in_scenarios,
    is_causal,
    owns_tables,
    reads_own_cache,
    rotates,
    tables_by_row,
    temperature_of_ids,
)
from ropebridge_conformance.mutants.mutant import Around, Mutant, given_other
from ropebridge_conformance.subjects.parts import Hooks
from ropebridge_conformance.subjects.reference import ReferenceLayer, Run
from ropebridge_conformance.zoo.calls import tables_for
from ropebridge_spec import Variant, arguments_of, by_role
from ropebridge_spec.arguments import RENAMED

HELD = ("a_step_leaves_its_positions_in_the_cache",)
RETURNED = ("returned_weights_are_the_pattern",)
UNDERSTOOD = ("an_argument_that_is_not_understood_is_refused",)
Name = Callable[[Variant], str | None]


def without(name: str) -> Around:
    """Make a fault: the layer is called as if this argument had not been passed."""
    return given_other(
        lambda layer, inputs: {key: value for key, value in inputs.items() if key != name}
    )


def cache_dropped(layer: ReferenceLayer, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Make a fault: the cache is ignored, and of the mask what stands for the keys of this call is
    read."""
    mask, pos = inputs["attention_mask"], inputs["hidden_states"].shape[1]
    return {**inputs, "cache": None, "attention_mask": None if mask is None else mask[..., -pos:]}


def nothing_in(name: Name) -> Around:
    """Make a fault: the layer reads zeros in place of what an argument of its family holds."""

    def ignore(layer: ReferenceLayer, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        argument = name(layer.variant)
        assert argument is not None
        return {**inputs, argument: inputs[argument] * 0}

    return given_other(ignore)


def tables_of_its_own(layer: ReferenceLayer, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Make a fault: the tables handed down are ignored, and made again of positions that count on
    from the cache."""
    x, cache = inputs["hidden_states"], inputs.get("cache")
    first = (
        0 if cache is None else cache.get_seq_length(getattr(layer.module, "layer_idx", None) or 0)
    )
    ids = torch.arange(first, first + x.shape[1], device=x.device)[None]
    return {
        **inputs,
        "position_embeddings": tables_for(layer.module, layer.rotary, layer.variant, x, ids),
    }


def no_weights_returned(layer: ReferenceLayer) -> Run:
    """Make a fault: weights are not returned, whoever asks for them."""

    def run(
        inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        return layer.call(inputs, hooks, backward)[0], None

    return run


def earlier_keys_zero(layer: ReferenceLayer, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Make a fault: an earlier layer's keys and values are taken for 0."""
    name = layer.variant.shared_kv_argument
    assert name is not None
    return {**inputs, name: {kind: (k * 0, v * 0) for kind, (k, v) in inputs[name].items()}}


def temperature_one(layer: ReferenceLayer, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Make a fault: the temperatures that are handed down are taken for 1."""
    temperature = layer.variant.temperature
    assert temperature is not None
    assert temperature.factor_argument is not None
    return {
        **inputs,
        temperature.factor_argument: torch.ones_like(inputs[temperature.factor_argument]),
    }


def offset_forgotten(layer: ReferenceLayer, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Make a fault: the offset of the layer's number in the cache is taken for 0."""
    return {**inputs, layer.variant.calling.cache_offset or "": 0}


def layer_forgotten(layer: ReferenceLayer, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Make a fault: the number of the layer that is called is taken for another."""
    name = layer.variant.calling.layer or ""
    return {**inputs, name: inputs[name] + 1}


def every_picked_key(layer: ReferenceLayer, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Make a fault: an earlier layer's picks are taken to be the first keys."""
    selector = layer.variant.selector
    assert selector is not None
    assert selector.picks_argument is not None
    picks = inputs[selector.picks_argument]
    return {
        **inputs,
        selector.picks_argument: (
            torch.arange(picks.shape[-1], device=picks.device, dtype=picks.dtype).expand_as(picks)
        ),
    }


def hidden_states_zero(layer: ReferenceLayer, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Make a fault: the hidden states are taken for 0."""
    return {**inputs, "hidden_states": torch.zeros_like(inputs["hidden_states"])}


def is_causal_unread(given: Mapping[str, Any], variant: Variant) -> Mapping[str, Any]:
    """Return what a call is given by role, and drop is_causal."""
    return by_role({name: value for name, value in given.items() if name != "is_causal"}, variant)


def taken_unread(given: Mapping[str, Any], variant: Variant) -> Mapping[str, Any]:
    """Return what a call is given by role, and drop what is not known or refused."""
    meanings = arguments_of(variant)
    known = {
        name: value
        for name, value in given.items()
        if name in meanings and meanings[name].use == "used"
    }
    return {
        meanings[name].role if meanings[name].role in RENAMED else name: value
        for name, value in known.items()
    }


def ignores(
    name: str, fault: str, stage: str, applies: Applies, around: Around, clause: str, **more: Any
) -> Mutant:
    """Return a mutant that ignores one argument."""
    return Mutant(name, fault, stage, applies, around=around, clause=clause, foil=False, **more)


MUTANTS: tuple[Mutant, ...] = (
    ignores(
        "cache_ignored",
        "the cache is ignored",
        "hook_attn_scores",
        reads_own_cache,
        given_other(cache_dropped),
        "CACHE-1",
    ),
    ignores(
        "hidden_states_ignored",
        "the hidden states are taken for 0",
        "hook_in",
        always,
        given_other(hidden_states_zero),
        "IN-1",
    ),
    ignores(
        "mask_ignored",
        "the mask is ignored",
        "hook_attn_scores",
        has_mask("free"),
        given_other(lambda layer, inputs: {**inputs, "attention_mask": None}),
        "MASK-1",
        arms=("the_mask_is_the_whole_truth",),
    ),
    ignores(
        "tables_ignored",
        "the tables are ignored, and made of counted positions",
        "hook_cos",
        all_of(rotates, has_padding, tables_by_row, has_one_sequence),
        given_other(tables_of_its_own),
        "POS-1",
    ),
    ignores(
        "position_ids_ignored",
        "a layer with tables of its own counts positions for itself",
        "hook_cos",
        all_of(owns_tables, has_padding),
        without("position_ids"),
        "POS-1",
    ),
    ignores(
        "temperature_ids_ignored",
        "the query's temperature is that of counted positions",
        "hook_attn_scores",
        all_of(temperature_of_ids, has_padding),
        without("position_ids"),
        "SCORE-4",
    ),
    ignores(
        "output_attentions_ignored",
        "weights are never returned",
        "hook_pattern",
        in_scenarios("prefill"),
        no_weights_returned,
        "PAT-3",
        arms=RETURNED,
    ),
    ignores(
        "given_kv_ignored",
        "an earlier layer's keys and values are taken for 0",
        "hook_attn_scores",
        has("shared_kv_argument"),
        given_other(earlier_keys_zero),
        "KV-1",
    ),
    ignores(
        "source_ignored",
        "the states of another sequence are taken for 0",
        "hook_kv_in",
        has("source"),
        nothing_in(lambda v: v.source.argument if v.source else None),
        "KV-2",
    ),
    ignores(
        "value_added_ignored",
        "what is handed down is not added to the value",
        "hook_v",
        has("added_value"),
        nothing_in(lambda v: v.added_value),
        "PROJ-1",
    ),
    ignores(
        "temperature_ignored",
        "the temperature that is handed down is ignored",
        "hook_attn_scores",
        has("temperature", "factor_argument"),
        given_other(temperature_one),
        "SCORE-4",
    ),
    ignores(
        "picks_given_ignored",
        "an earlier layer's picks are ignored",
        "hook_attn_scores",
        has("selector", "picks_argument"),
        given_other(every_picked_key),
        "SEL-1",
    ),
    ignores(
        "cache_offset_ignored",
        "the offset of the layer in the cache is ignored",
        "hook_rot_k",
        all_of(reads_own_cache, has("calling", "cache_offset")),
        given_other(offset_forgotten),
        "CACHE-1",
        arms=HELD,
    ),
    ignores(
        "layer_ignored",
        "the number of the layer that is called is ignored",
        "hook_rot_k",
        all_of(reads_own_cache, has("calling", "layer")),
        given_other(layer_forgotten),
        "CACHE-1",
        arms=HELD,
    ),
    Mutant(
        "is_causal_ignored",
        "a causal layer that is called with is_causal=False goes on causally",
        "hook_in",
        is_causal,
        read=is_causal_unread,
        clause="ARG-1",
        arms=UNDERSTOOD,
        foil=False,
    ),
    Mutant(
        "anything_taken",
        "arguments that nobody knows are taken and ignored",
        "hook_in",
        read=taken_unread,
        clause="ARG-1",
        arms=UNDERSTOOD,
        foil=False,
    ),
)
