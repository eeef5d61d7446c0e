"""Rows of the benchmark: what is watched, against what, and the ratio of times that is aimed at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch

from benchmarks import lens
from benchmarks.contests import (
    EXPLICIT,
    LINEAR,
    Contest,
    contest,
    decode_layer,
    decode_model,
    edit,
    look,
)
from ropebridge import Entropy, Largest, MeanOverQueries, TopK
from ropebridge.hooks import Look

LENGTHS = (128, 512, 2048, 8192)
PATTERN = ("hook_pattern",)


@dataclass(frozen=True)
class Row:
    """Hold one row of the table.

    name: what is watched. against: what it is set against. make: the contest over so many
        positions. targets: positions -> the ratio of times that is aimed at, or None where none was
        set; a row of decoding has one column, 1.
    """

    name: str
    against: str
    make: Callable[[int], Contest]
    targets: Mapping[int, float | None] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Return the row's name as the table writes it."""
        return f"{self.name}, against {self.against}"


NOTHING = {128: 1.0, 512: 0.92, 2048: 0.97, 8192: 0.97}
NO_TARGET = {512: None, 2048: None}
LENS = "TransformerLens"
HEAD, LAST = {"heads": 3}, {"query": slice(-16, None)}
REDUCED = {512: None, 2048: 1.7}
PARTS = {512: 1.05, 2048: 1.05, 8192: 1.05}

OF_HUGGING_FACE = (
    Row("nothing", "sdpa", contest, NOTHING),
    Row("q, k, v, rot, z, in and out", "sdpa", partial(contest, watch=LINEAR), NOTHING),
    Row(
        "nothing, softcap",
        "eager",
        partial(contest, family="gemma2", ours="eager", against="eager"),
        {2048: 0.35},
    ),
    Row(
        "nothing, sinks",
        "eager",
        partial(contest, family="gpt_oss", ours="eager", against="eager"),
        {2048: 0.30},
    ),
    Row("pattern", "sdpa", partial(contest, watch=PATTERN), {128: None, 512: 0.97, 2048: 1.4}),
    Row(
        "pattern, by a cache",
        "sdpa",
        partial(contest, watch=PATTERN, hook=Look(look)),
        {512: 0.97, 2048: 1.4},
    ),
    Row(
        "pattern",
        "eager",
        partial(contest, watch=PATTERN, against="eager"),
        {512: None, 2048: 0.38},
    ),
    Row(
        "pattern, the mask handed down",
        "eager",
        partial(contest, watch=PATTERN, ours="eager", against="eager"),
        NO_TARGET,
    ),
    Row(
        "scores and pattern, edited",
        "eager",
        partial(contest, watch=EXPLICIT, hook=edit, ours="eager", against="eager"),
        {512: None, 2048: 0.6},
    ),
    Row("one head", "sdpa", partial(contest, watch=PATTERN, part=HEAD), PARTS),
    Row(
        "one head, by a cache",
        "sdpa",
        partial(contest, watch=PATTERN, part=HEAD, hook=Look(look)),
        PARTS,
    ),
    Row("the last 16 rows", "sdpa", partial(contest, watch=PATTERN, part=LAST), PARTS),
    Row("16 rows of one head", "sdpa", partial(contest, watch=PATTERN, part=HEAD | LAST), PARTS),
    Row(
        "16 rows of one head, edited",
        "sdpa",
        partial(contest, watch=PATTERN, part=HEAD | LAST, hook=edit),
        NO_TARGET,
    ),
    Row("top 8 keys", "sdpa", partial(contest, watch=PATTERN, part={"reduce": TopK(8)}), REDUCED),
    Row("entropy", "sdpa", partial(contest, watch=PATTERN, part={"reduce": Entropy()}), REDUCED),
    Row(
        "largest weight",
        "sdpa",
        partial(contest, watch=PATTERN, part={"reduce": Largest()}),
        REDUCED,
    ),
    Row(
        "mean over queries",
        "sdpa",
        partial(contest, watch=PATTERN, part={"reduce": MeanOverQueries()}),
        REDUCED,
    ),
    Row("nothing, backward too", "sdpa", partial(contest, backward=True), {512: None, 2048: 1.0}),
    Row(
        "pattern, backward too",
        "eager",
        partial(contest, watch=PATTERN, backward=True, against="eager"),
        {512: None, 2048: 0.45},
    ),
    Row("nothing, bfloat16", "sdpa", partial(contest, dtype=torch.bfloat16), NO_TARGET),
    Row(
        "pattern, bfloat16",
        "eager",
        partial(contest, dtype=torch.bfloat16, watch=PATTERN, against="eager"),
        {512: None},
    ),
    Row("nothing, padded, batch 4", "sdpa", partial(contest, batch=4, padding=40), {512: None}),
    Row(
        "pattern, padded, batch 4",
        "eager",
        partial(contest, batch=4, padding=40, watch=PATTERN, ours="eager", against="eager"),
        {512: None},
    ),
    Row("nothing, a window of 256", "sdpa", partial(contest, family="mistral"), NO_TARGET),
    Row(
        "pattern, a window of 256",
        "eager",
        partial(contest, family="mistral", watch=PATTERN, ours="eager", against="eager"),
        NO_TARGET,
    ),
    Row("nothing, 8 positions", "the layer itself", partial(contest, against="layer"), {8: 1.1}),
    Row("nothing, a step of one layer", "sdpa", lambda _: decode_layer(), {1: 0.95}),
    Row("nothing, a step of 12 layers", "sdpa", lambda _: decode_model(), {1: 1.05}),
    Row("pattern, a step of 12 layers", "sdpa", lambda _: decode_model(PATTERN), {1: 1.2}),
)

OF_LENS = (
    Row("nothing", LENS, lens.contest_with_lens, NO_TARGET),
    Row("pattern", LENS, partial(lens.contest_with_lens, watch=PATTERN), NO_TARGET),
    Row("scores and pattern", LENS, partial(lens.contest_with_lens, watch=EXPLICIT), NO_TARGET),
)
"""Rows against TransformerLens' class."""

ROWS = (*OF_HUGGING_FACE, *(OF_LENS if lens.INSTALLED else ()))
