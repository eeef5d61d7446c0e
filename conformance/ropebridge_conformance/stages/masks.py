"""Masks, and the keys that each query may see (MASK-1 to MASK-5, SEL-1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask

from ropebridge_conformance.mutants.applies import (
    all_of,
    forbids_keys,
    has,
    has_mask,
    has_own_causality,
    has_own_chunks,
    has_own_window,
    has_softcap_and_forbids_keys,
    in_scenarios,
    picks_some_of_many,
    precise,
    sees_later_positions,
)
from ropebridge_conformance.mutants.mutant import LENGTHS, MASKS, Mutant, change, given_other
from ropebridge_conformance.stages.functions import Stages
from ropebridge_conformance.subjects.parts import Hooks
from ropebridge_conformance.subjects.reference import ReferenceLayer, Run
from ropebridge_conformance.subjects.traces import Trace
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_conformance.zoo.visibility import selected_bias
from ropebridge_reference import (
    bias_of_mask,
    causal_bias,
    padding_bias,
    score_keys,
    selection_bias,
    with_four_axes,
)
from ropebridge_spec import MaskError, Variant

MASKING = ("causal_bias", "padding_bias", "with_four_axes", "bias_of_mask", "selection_bias")
"""The stages that say what each query may see."""


def bias_in(trace: Trace, specimen: Specimen, stages: Stages) -> Tensor:
    """Return what is added to the scores of a call, (batch or 1, head or 1, query, key)."""
    given, call, variant = trace.call.given, trace.call, specimen.variant
    x, mask = given["hidden_states"], given["attention_mask"]
    return selected_bias(mask, x, call.span(variant), variant, stages)


# Faults that prove the judge at this stage.


def picks_ignored(picked: Tensor) -> Tensor:
    return torch.zeros_like(picked, dtype=torch.float64)


def picks_of_next_key(picked: Tensor) -> Tensor:
    return selection_bias(picked.roll(1, -1))


def picks_of_next_query(picked: Tensor) -> Tensor:
    return selection_bias(picked.roll(1, -2))


def scores_capped_after_mask(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    cap = variant.softcap or math.inf
    return cap * torch.tanh(score_keys(q, k, bias, replace(variant, softcap=None)) / cap)


def scores_masked_with_lowest(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    s = score_keys(q, k, bias, variant)
    return s.masked_fill(s == -math.inf, torch.finfo(q.dtype).min)


def window_one_wide(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query, key, replace(reach, window=reach.window and reach.window + 1))


def window_forgotten(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query, key, replace(reach, window=None))


def future_seen(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query + 1, key, replace(reach, window=reach.window and reach.window + 1))


def causal_all_the_same(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query, key, replace(reach, causal=True))


def chunk_forgotten(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query, key, replace(reach, chunk=None))


def chunk_shifted(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query + 1, key + 1, reach)


def booleans_inverted(mask: Tensor) -> Tensor:
    return bias_of_mask(~mask if mask.dtype == torch.bool else mask)


def numbers_ignored(mask: Tensor) -> Tensor:
    bias = bias_of_mask(mask)
    return torch.where(bias.isfinite(), 0.0, bias)


def numbers_twice(mask: Tensor) -> Tensor:
    return 2 * bias_of_mask(mask)


def negative_forbids(mask: Tensor) -> Tensor:
    return bias_of_mask(mask if mask.dtype == torch.bool else mask >= 0)


def lowest_is_a_number(mask: Tensor) -> Tensor:
    return bias_of_mask(mask) if mask.dtype == torch.bool else mask.double()


def first_heads_mask(mask: Tensor) -> Tensor:
    return bias_of_mask(mask[:, :1])


def first_rows_mask(mask: Tensor) -> Tensor:
    return bias_of_mask(mask[:1])


def causal_beside_the_mask(mask: Tensor) -> Tensor:
    bias = bias_of_mask(mask)
    return bias.masked_fill(
        ~torch.ones_like(bias, dtype=torch.bool).tril(bias.shape[-1] - bias.shape[-2]), -math.inf
    )


def mask_transposed(mask: Tensor) -> Tensor:
    return bias_of_mask(mask.transpose(2, 3))


def no_padding(padding: Tensor) -> Tensor:
    return padding_bias(torch.ones_like(padding))


def padding_on_the_right(padding: Tensor) -> Tensor:
    return padding_bias(padding.flip(-1))


def padding_inverted(padding: Tensor) -> Tensor:
    return padding_bias(~padding)


def padding_of_the_first_row(padding: Tensor) -> Tensor:
    return padding_bias(padding[:1])


def window_one_short(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query, key, replace(reach, window=reach.window and reach.window - 1))


def itself_unseen(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query, key, reach).masked_fill(query[:, None] == key[None, :], -math.inf)


def first_key_always_seen(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query, key, reach).masked_fill(key[None, :] == 0, 0.0)


def chunk_one_long(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(query, key, replace(reach, chunk=reach.chunk and reach.chunk + 1))


def beside_causality(mask: Tensor, queries: int) -> Tensor:
    """Return booleans: what a mask (..., query or 1, key) allows of earlier keys."""
    visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    earlier = torch.ones(queries, mask.shape[-1], dtype=torch.bool, device=mask.device)
    return visible & earlier.tril(mask.shape[-1] - queries)


def three_axes_beside_causality(mask: Tensor) -> Tensor:
    return beside_causality(with_four_axes(mask), mask.shape[-2])


def one_query_beside_causality(mask: Tensor) -> Tensor:
    # in these scenarios there are as many queries as keys
    return bias_of_mask(mask).masked_fill(~beside_causality(mask, mask.shape[-1]), -math.inf)


def flex_mask(mask: BlockMask, says: Callable[..., Tensor]) -> Tensor:
    """Return (batch, head, query, key): what a function says in place of a flex mask's own."""
    (batch, heads), (query, key) = mask.shape[:2], mask.seq_lengths
    device = mask.kv_num_blocks.device
    made: Tensor = create_mask(says, batch, heads, query, key, device=device)
    return made


def flex_mask_of_first_head(mask: BlockMask) -> Tensor:
    return flex_mask(mask, lambda b, h, q, k: mask.mask_mod(b, torch.zeros_like(h), q, k))


def flex_mask_of_first_row(mask: BlockMask) -> Tensor:
    return flex_mask(mask, lambda b, h, q, k: mask.mask_mod(torch.zeros_like(b), h, q, k))


def flex_mask_transposed(mask: BlockMask) -> Tensor:
    return flex_mask(mask, lambda b, h, q, k: mask.mask_mod(b, h, k, q))


def flex_mask_by_blocks(mask: BlockMask) -> Tensor:
    query, key = mask.seq_lengths
    rows, columns = mask.BLOCK_SIZE
    blocks = mask.to_dense().bool()
    return blocks.repeat_interleave(rows, 2).repeat_interleave(columns, 3)[..., :query, :key]


def only_its_own_lowest_forbids(mask: Tensor) -> Tensor:
    return mask.double().masked_fill(mask == torch.finfo(mask.dtype).min, -math.inf)


def ten_thousand_forbids(mask: Tensor) -> Tensor:
    return bias_of_mask(mask).masked_fill(mask <= -9000, -math.inf)


def infinity_is_cut_off(mask: Tensor) -> Tensor:
    return mask.double().clamp(min=torch.finfo(mask.dtype).min)


def float32_is_rounded(mask: Tensor) -> Tensor:
    return bias_of_mask(mask.bfloat16()).double()


def square_padding_is_of_queries(padding: Tensor) -> Tensor:
    return (
        padding_bias(padding)
        if padding.shape[0] != padding.shape[1]
        else bias_of_mask(padding[None, None])
    )


def padding_comes_first(padding: Tensor) -> Tensor:
    return padding_bias(padding.cumsum(-1) > 0)


def numbers_say_what_is_padding(
    layer: ReferenceLayer, inputs: Mapping[str, Any]
) -> Mapping[str, Any]:
    return {**inputs, "attention_mask": inputs["attention_mask"] == 0}


def second_block_reads_the_first(query: Tensor, key: Tensor, reach: Variant) -> Tensor:
    return causal_bias(torch.where(query < 64, query, query - 64), key, reach)


def mask_of_128_keys(mask: Tensor) -> Tensor:
    bias = bias_of_mask(mask).clone()
    bias[..., 128:] = 0.0
    return bias


def dead_blocks_see_all(mask: Tensor) -> Tensor:
    bias = bias_of_mask(mask)
    first = (bias[:, :, :64] == -math.inf).all(-1).all(-1)  # (batch or 1, head or 1)
    return bias.masked_fill(first[..., None, None], 0.0)


def any_mask_is_taken(layer: ReferenceLayer) -> Run:
    """Make a fault: a mask that cannot be read is taken for none."""

    def run(
        inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        try:
            return layer.call(inputs, hooks, backward)
        except (MaskError, AttributeError, TypeError, RuntimeError):
            return layer.call({**inputs, "attention_mask": None}, hooks, backward)

    return run


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "picks_ignored",
        "keys that were not picked are seen",
        "hook_attn_scores",
        has("selector"),
        change(selection_bias=picks_ignored),
        clause="SEL-1",
    ),
    Mutant(
        "picks_of_next_key",
        "the key after each that was picked is seen",
        "hook_attn_scores",
        has("selector"),
        change(selection_bias=picks_of_next_key),
        clause="SEL-1",
    ),
    Mutant(
        "picks_of_next_query",
        "each query sees what was picked for the one before",
        "hook_attn_scores",
        picks_some_of_many,
        change(selection_bias=picks_of_next_query),
        clause="SEL-1",
    ),
    Mutant(
        "causal_all_the_same",
        "a layer that sees later positions does not",
        "hook_attn_scores",
        sees_later_positions,
        change(causal_bias=causal_all_the_same),
        clause="MASK-2",
    ),
    Mutant(
        "chunk_forgotten",
        "no chunks",
        "hook_attn_scores",
        has_own_chunks,
        change(causal_bias=chunk_forgotten),
        clause="MASK-2",
    ),
    Mutant(
        "chunk_shifted",
        "chunks begin one position early",
        "hook_attn_scores",
        has_own_chunks,
        change(causal_bias=chunk_shifted),
        clause="MASK-2",
    ),
    Mutant(
        "softcap_after_mask",
        "the mask is capped too",
        "hook_attn_scores",
        has_softcap_and_forbids_keys,
        change(score_keys=scores_capped_after_mask),
    ),
    Mutant(
        "mask_not_infinite",
        "forbidden scores are the lowest number",
        "hook_attn_scores",
        forbids_keys,
        change(score_keys=scores_masked_with_lowest),
    ),
    Mutant(
        "window_one_wide",
        "the window sees one key too many",
        "hook_attn_scores",
        has_own_window,
        change(causal_bias=window_one_wide),
        clause="MASK-2",
    ),
    Mutant(
        "window_forgotten",
        "no window",
        "hook_attn_scores",
        has_own_window,
        change(causal_bias=window_forgotten),
        clause="MASK-2",
    ),
    Mutant(
        "future_seen",
        "each position sees the next",
        "hook_attn_scores",
        has_own_causality,
        change(causal_bias=future_seen),
        clause="MASK-2",
    ),
    Mutant(
        "booleans_inverted",
        "True forbids",
        "hook_attn_scores",
        has_mask("boolean"),
        change(bias_of_mask=booleans_inverted),
        clause="MASK-1",
        foil=False,
    ),
    Mutant(
        "numbers_ignored",
        "the numbers of an additive mask are not added",
        "hook_attn_scores",
        in_scenarios("free"),
        change(bias_of_mask=numbers_ignored),
        clause="MASK-5",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "numbers_twice",
        "the numbers of an additive mask are added twice",
        "hook_attn_scores",
        in_scenarios("free"),
        change(bias_of_mask=numbers_twice),
        clause="MASK-5",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "negative_forbids",
        "every negative number of an additive mask forbids",
        "hook_attn_scores",
        in_scenarios("free"),
        change(bias_of_mask=negative_forbids),
        clause="MASK-5",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "lowest_is_a_number",
        "the lowest number of a mask is added, and does not forbid",
        "hook_attn_scores",
        in_scenarios("free"),
        change(bias_of_mask=lowest_is_a_number),
        clause="MASK-5",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "first_heads_mask",
        "every head goes by the first one's mask",
        "hook_attn_scores",
        in_scenarios("free"),
        change(bias_of_mask=first_heads_mask),
        clause="MASK-1",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "first_rows_mask",
        "every row of the batch goes by the first one's mask",
        "hook_attn_scores",
        has_mask("boolean"),
        change(bias_of_mask=first_rows_mask),
        clause="MASK-1",
        foil=False,
    ),
    Mutant(
        "causal_beside_the_mask",
        "later keys are forbidden whatever the mask says",
        "hook_attn_scores",
        in_scenarios("free"),
        change(bias_of_mask=causal_beside_the_mask),
        clause="MASK-1",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "mask_transposed",
        "keys see queries",
        "hook_attn_scores",
        in_scenarios("free"),
        change(bias_of_mask=mask_transposed),
        clause="MASK-1",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "padding_ignored",
        "padding is seen",
        "hook_attn_scores",
        in_scenarios("padding"),
        change(padding_bias=no_padding),
        clause="MASK-3",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "padding_on_the_right",
        "padding is looked for at the other end",
        "hook_attn_scores",
        in_scenarios("padding"),
        change(padding_bias=padding_on_the_right),
        clause="MASK-3",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "padding_inverted",
        "padding alone is seen",
        "hook_attn_scores",
        in_scenarios("padding"),
        change(padding_bias=padding_inverted),
        clause="MASK-3",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "first_rows_padding",
        "every row of the batch is padded as the first",
        "hook_attn_scores",
        in_scenarios("padding"),
        change(padding_bias=padding_of_the_first_row),
        clause="MASK-3",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "window_one_short",
        "the window sees one key too few",
        "hook_attn_scores",
        has_own_window,
        change(causal_bias=window_one_short),
        clause="MASK-2",
        foil=False,
    ),
    Mutant(
        "itself_unseen",
        "no position sees itself",
        "hook_attn_scores",
        has_own_causality,
        change(causal_bias=itself_unseen),
        clause="MASK-2",
        foil=False,
    ),
    Mutant(
        "first_key_always_seen",
        "the first key is seen past the window",
        "hook_attn_scores",
        has_own_window,
        change(causal_bias=first_key_always_seen),
        clause="MASK-2",
        foil=False,
    ),
    Mutant(
        "chunk_one_long",
        "chunks are one position longer",
        "hook_attn_scores",
        has_own_chunks,
        change(causal_bias=chunk_one_long),
        clause="MASK-2",
        foil=False,
    ),
    Mutant(
        "three_axes_beside_causality",
        "causality holds beside a mask without heads",
        "hook_attn_scores",
        in_scenarios("mask_no_heads", "mask_no_heads_booleans"),
        change(with_four_axes=three_axes_beside_causality),
        clause="MASK-1",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "one_query_beside_causality",
        "causality holds beside a mask of one row for all queries",
        "hook_attn_scores",
        in_scenarios("mask_one_query"),
        change(bias_of_mask=one_query_beside_causality),
        clause="MASK-1",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "flex_mask_of_first_head",
        "a flex mask is asked about the first head alone",
        "hook_attn_scores",
        in_scenarios("mask_block"),
        change(with_four_axes=flex_mask_of_first_head),
        clause="MASK-1",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "flex_mask_of_first_row",
        "a flex mask is asked about the first row of the batch alone",
        "hook_attn_scores",
        in_scenarios("mask_block"),
        change(with_four_axes=flex_mask_of_first_row),
        clause="MASK-1",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "flex_mask_transposed",
        "a flex mask is asked with query and key the other way about",
        "hook_attn_scores",
        in_scenarios("mask_block"),
        change(with_four_axes=flex_mask_transposed),
        clause="MASK-1",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "flex_mask_by_blocks",
        "of a flex mask only its blocks count, and all that is in them is seen",
        "hook_attn_scores",
        in_scenarios("mask_block"),
        change(with_four_axes=flex_mask_by_blocks),
        clause="MASK-1",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "only_its_own_lowest_forbids",
        "no entry forbids but the very lowest number of the mask's dtype",
        "hook_attn_scores",
        in_scenarios("mask_bfloat16_lowest"),
        change(bias_of_mask=only_its_own_lowest_forbids),
        clause="MASK-5",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "ten_thousand_forbids",
        "a bias of minus ten thousand forbids",
        "hook_attn_scores",
        in_scenarios("mask_large_numbers"),
        change(bias_of_mask=ten_thousand_forbids),
        clause="MASK-5",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "infinity_is_cut_off",
        "an entry of -inf is a large number, and does not forbid",
        "hook_attn_scores",
        in_scenarios("mask_infinite"),
        change(bias_of_mask=infinity_is_cut_off),
        clause="MASK-5",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "float32_is_rounded",
        "a bias in float32 is rounded to bfloat16",
        "hook_attn_scores",
        all_of(in_scenarios("mask_float32"), precise),
        change(bias_of_mask=float32_is_rounded),
        clause="MASK-5",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "square_padding_is_of_queries",
        "a two-axis mask of as many rows as keys is taken for one of queries",
        "hook_attn_scores",
        in_scenarios("padding_square"),
        change(padding_bias=square_padding_is_of_queries),
        clause="MASK-3",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "padding_comes_first",
        "padding is looked for before the first real key alone",
        "hook_attn_scores",
        in_scenarios("right_padding"),
        change(padding_bias=padding_comes_first),
        clause="MASK-3",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "numbers_say_what_is_padding",
        "of a two-axis mask of numbers, 1 says that a key is padding",
        "hook_attn_scores",
        in_scenarios("padding_numbers", "padding_floats"),
        around=given_other(numbers_say_what_is_padding),
        clause="MASK-3",
        arms=MASKS,
        foil=False,
    ),
    Mutant(
        "second_block_reads_the_first",
        "queries from the 64th on see what those 64 before them do",
        "hook_attn_scores",
        in_scenarios("length_65"),
        change(causal_bias=second_block_reads_the_first),
        clause="MASK-2",
        arms=LENGTHS,
        foil=False,
    ),
    Mutant(
        "mask_of_128_keys",
        "keys from the 128th on are seen by all queries",
        "hook_attn_scores",
        in_scenarios("length_130"),
        change(bias_of_mask=mask_of_128_keys),
        clause="MASK-1",
        arms=LENGTHS,
        foil=False,
    ),
    Mutant(
        "dead_blocks_see_all",
        "a query of a row of the batch of which 64 queries see nothing sees all",
        "hook_attn_scores",
        in_scenarios("length_130"),
        change(bias_of_mask=dead_blocks_see_all),
        clause="MASK-6",
        arms=LENGTHS,
        foil=False,
    ),
    Mutant(
        "any_mask_is_taken",
        "a mask that cannot be read is taken for none",
        "hook_attn_scores",
        around=any_mask_is_taken,
        clause="MASK-4",
        arms=("a_mask_that_does_not_fit_is_refused",),
    ),
)
