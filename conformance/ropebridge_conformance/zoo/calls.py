"""Calls that a scenario makes of a layer, from one set of random inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicSlidingWindowLayer, StaticLayer

from ropebridge_conformance.subjects.answers import asking
from ropebridge_conformance.zoo.masks import FORMS, mask_of
from ropebridge_conformance.zoo.scenarios import CACHE_OFFSET, SOURCE, SPARE, Scenario
from ropebridge_conformance.zoo.selection import numbers
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_conformance.zoo.visibility import Span, bias_of
from ropebridge_conformance.zoo.weights import adapted_layer
from ropebridge_reference import Past
from ropebridge_spec import (
    HookSpec,
    Variant,
    axis_sizes,
    layer_type,
    position_axes,
    shape_of,
    shared_key,
)
from ropebridge_spec import cache_layer as number_in_cache


@dataclass(frozen=True)
class CallInputs:
    """Hold what one call is given, and where its positions stand.

    given: the arguments, tables, mask and cache under the contract's names for them
        (`ropebridge_spec.arguments.RENAMED`).
    first_query: position of the first query. keys: how long the axis of keys is. first_key:
        position of the first of them (`Span`).
    names: role -> the name that the layer's class has for it, None where it takes no such argument.
    """

    given: Mapping[str, Any]
    first_query: int = field(kw_only=True)  # by name: two numbers are easily swapped
    keys: int = field(kw_only=True)
    first_key: int = field(default=0, kw_only=True)
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

    def span(self, variant: Variant) -> Span:
        """Return where its queries and keys stand."""
        source = self.source_length(variant)
        pos = self.given["hidden_states"].shape[1]
        return Span(self.first_query, pos, self.first_key, self.keys - source, source)

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
    """Return the calls of a scenario, in order; those of a scenario with steps share a new
    cache.

    Built on the layer's own `get_random_inputs` where it has one; masks, paddings and their tables
    are the judge's.
    """
    base, variant = base_inputs(scenario, specimen, layer, seed), specimen.variant
    beside: dict[str, Any] = {}
    if variant.calling.layer is not None:
        beside[variant.calling.layer] = adapted_layer(specimen.module)[0]
    if variant.calling.cache_offset is not None:
        beside[variant.calling.cache_offset] = CACHE_OFFSET
    if scenario.steps:
        beside["cache"] = new_cache(scenario, specimen, beside)
    made = []
    for start, stop in spans_of(scenario):
        given = {**cut(base, variant, start, stop), **beside, **shared(specimen, base, stop)}
        span = span_of(scenario, variant, start, stop)
        given = in_form(with_keys(given, span), scenario)
        made.append(
            CallInputs(
                handed(specimen, given, span),
                first_query=start,
                first_key=span.first_key,
                keys=span.all_keys,
                names=specimen.names,
            )
        )
    return made


def spans_of(scenario: Scenario) -> list[tuple[int, int]]:
    """Return the first position of each call, and the one after its last."""
    first = scenario.pos - scenario.steps
    later = range(first, scenario.pos, scenario.step)
    return [(0, first), *((at, min(at + scenario.step, scenario.pos)) for at in later)]


def span_of(scenario: Scenario, variant: Variant, start: int, stop: int) -> Span:
    """Return where queries and keys of a call stand, with the keys that its cache gives back."""
    first_key, keys = 0, stop
    window = window_kept(scenario, variant)
    if scenario.cache == "static":
        keys = scenario.pos + SPARE
    elif window is not None:
        first_key = max(start - window + 1, 0)
        keys = stop - first_key
    other = 0 if variant.source is None else SOURCE
    return Span(start, stop - start, first_key, keys, other)


def window_kept(scenario: Scenario, variant: Variant) -> int | None:
    """Return the window that is all that a scenario's cache keeps; None where it keeps more. A
    window of one position keeps everything: transformers' `DynamicSlidingWindowLayer` cuts at -0
    there."""
    slides = scenario.cache == "sliding" and variant.window != 1
    return variant.window if slides else None


def new_cache(scenario: Scenario, specimen: Specimen, beside: Mapping[str, Any]) -> Cache:
    """Return a cache with nothing in it, of the scenario's kind, for a layer that is called
    beside it with these arguments."""
    window = window_kept(scenario, specimen.variant)
    layers = range(cache_layer(beside, specimen.module, specimen.variant) + 1)
    if scenario.cache == "static":
        return Cache([StaticLayer(scenario.pos + SPARE) for _ in layers])
    if window is not None:
        return Cache([DynamicSlidingWindowLayer(window) for _ in layers])
    return DynamicCache()


def with_keys(given: dict[str, Any], span: Span) -> dict[str, Any]:
    """Return the inputs of a call with its mask cut to the keys that the cache gives back, those
    that are not written yet forbidden."""
    mask = given["attention_mask"]
    if mask is None:
        return given
    mask = mask[..., span.first_key :]
    room = span.all_keys - mask.shape[-1]
    lowest = 0.0 if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return {**given, "attention_mask": pad(mask, (0, room), value=lowest)}


def in_form(given: dict[str, Any], scenario: Scenario) -> dict[str, Any]:
    """Return the inputs of a call with its mask in the form in which the scenario hands it down."""
    mask = given["attention_mask"]
    if mask is None:
        return given
    return {**given, "attention_mask": FORMS[scenario.form](mask)}


def cache_layer(given: Mapping[str, Any], module: Any, variant: Variant) -> int:
    """Return which layer of the cache is a call's: the module's own number or the one it is called
    for, further on by its offset."""
    calling = variant.calling
    named, offset = given.get(calling.layer or ""), given.get(calling.cache_offset or "")
    return number_in_cache(module, named, offset)


def handed(specimen: Specimen, given: dict[str, Any], span: Span) -> dict[str, Any]:
    """Return the inputs of a call, with an earlier layer's picks where the layer is handed them
    (SEL-1)."""
    selector, x = specimen.variant.selector, given["hidden_states"]
    if selector is None or selector.picks_argument is None:
        return given
    visible = bias_of(given["attention_mask"], span, specimen.variant, x.device) > -torch.inf
    return {
        **given,
        selector.picks_argument: numbers(
            selector, visible.expand(x.shape[0], -1, -1, -1), span.first_query
        ),
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


EARLIER = ("shared_kv", "shared_kv_states")

"""What stands for an earlier layer, and is no input along the positions."""


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
