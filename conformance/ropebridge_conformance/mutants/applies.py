"""When a fault can show: which layers, called how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ropebridge_conformance.zoo.scenarios import Scenario
from ropebridge_conformance.zoo.selection import PICKED
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_conformance.zoo.weights import read_weights
from ropebridge_spec import hook_order, ungrouped

Applies = Callable[[Specimen, Scenario], bool]


def always(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept every layer and every call."""
    return True


def rotates(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers that rotate by tables."""
    return specimen.variant.rotary is not None


def picks_some_of_many(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers with a selector that picks fewer keys than its first call has queries."""
    return specimen.variant.selector is not None and scenario.pos - scenario.steps > PICKED


def reads_copies(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers whose tables hold each frequency twice, called with tables in which the two
    differ."""
    rotary = specimen.variant.rotary
    twice = rotary is not None and rotary.table in ("full", "repeated")
    return twice and scenario.tables == "random"


def many_heads(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers with more than one query head."""
    return specimen.variant.heads > 1


def many_kv_heads(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers with more than one kv head."""
    return specimen.variant.kv_heads > 1


def shares_kv_heads(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers whose query heads share several, but fewer, kv heads."""
    return (
        1 < specimen.variant.kv_heads < specimen.variant.heads
        and "attn_in" not in scenario.opted_in
    )


def has_norm(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers with a q/k norm."""
    return specimen.variant.norm is not None


def has_norm_weight(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers whose q/k norm has a weight."""
    return specimen.variant.norm is not None and specimen.variant.norm.weight != "none"


def has_layer_norm(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers with a q/k layer norm."""
    return specimen.variant.norm is not None and specimen.variant.norm.kind == "layer"


def norms_all_heads_at_once(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers that norm all heads at once."""
    return specimen.variant.norm is not None and specimen.variant.norm.over == "flat"


def has_softcap(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers with a softcap."""
    return specimen.variant.softcap is not None


def forbids_keys(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept calls in which some query may not see some key."""
    return bool(specimen.variant.causal or specimen.variant.window or scenario.left_padding)


def has_softcap_and_forbids_keys(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept such calls of layers with a softcap."""
    return has_softcap(specimen, scenario) and forbids_keys(specimen, scenario)


def has_sinks(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers that have sinks."""
    return specimen.variant.sinks is not None


def has_own_causality(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept calls in which causality is the layer's own."""
    return scenario.mask == "none" and specimen.variant.causal


def sees_later_positions(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept calls in which a layer sees later positions of its own."""
    return scenario.mask == "none" and not specimen.variant.causal


def has_own_window(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept calls in which a window is the layer's own."""
    return specimen.variant.window is not None and scenario.mask == "none"


def has_own_chunks(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept calls in which chunks are the layer's own."""
    return specimen.variant.chunk is not None and scenario.mask == "none"


def scales_scores(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers whose scores are scaled."""
    return specimen.variant.scale != 1


def has(*path: str) -> Applies:
    """Accept layers whose variant has something, at a path of its fields."""

    def applies(specimen: Specimen, scenario: Scenario) -> bool:
        value: Any = specimen.variant
        for name in path:
            value = value and getattr(value, name)
        return bool(value)

    return applies


def has_multiplier(role: str) -> Applies:
    """Accept layers with a multiplier on key or value."""
    return lambda specimen, scenario: getattr(specimen.variant, f"{role}_multiplier") != 1


def clips_projections(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers that clip their projections, and no norm's result."""
    return specimen.variant.clip is not None and specimen.variant.norm is None


def query_is_direct(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers with latents, but none of the query."""
    return specimen.variant.latent is not None and specimen.variant.latent.q_rank is None


def scales_latents(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers that scale their latents."""
    return specimen.variant.latent is not None and specimen.variant.latent.kv_scale != 1


def rotates_in_part(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers that rotate a part of each head."""
    return (
        specimen.variant.rotary is not None
        and specimen.variant.rotary.width < specimen.variant.d_head
    )


def has_gate_of_several_heads(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers whose gate has several heads to confuse."""
    return specimen.variant.gate is not None and specimen.variant.heads > 1


def norms_and_gates_z(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers that norm z and gate it."""
    return specimen.variant.z_norm is not None and specimen.variant.gate is not None


def has_temperature_of_positions(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers whose query has a temperature that is made of positions."""
    return (
        specimen.variant.temperature is not None
        and specimen.variant.temperature.factor_argument is None
    )


def reads_own_cache(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept calls that read a cache of the layer's own."""
    return scenario.steps > 0 and specimen.variant.shared_kv_argument is None


def has_rows_that_see_nothing(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept calls with rows that see no key, in a layer without sinks: a sink leaves such a row 0
    by itself."""
    blind = specimen.variant.causal or scenario.mask != "padding"
    return scenario.left_padding > 0 and specimen.variant.sinks is None and blind


def has_bias(role: str) -> Applies:
    """Accept layers whose projection in a role has a bias."""

    def applies(specimen: Specimen, scenario: Scenario) -> bool:
        return getattr(read_weights(specimen.module, specimen.variant), f"b_{role}") is not None

    return applies


def gives_back_its_width(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers whose output is as wide as their input."""
    v = specimen.variant
    return v.d_out in (None, v.d_model)


def half_precision(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers in a dtype other than float32."""
    return specimen.dtype != torch.float32


def all_of(*conditions: Applies) -> Applies:
    """Return the condition that holds where every one of some conditions does."""
    return lambda specimen, scenario: all(condition(specimen, scenario) for condition in conditions)


def in_dtypes(*names: str) -> Applies:
    """Accept layers in one of these dtypes."""
    return lambda specimen, scenario: str(specimen.dtype).removeprefix("torch.") in names


precise = in_dtypes("float32", "float64")
double = in_dtypes("float64")
half = in_dtypes("bfloat16", "float16")


def in_scenarios(*ids: str) -> Applies:
    """Accept calls of these scenarios."""
    return lambda specimen, scenario: scenario.id in ids


def has_mask(*forms: str) -> Applies:
    """Accept calls with a mask of one of these forms."""
    return lambda specimen, scenario: scenario.mask in forms


def has_all_positions(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept calls of all positions at once."""
    return scenario.steps == 0


def has_padding(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept calls in which rows of the batch begin at different positions."""
    return scenario.left_padding > 0


def makes_kv(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers that project hook_in to a key and a value of one width."""
    v = specimen.variant
    return not (v.shared_kv_argument or v.value_is_key or v.latent) and v.d_head == v.d_head_v


def norms_head_by_head(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers that norm head by head."""
    return specimen.variant.norm is not None and specimen.variant.norm.over == "head"


def has_rms_norm(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers with a q/k rms norm."""
    return specimen.variant.norm is not None and specimen.variant.norm.kind == "rms"


def has_no_softcap(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers without a softcap."""
    return specimen.variant.softcap is None


def has_key_head_per_query_head(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers in which each query head has a key head of its own."""
    return specimen.variant.heads == specimen.variant.kv_heads


def opts_in_to(*choices: str) -> Applies:
    """Accept calls with one of these opt-ins."""
    return lambda specimen, scenario: bool(set(choices) & set(scenario.opted_in))


def has_hook(name: str) -> Applies:
    """Return whether the layer has a hook point in this call."""

    def applies(specimen: Specimen, scenario: Scenario) -> bool:
        variant = ungrouped(specimen.variant, scenario.opted_in)
        return name in (hook.name for hook in hook_order(variant, scenario.opted_in))

    return applies


def opts_in_to_nothing(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept calls without any opt-in."""
    return not scenario.opted_in


def shares_kv_heads_in_any_call(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers whose query heads share kv heads, however they are called."""
    return 1 < specimen.variant.kv_heads < specimen.variant.heads


def has_norm_without_bias(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers whose q/k norm adds nothing."""
    return specimen.variant.norm is not None and not specimen.variant.norm.bias


def shares_norm_weight(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers whose heads share the weight of a norm, queries and keys each their own."""
    norm = specimen.variant.norm
    return (
        norm is not None
        and not norm.per_head
        and norm.q != norm.k
        and specimen.variant.shared_kv_argument is None
    )


def tables_in_pairs(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers that are given cos and sin of the call's own positions."""
    v = specimen.variant
    return (
        v.rotary is not None
        and v.rotary.table != "complex"
        and v.calling.tables != "own"
        and v.calling.tables_of == "positions"
    )


def tables_by_row(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers that are given tables for each row of the batch, where rows are padded."""
    return tables_in_pairs(specimen, scenario) and specimen.variant.calling.table_buffer is None


def one_table(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept calls with one table for all rows of the batch."""
    return tables_in_pairs(specimen, scenario) and scenario.left_padding == 0


def many_pairs(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers that turn more than one pair."""
    return specimen.variant.rotary is not None and specimen.variant.rotary.width > 2


def no_z_norm(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers that do not norm z."""
    return specimen.variant.z_norm is None


def shares_nothing(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers whose keys and values are their own, and nobody else's."""
    v = specimen.variant
    return (
        v.shared_kv_argument is None and v.calling.kept_kv_argument is None and v.selector is None
    )


def owns_tables(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers that make their own tables of position ids."""
    return specimen.variant.rotary is not None and specimen.variant.calling.tables == "own"


def temperature_of_ids(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers whose query's temperature is made of the position ids handed down."""
    temperature = specimen.variant.temperature
    return (
        temperature is not None and temperature.factor_argument is None and not temperature.counted
    )


def has_one_sequence(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers whose keys are of their own sequence alone."""
    return specimen.variant.source is None


def is_causal(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers that see no later position."""
    return specimen.variant.causal
