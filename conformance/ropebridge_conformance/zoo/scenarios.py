"""Scenarios: the calls a layer is put through, from one set of random inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ropebridge_conformance.subjects.answers import asking
from ropebridge_conformance.zoo.selection import numbers
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_conformance.zoo.visibility import bias_of
from ropebridge_conformance.zoo.weights import adapted_layer
from ropebridge_reference import Past
from ropebridge_spec import (
    HookSpec,
    OptIn,
    Source,
    Variant,
    axis_sizes,
    layer_type,
    position_axes,
    shape_of,
    shared_key,
)
from ropebridge_spec import cache_layer as number_in_cache

BATCH, POS = 3, 13
SOURCE = 5
CACHE_OFFSET = 1
"""Longer than the zoo's window, and odd; as many rows as no layer of the zoo has kv heads, so that
the two axes cannot be changed for one another, and masks can differ in the batch. Another
sequence has SOURCE positions. Where a family adds an offset to the layer's number in the cache, it
is CACHE_OFFSET."""


@dataclass(frozen=True)
class Scenario:
    """Hold a way to call a layer.

    mask: the form in which visibility is handed down: `free` is an additive mask by head, of keys
        by lot, later ones too, with a number of its own for each; `padding` one of two axes.
    bias: what an additive mask adds where a key may be seen.
    left_padding: positions the last of the batch is padded by.
    steps: how many of the last positions come one by one, with a cache.
    opted_in: hook points made on request.
    first: the position that the rotary tables begin at.
    tables: whether the rotary tables are the model's own, or random numbers, no two alike, as an
        edit at hook_cos may leave them.
    """

    id: str
    says: str
    mask: Literal["additive", "boolean", "none", "free", "padding"] = "additive"
    bias: float = 0.0
    left_padding: int = 0
    steps: int = 0
    opted_in: tuple[OptIn, ...] = ()
    batch: int = BATCH
    pos: int = POS
    first: int = 0
    tables: Literal["model", "random"] = "model"


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


@dataclass(frozen=True)
class CallInputs:
    """Hold what one call is given, and where its positions stand.

    given: the arguments, tables, mask and cache under the contract's names for them
        (`ropebridge_spec.arguments.RENAMED`).
    first_query: position of the first query. keys: how many keys its last query may see at most.
    names: role -> the name that the layer's class has for it, None where it takes no such argument.
    """

    given: Mapping[str, Any]
    first_query: int = field(kw_only=True)  # by name: two numbers are easily swapped
    keys: int = field(kw_only=True)
    names: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, Any]:
        """Return what the layer is called with: the same under the names of its class's own
        signature, without what that does not take."""
        named = ((self.names.get(role, role), value) for role, value in self.given.items())
        return {name: value for name, value in named if name is not None}

    def given_kv(self, variant: Variant) -> Past | None:
        """Return keys and values that an earlier layer hands down (KV-1)."""
        if variant.shared_kv_argument is None:
            return None
        (pair,) = self.given[variant.shared_kv_argument].values()
        return Past(*(heads.transpose(1, 2) for heads in pair))

    def added_value(self, variant: Variant) -> Tensor | None:
        """Return (batch, pos, kv_head, d_head_v) float64: what the model hands down to be added to
        the value (PROJ-1)."""
        given: Tensor | None = self.given[variant.added_value] if variant.added_value else None
        return None if given is None else given.double().unflatten(-1, (variant.kv_heads, -1))

    def source(self, variant: Variant) -> Tensor | None:
        """Return (batch, source, d_model): the states of another sequence (KV-2)."""
        return None if variant.source is None else self.given[variant.source.argument]

    def source_length(self, variant: Variant) -> int:
        """Return how many positions another sequence has (KV-2)."""
        return 0 if variant.source is None else SOURCE

    def tables(self, variant: Variant) -> tuple[Tensor, Tensor] | None:
        """Return cos and sin of this call's positions: the last, where the layer is handed those of
        earlier ones too (POS-1)."""
        pair, pos = (
            tables_of(self.given["position_embeddings"], variant),
            self.given["hidden_states"].shape[1],
        )
        if variant.calling.tables_of == "positions":
            return pair
        return pair and (pair[0][..., -pos:, :], pair[1][..., -pos:, :])

    def shape_of(self, spec: HookSpec, variant: Variant) -> tuple[int, ...]:
        """Return the shape that a hook point's tensor has in this call."""
        batch, pos, _ = self.given["hidden_states"].shape
        tables = self.tables(variant)
        sizes = axis_sizes(
            variant,
            batch=batch,
            pos=pos,
            key=self.keys,
            table_batch=tables[0].shape[0] if tables else 1,
            source=self.source_length(variant),
        )
        return shape_of(spec, sizes)

    def positions(self, variant: Variant) -> Tensor:
        """Return (1 or batch, pos): the positions that a temperature reads, or the temperatures
        where they are given (SCORE-4)."""
        x = self.given["hidden_states"]
        if variant.temperature is not None and variant.temperature.factor_argument is not None:
            factor = self.given[variant.temperature.factor_argument]
            return (
                torch.ones(1, x.shape[1], device=x.device) if factor is None else factor[:, 0, :, 0]
            )
        return (
            self.ids()
            if variant.temperature and not variant.temperature.counted
            else self.counted()
        )

    def ids(self) -> Tensor:
        """Return (1 or batch, pos): the positions the call is told of, or those that go on where
        the cache ends."""
        ids = self.given.get("position_ids")
        return ids if isinstance(ids, Tensor) else self.counted()

    def counted(self) -> Tensor:
        """Return (1, pos): the positions that go on where the cache ends."""
        x = self.given["hidden_states"]
        return torch.arange(self.first_query, self.first_query + x.shape[1], device=x.device)[None]


def calls(scenario: Scenario, specimen: Specimen, layer: Any, seed: int = 0) -> list[CallInputs]:
    """Return the calls of a scenario, in order; a scenario with steps shares one fresh cache
    between them.

    Built on the layer's own `get_random_inputs` where it has one; masks, paddings and their tables
    are the judge's.
    """
    base, variant = base_inputs(scenario, specimen, layer, seed), specimen.variant
    beside: dict[str, Any] = {"cache": DynamicCache()} if scenario.steps else {}
    if variant.calling.layer is not None:
        beside[variant.calling.layer] = adapted_layer(specimen.module)[0]
    if variant.calling.cache_offset is not None:
        beside[variant.calling.cache_offset] = CACHE_OFFSET
    first = scenario.pos - scenario.steps
    spans = [(0, first), *((i, i + 1) for i in range(first, scenario.pos))]
    made = [
        {**cut(base, variant, *span), **beside, **shared(specimen, base, span[1])} for span in spans
    ]
    other = 0 if variant.source is None else SOURCE
    return [
        CallInputs(
            handed(specimen, given, first),
            first_query=first,
            keys=stop + other,
            names=specimen.names,
        )
        for given, (first, stop) in zip(made, spans, strict=True)
    ]


def cache_layer(given: Mapping[str, Any], module: Any, variant: Variant) -> int:
    """Return which layer of the cache is a call's: the module's own number or the one it is called
    for, further on by its offset."""
    calling = variant.calling
    named, offset = given.get(calling.layer or ""), given.get(calling.cache_offset or "")
    return number_in_cache(module, named, offset)


def handed(specimen: Specimen, given: dict[str, Any], first: int) -> dict[str, Any]:
    """Return the inputs of a call, with an earlier layer's picks where the layer is handed them
    (SEL-1)."""
    selector, x = specimen.variant.selector, given["hidden_states"]
    if selector is None or selector.picks_argument is None:
        return given
    visible = (
        bias_of(given["attention_mask"], first, x.shape[1], specimen.variant, x.device) > -torch.inf
    )
    return {
        **given,
        selector.picks_argument: numbers(selector, visible.expand(x.shape[0], -1, -1, -1), first),
    }


def shared(specimen: Specimen, base: Mapping[str, Any], stop: int) -> dict[str, Any]:
    """Return where a layer leaves its keys and values for later ones, and those that it is
    given."""
    variant, kind = specimen.variant, shared_key(specimen.module)
    given = (
        {kind: tuple(heads[:, :, :stop].clone() for heads in base["shared_kv"])}
        if variant.shared_kv_argument
        else {}
    )
    return {
        name: given
        for name in (variant.shared_kv_argument, variant.calling.kept_kv_argument)
        if name
    }


@lru_cache(maxsize=32)
def base_inputs(scenario: Scenario, specimen: Specimen, layer: Any, seed: int) -> dict[str, Any]:
    """Return hidden_states, position_embeddings and attention_mask over all positions; calls are
    given copies of parts of them."""
    own = getattr(layer, "get_random_inputs", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if own is not None:
            with asking():
                inputs = own(scenario.batch, scenario.pos, specimen.device, specimen.dtype)
        else:
            inputs = get_random_inputs(specimen, scenario.batch, scenario.pos)
    padded = torch.zeros(scenario.batch, dtype=torch.long)
    padded[-1] = scenario.left_padding
    ids = (torch.arange(scenario.pos) - padded[:, None]).clamp(min=0).to(specimen.device)
    if (
        scenario.left_padding
        or scenario.first
        or specimen.variant.source
        or specimen.variant.calling.tables == "own"
    ):
        inputs["position_embeddings"] = tables(
            specimen, inputs["hidden_states"], with_source(ids, specimen.variant) + scenario.first
        )
    if scenario.tables == "random":
        inputs["position_embeddings"] = random_tables(inputs["position_embeddings"], seed)
    made = {
        **position_arguments(specimen.variant, ids, scenario.first),
        "attention_mask": mask_of(scenario, specimen, padded),
        "shared_kv": random_kv(scenario, specimen, seed),
    }
    handed_down = specimen.variant.selector and specimen.variant.selector.picks_argument
    calling = specimen.variant.calling
    dropped = {handed_down, calling.layer, calling.tables_in, calling.mask_in} - {
        "position_embeddings",
        "attention_mask",
    }
    extra = {**added(scenario, specimen, seed), **other_sequence(scenario, specimen, seed)}
    return {
        **{name: value for name, value in inputs.items() if name not in dropped},
        **made,
        **extra,
    }


def random_tables(tables: Any, seed: int) -> Any:
    """Return tables of the same form, (batch or 1, pos, rotary_dim) and perhaps complex, that are
    random in every entry."""
    draw = torch.Generator().manual_seed(seed + 3)
    if isinstance(tables, Tensor):
        return random_like(tables, draw)
    return tuple(random_like(table, draw) for table in tables)


def random_like(table: Tensor, draw: torch.Generator) -> Tensor:
    """Return normal numbers in the shape, dtype and device of a table."""
    dtype = torch.complex64 if table.is_complex() else torch.float32
    return torch.randn(table.shape, generator=draw, dtype=dtype).to(table.device, table.dtype)


def with_source(ids: Tensor, variant: Variant) -> Tensor:
    """Return position ids after those of another sequence that comes before and is rotated too
    (KV-2)."""
    if variant.source is None or variant.source.place == "after":
        return ids
    return torch.cat(
        [torch.arange(SOURCE, device=ids.device).expand(ids.shape[0], -1), ids + SOURCE], dim=1
    )


def other_sequence(scenario: Scenario, specimen: Specimen, seed: int) -> dict[str, Tensor]:
    """Return states of another sequence that keys and values are made of too (KV-2)."""
    source, draw = specimen.variant.source, torch.Generator().manual_seed(seed + 2)
    if source is None:
        return {}
    return {
        source.argument: (
            torch.randn(scenario.batch, SOURCE, specimen.variant.d_model, generator=draw).to(
                specimen.device, specimen.dtype
            )
        )
    }


def added(scenario: Scenario, specimen: Specimen, seed: int) -> dict[str, Tensor]:
    """Return what a model might hand down to be added to the value (PROJ-1)."""
    variant, draw = specimen.variant, torch.Generator().manual_seed(seed + 1)
    if variant.added_value is None:
        return {}
    shape = (scenario.batch, scenario.pos, variant.kv_heads * variant.d_head_v)
    return {
        variant.added_value: torch.randn(shape, generator=draw).to(specimen.device, specimen.dtype)
    }


def random_kv(scenario: Scenario, specimen: Specimen, seed: int) -> tuple[Tensor, Tensor]:
    """Return keys and values (batch, kv_head, pos, width) such as an earlier layer might leave."""
    variant, draw = specimen.variant, torch.Generator().manual_seed(seed)
    widths = (variant.d_head, variant.d_head_v)
    k, v = (
        torch.randn(scenario.batch, variant.kv_heads, scenario.pos, width, generator=draw).to(
            specimen.device, specimen.dtype
        )
        for width in widths
    )
    return k, v


def position_arguments(variant: Variant, ids: Tensor, first: int) -> dict[str, Tensor]:
    """Return what a layer that needs them is told of its positions: the positions, from `first` on,
    or its temperatures (SCORE-4).

    A selector reads from them how many keys there are, and is told the places in this call.
    """
    if variant.selector is not None:
        return {"position_ids": ids}
    if variant.calling.tables == "own":
        return {"position_ids": ids + first}
    if variant.temperature is None or variant.temperature.counted:
        return {}
    if variant.temperature.factor_argument is None:
        return {"position_ids": ids + first}
    return {variant.temperature.factor_argument: 1.0 + 0.1 * ids.float()[:, None, :, None]}


def get_random_inputs(specimen: Specimen, batch: int, pos: int) -> dict[str, Any]:
    """Return standard normal hidden states and the model's own tables, for subjects that have no
    inputs of their own."""
    x = torch.randn(batch, pos, specimen.variant.d_model).to(specimen.device, specimen.dtype)
    return {
        "hidden_states": x,
        "position_embeddings": tables(specimen, x, torch.arange(pos, device=x.device)[None]),
    }


def tables_of(given: Any, variant: Variant) -> tuple[Tensor, Tensor] | None:
    """Return cos and sin of what a layer is given; of a complex table real and imaginary part, of a
    real one its second half and its first (POS-1)."""
    if isinstance(given, Tensor) and given.is_complex():
        return given.real, given.imag
    if isinstance(given, Tensor):
        sin, cos = given.squeeze(1).chunk(2, dim=-1)
        return cos, sin
    if given is None:
        return None
    return (
        (given[0], given[1]) if variant.calling.tables_order == "cos_sin" else (given[1], given[0])
    )


def tables(specimen: Specimen, x: Tensor, ids: Tensor) -> Any:
    """Return the tables of the model's own rotary module for these position ids; None where a layer
    neither rotates nor must be given any."""
    return tables_for(specimen.module, specimen.rotary, specimen.variant, x, ids)


def tables_for(
    module: nn.Module, rotary: nn.Module, variant: Variant, x: Tensor, ids: Tensor
) -> Any:
    """Return the tables that a rotary module makes for a layer at these position ids (1 or batch,
    pos), as its model calls it."""
    if variant.rotary is None and variant.calling.tables == "rotating":
        return None
    axes = position_axes(rotary, variant)
    ids = ids.expand(axes, *ids.shape) if axes > 1 else ids
    by_type = "layer_type" in inspect.signature(type(rotary).forward).parameters
    kind = layer_type(module) if by_type else None
    return rotary(x, ids) if kind is None else rotary(x, ids, kind)


def mask_of(scenario: Scenario, specimen: Specimen, padded: Tensor) -> Tensor | None:
    """Return (batch, 1, query, key): what may be seen, in the scenario's form."""
    if scenario.mask == "none":
        return None
    if scenario.mask == "padding":
        return with_other_keys(
            (torch.arange(scenario.pos) >= padded[:, None]).to(specimen.device), specimen.variant
        )
    if scenario.mask == "free":
        return free_mask(scenario, specimen)
    at, variant = torch.arange(scenario.pos), specimen.variant
    distance, reach, chunk = (
        at[:, None] - at[None, :],
        variant.window or scenario.pos,
        at // (variant.chunk or scenario.pos),
    )
    earlier = distance >= 0 if variant.causal else torch.ones_like(distance, dtype=torch.bool)
    near = (distance.abs() < reach) & (chunk[:, None] == chunk[None, :])
    visible = (earlier & near)[None] & (at[None, None, :] >= padded[:, None, None])
    if not variant.causal:  # or no row would be blind: padding would see what is real
        visible = visible & (at[None, :, None] >= padded[:, None, None])
    visible = visible[:, None].to(specimen.device)
    visible = visible if variant.source is None else beside_source(visible, variant.source)
    if scenario.mask == "boolean":
        return visible
    bias = torch.tensor(scenario.bias, dtype=specimen.dtype, device=visible.device)
    return bias.masked_fill(~visible, torch.finfo(specimen.dtype).min)


def free_mask(scenario: Scenario, specimen: Specimen) -> Tensor:
    """Return (batch, head, query, key): every other key by lot, and each query's own; a number
    between -1 and 1 where a key may be seen."""
    keys = scenario.pos + (SOURCE if specimen.variant.source else 0)
    draw, shape = (
        torch.Generator().manual_seed(3),
        (scenario.batch, specimen.variant.heads, scenario.pos, keys),
    )
    visible = (torch.rand(shape, generator=draw) < 0.5) | torch.eye(
        scenario.pos, keys, dtype=torch.bool
    )
    numbers = (2 * torch.rand(shape, generator=draw) - 1).to(specimen.device, specimen.dtype)
    return numbers.masked_fill(~visible.to(specimen.device), torch.finfo(specimen.dtype).min)


EARLIER = ("shared_kv", "shared_kv_states")
"""What stands for an earlier layer, and is no input along the positions."""


def with_other_keys(real: Tensor, variant: Variant) -> Tensor:
    """Return (batch, key): which keys are real; those of another sequence are."""
    if variant.source is None:
        return real
    other = torch.ones(real.shape[0], SOURCE, dtype=torch.bool, device=real.device)
    return torch.cat([other, real] if variant.source.place == "before" else [real, other], dim=-1)


def beside_source(visible: Tensor, source: Source) -> Tensor:
    """Return what may be seen of both sequences: of the other all, but for the first position in
    the last of the batch; by padding nothing."""
    other = visible.any(-1, keepdim=True).repeat(1, 1, 1, SOURCE)
    other[-1, ..., 0] = False
    return torch.cat([other, visible] if source.place == "before" else [visible, other], dim=-1)


def own_keys(visible: Tensor, variant: Variant) -> Tensor:
    """Return the part of what may be seen, (..., key), that stands for the layer's own
    positions."""
    if variant.source is None:
        return visible
    return visible[..., SOURCE:] if variant.source.place == "before" else visible[..., :-SOURCE]


def rows_of(table: Any, span: slice) -> Any:
    """Return the tables of some positions."""
    if isinstance(table, Tensor):
        return table[..., span, :].clone()
    return table and tuple(t[..., span, :].clone() for t in table)


def cut(base: Mapping[str, Any], variant: Variant, start: int, stop: int) -> dict[str, Any]:
    """Return the inputs of the positions from start to stop, which see keys up to stop; another
    sequence is given whole."""
    mask, table, source = base["attention_mask"], base["position_embeddings"], variant.source
    first, other = 0 if variant.calling.tables_of == "keys" else start, SOURCE if source else 0
    whole = {source.argument: base[source.argument].clone()} if source else {}
    others = [
        name
        for name in base
        if name not in ("hidden_states", "position_embeddings", "attention_mask", *EARLIER, *whole)
    ]
    along = {name: 1 if name in ("position_ids", variant.added_value) else 2 for name in others}
    return {
        "hidden_states": base["hidden_states"][:, start:stop].clone(),
        "position_embeddings": rows_of(table, slice(first, stop + other)),
        **{
            name: base[name].narrow(axis, start, stop - start).clone()
            for name, axis in along.items()
        },
        **whole,
        "attention_mask": (
            None
            if mask is None
            else (mask[:, :, start:stop] if mask.ndim == 4 else mask)[..., : stop + other].clone()
        ),
    }
