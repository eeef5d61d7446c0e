"""Scenarios: the ways a layer is called in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ropebridge_spec import (
    OptIn,
    Variant,
)

BATCH, POS = 3, 13

SOURCE = 5

CACHE_OFFSET, SPARE = 1, 3

"""Longer than the zoo's window, and odd; as many rows as no layer of the zoo has kv heads, so that
the two axes cannot be changed for one another, and masks can differ in the batch. Another
sequence has SOURCE positions. Where a family adds an offset to the layer's number in the cache, it
is CACHE_OFFSET; a static cache has room for SPARE positions more than there are."""


MaskForm = Literal[
    "as it is",
    "booleans",
    "no head axis",
    "booleans without a head axis",
    "one query for all",
    "one row of the batch for all",
    "float32",
    "large numbers",
    "lowest of bfloat16",
    "-inf",
    "BlockMask",
    "whole numbers",
    "floats",
]
"""What a mask is handed down as."""


@dataclass(frozen=True)
class Scenario:
    """Hold a way to call a layer.

    mask: the form in which visibility is handed down: `free` is an additive mask by head, of keys
        by lot, later ones too, with a number of its own for each; `padding` one of two axes.
    form: what is made of that mask when it is handed down (`zoo.masks.FORMS`).
    bias: what an additive mask adds where a key may be seen.
    left_padding, right_padding: positions the last of the batch is padded by, before and after.
    steps: how many of the last positions come with a cache. step: how many at once. cache: keeps
        all keys; has room for more than there are; or, in a layer with a window, keeps those alone
        that a later query may see.
    opted_in: hook points made on request.
    first: the position that the rotary tables begin at.
    tables: whether the rotary tables are the model's own, or random numbers, no two alike, as an
        edit at hook_cos may leave them.
    """

    id: str
    says: str
    mask: Literal["additive", "boolean", "none", "free", "padding"] = "additive"
    form: MaskForm = "as it is"
    bias: float = 0.0
    left_padding: int = 0
    right_padding: int = 0
    steps: int = 0
    step: int = 1
    cache: Literal["growing", "static", "sliding"] = "growing"
    opted_in: tuple[OptIn, ...] = ()
    batch: int = BATCH
    pos: int = POS
    first: int = 0
    tables: Literal["model", "random"] = "model"


FREE_FORMS: tuple[tuple[str, str, MaskForm], ...] = (
    ("mask_booleans", "booleans by head", "booleans"),
    ("mask_no_heads", "three axes, without that of heads", "no head axis"),
    (
        "mask_no_heads_booleans",
        "booleans of three axes, without that of heads",
        "booleans without a head axis",
    ),
    ("mask_one_query", "one row, for all queries", "one query for all"),
    ("mask_one_batch", "that of the first of the batch, for all", "one row of the batch for all"),
    ("mask_float32", "float32, whatever the layer's dtype", "float32"),
    (
        "mask_bfloat16_lowest",
        "float32 with bfloat16's lowest number, as a cast leaves it",
        "lowest of bfloat16",
    ),
    (
        "mask_large_numbers",
        "numbers, of which every third key's lies ten thousand lower",
        "large numbers",
    ),
    ("mask_infinite", "numbers with -inf where a key may not be seen", "-inf"),
    ("mask_block", "a flex BlockMask", "BlockMask"),
)
"""Ids of the scenarios in which the free mask has another form, what they say, and the form."""

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "prefill",
        "all positions at once, with the additive mask transformers makes for eager attention",
    ),
    Scenario(
        "left_padding",
        "the last of the batch is padded by three positions; boolean mask",
        mask="boolean",
        left_padding=3,
    ),
    Scenario(
        "no_mask", "no mask is handed down: causality and window are the layer's own", mask="none"
    ),
    Scenario("decode", "eleven positions, then two one by one, from a cache", steps=2),
    Scenario(
        "split",
        "query, key and value inputs split by head, results by head",
        opted_in=("split_qkv_input", "attn_result"),
    ),
    Scenario("attn_in", "one input a query head", opted_in=("attn_in",)),
    Scenario(
        "result",
        "results by head, in a layer whose inputs cannot be split",
        opted_in=("attn_result",),
    ),
    Scenario(
        "large", "sixteen rows of forty positions, for statistics of the error", batch=16, pos=40
    ),
    Scenario(
        "free", "a mask by head that allows keys by lot, and adds a number to each", mask="free"
    ),
    Scenario(
        "offset",
        "an additive mask that adds 128 wherever a key may be seen: scores that half precision"
        " would round coarsely",
        bias=128.0,
        batch=4,
        pos=20,
    ),
    Scenario(
        "padding",
        "the last of the batch is padded by three positions; two-axis mask",
        mask="padding",
        left_padding=3,
    ),
    Scenario(
        "decode_no_mask",
        "eleven positions, then two one by one, without a mask",
        mask="none",
        steps=2,
    ),
    Scenario(
        "decode_left_padding",
        "eleven positions, then two, the last of the batch padded by three; boolean mask",
        mask="boolean",
        left_padding=3,
        steps=2,
    ),
    Scenario(
        "decode_several",
        "seven positions, then three and three at once, without a mask",
        mask="none",
        steps=6,
        step=3,
    ),
    Scenario(
        "decode_into_window",
        "three positions, then six one by one, without a mask: fewer than a window, then more",
        mask="none",
        pos=9,
        steps=6,
    ),
    Scenario(
        "decode_static",
        "seven positions, then two at once, and two, from a cache with room for more; no mask",
        mask="none",
        pos=11,
        steps=4,
        step=2,
        cache="static",
    ),
    Scenario(
        "decode_static_mask",
        "as decode_static, with a mask of all that the cache has room for",
        pos=11,
        steps=4,
        step=2,
        cache="static",
    ),
    Scenario(
        "decode_sliding",
        "seven positions, then two at once, and two, from a cache of the window alone; no mask",
        mask="none",
        pos=11,
        steps=4,
        step=2,
        cache="sliding",
    ),
    Scenario(
        "decode_sliding_mask",
        "as decode_sliding, with a mask of those keys",
        pos=11,
        steps=4,
        step=2,
        cache="sliding",
    ),
    *(
        Scenario(id, f"the mask of `free`, handed down as {says}", mask="free", form=form)
        for id, says, form in FREE_FORMS
    ),
    Scenario(
        "padding_numbers",
        "the two-axis mask as whole numbers, 1 where a key is real",
        mask="padding",
        form="whole numbers",
        left_padding=3,
    ),
    Scenario(
        "padding_floats",
        "the two-axis mask as ones and zeros in the layer's dtype",
        mask="padding",
        form="floats",
        left_padding=3,
    ),
    Scenario(
        "padding_square",
        "a two-axis mask of as many rows as keys",
        mask="padding",
        left_padding=3,
        batch=POS,
    ),
    Scenario(
        "right_padding",
        "the last of the batch is padded by three positions at its end; two-axis mask",
        mask="padding",
        right_padding=3,
    ),
    Scenario("length_1", "one position of four rows; no mask", mask="none", batch=4, pos=1),
    Scenario("length_2", "two positions of one row; additive mask", batch=1, pos=2),
    Scenario("length_63", "63 positions of one row; no mask", mask="none", batch=1, pos=63),
    Scenario("length_64", "64 positions of one row; additive mask", batch=1, pos=64),
    Scenario("length_65", "65 positions of four rows; no mask", mask="none", batch=4, pos=65),
    Scenario(
        "length_130",
        "130 positions of two rows, the last padded by 70; boolean mask",
        mask="boolean",
        left_padding=70,
        batch=2,
        pos=130,
    ),
    Scenario("random_tables", "rotary tables of random numbers, no two alike", tables="random"),
    Scenario("far", "positions up to 131071", first=131072 - POS),
    Scenario(
        "long",
        "two thousand positions and no mask, for what is allocated",
        mask="none",
        batch=1,
        pos=2048,
    ),
)

SCENARIO_BY_ID: Mapping[str, Scenario] = {scenario.id: scenario for scenario in SCENARIOS}

CORE_CALLS = ("prefill", "left_padding", "no_mask", "decode")

OPTED = ("split", "attn_in", "result")


def possible(scenario: Scenario, variant: Variant) -> bool:
    """Return whether a layer can be called so: one that sees later positions keeps no cache, and
    not every layer's inputs can be split."""
    split = bool({"attn_in", "split_qkv_input"} & set(scenario.opted_in))
    if scenario.id == "result":
        return not variant.splits
    return (variant.causal or not scenario.steps) and (variant.splits or not split)


def takes_tables(scenario: Scenario, variant: Variant) -> bool:
    """Return whether a layer can be called so, and where its tables are random rotates by those
    that it is handed."""
    handed = variant.rotary is not None and variant.calling.tables != "own"
    return possible(scenario, variant) and (scenario.tables == "model" or handed)


def tables_go_on(variant: Variant) -> bool:
    """Return whether tables are made for any position: not where they are rows of a buffer or of an
    embedding."""
    return (
        variant.calling.table_buffer is None and variant.calling.tables_in == "position_embeddings"
    )
