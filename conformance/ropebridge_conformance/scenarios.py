"""Scenarios: the calls a layer is put through, from one set of random inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from ropebridge_conformance.zoo import Specimen
from ropebridge_reference import Past
from ropebridge_spec import OptIn, Variant, layer_type, position_axes, shared_key

BATCH, POS = 2, 13
"""Longer than the zoo's window, and odd; two rows, so that masks can differ in the batch."""


@dataclass(frozen=True)
class Scenario:
    """A way to call a layer.

    mask: the form in which visibility is handed down.
    left_padding: positions the last of the batch is padded by.
    steps: how many of the last positions come one by one, with a cache.
    opted_in: hook points made on request.
    """

    id: str
    says: str
    mask: Literal["additive", "boolean", "none"] = "additive"
    left_padding: int = 0
    steps: int = 0
    opted_in: tuple[OptIn, ...] = ()
    batch: int = BATCH
    pos: int = POS


SCENARIOS: tuple[Scenario, ...] = (
    Scenario("prefill", "all positions at once, with the additive mask transformers makes for eager attention"),
    Scenario("left_padding", "the last of the batch is padded by three positions; boolean mask", mask="boolean", left_padding=3),
    Scenario("no_mask", "no mask is handed down: causality and window are the layer's own", mask="none"),
    Scenario("decode", "ten positions, then three one by one, from a cache", steps=3),
    Scenario("split", "query, key and value inputs split by head, results by head", opted_in=("split_qkv_input", "attn_result")),
    Scenario("attn_in", "one input a query head", opted_in=("attn_in",)),
    Scenario("result", "results by head, in a layer whose inputs cannot be split", opted_in=("attn_result",)),
    Scenario("large", "sixteen rows of forty positions, for statistics of the error", batch=16, pos=40),
)
SCENARIO: Mapping[str, Scenario] = {scenario.id: scenario for scenario in SCENARIOS}
CORE = ("prefill", "left_padding", "no_mask", "decode")
OPTED = ("split", "attn_in", "result")


def possible(scenario: Scenario, variant: Variant) -> bool:
    """Whether a layer can be called so: one that sees later positions keeps no cache, and not every layer's inputs can be split."""
    split = bool({"attn_in", "split_qkv_input"} & set(scenario.opted_in))
    if scenario.id == "result":
        return not variant.splits
    return (variant.causal or not scenario.steps) and (variant.splits or not split)


@dataclass(frozen=True)
class CallInputs:
    """What one call is given, and where its positions stand."""

    given: Mapping[str, Any]
    first_query: int
    keys: int

    def given_kv(self, variant: Variant) -> Past | None:
        """Keys and values that an earlier layer hands down (KV-1)."""
        if variant.kv_given is None:
            return None
        (pair,) = self.given[variant.kv_given].values()
        return Past(*(heads.transpose(1, 2) for heads in pair))

    def positions(self, variant: Variant) -> Tensor:
        """(1 or batch, pos): the positions that a temperature reads, or the temperatures where they are given (SCORE-4)."""
        x, ids = self.given["hidden_states"], self.given.get("position_ids")
        if variant.temperature is not None and variant.temperature.given is not None:
            factor = self.given[variant.temperature.given]
            return torch.ones(1, x.shape[1], device=x.device) if factor is None else factor[:, 0, :, 0]
        counted = torch.arange(self.first_query, self.first_query + x.shape[1], device=x.device)[None]
        return ids if isinstance(ids, Tensor) and variant.temperature and not variant.temperature.counted else counted


def calls(scenario: Scenario, specimen: Specimen, layer: Any, seed: int = 0) -> list[CallInputs]:
    """The calls of a scenario, in order; a scenario with steps shares one fresh cache between them.

    Built on the layer's own `get_random_inputs` where it has one; masks, paddings and their tables are the judge's.
    """
    base = base_inputs(scenario, specimen, layer, seed)
    cache = {"past_key_values": DynamicCache()} if scenario.steps else {}
    first = scenario.pos - scenario.steps
    spans = [(0, first), *((i, i + 1) for i in range(first, scenario.pos))]
    return [CallInputs({**cut(base, start, stop), **cache, **shared(specimen, base, stop)}, start, stop) for start, stop in spans]


def shared(specimen: Specimen, base: Mapping[str, Any], stop: int) -> dict[str, Any]:
    """Where a layer leaves its keys and values for later ones, and those that it is given."""
    variant, kind = specimen.variant, shared_key(specimen.module)
    given = {kind: tuple(heads[:, :, :stop].clone() for heads in base["shared_kv"])} if variant.kv_given else {}
    return {name: given for name in (variant.kv_given, variant.calling.kv_left) if name}


@lru_cache(maxsize=32)
def base_inputs(scenario: Scenario, specimen: Specimen, layer: Any, seed: int) -> dict[str, Any]:
    """hidden_states, position_embeddings and attention_mask over all positions; calls are given copies of parts of them."""
    own = getattr(layer, "get_random_inputs", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if own is not None:
            inputs = own(scenario.batch, scenario.pos, specimen.device, specimen.dtype)
        else:
            inputs = get_random_inputs(specimen, scenario.batch, scenario.pos)
    padded = torch.zeros(scenario.batch, dtype=torch.long)
    padded[-1] = scenario.left_padding
    ids = (torch.arange(scenario.pos) - padded[:, None]).clamp(min=0).to(specimen.device)
    if scenario.left_padding:
        inputs["position_embeddings"] = tables(specimen, inputs["hidden_states"], ids)
    made = {**placed(specimen.variant, ids), "attention_mask": mask_of(scenario, specimen, padded), "shared_kv": random_kv(scenario, specimen, seed)}
    return {**inputs, **made}


def random_kv(scenario: Scenario, specimen: Specimen, seed: int) -> tuple[Tensor, Tensor]:
    """Keys and values (batch, kv_head, pos, width) such as an earlier layer might leave."""
    variant, draw = specimen.variant, torch.Generator().manual_seed(seed)
    widths = (variant.d_head, variant.d_head_v)
    k, v = (torch.randn(scenario.batch, variant.kv_heads, scenario.pos, width, generator=draw).to(specimen.device, specimen.dtype) for width in widths)
    return k, v


def placed(variant: Variant, ids: Tensor) -> dict[str, Tensor]:
    """What a layer that needs them is told of its positions: the positions, or its temperatures (SCORE-4)."""
    if variant.calling.tables == "own":
        return {"position_ids": ids}
    if variant.temperature is None or variant.temperature.counted:
        return {}
    if variant.temperature.given is None:
        return {"position_ids": ids}
    return {variant.temperature.given: 1.0 + 0.1 * ids.float()[:, None, :, None]}


def get_random_inputs(specimen: Specimen, batch: int, pos: int) -> dict[str, Any]:
    """Standard normal hidden states and the model's own tables, for subjects that have no inputs of their own."""
    x = torch.randn(batch, pos, specimen.variant.d_model).to(specimen.device, specimen.dtype)
    return {"hidden_states": x, "position_embeddings": tables(specimen, x, torch.arange(pos, device=x.device)[None])}


def tables_of(given: Any) -> tuple[Tensor, Tensor] | None:
    """cos and sin of what a layer is given; of a complex table real and imaginary part (POS-1)."""
    if isinstance(given, Tensor):
        return given.real, given.imag
    return None if given is None else (given[0], given[1])


def tables(specimen: Specimen, x: Tensor, ids: Tensor) -> Any:
    """The tables of the model's own rotary module for these position ids; None where a layer neither rotates nor must be given any."""
    module: Any = specimen.module
    if specimen.variant.rotary is None and specimen.variant.calling.tables == "rotating":
        return None
    axes = position_axes(specimen.rotary)
    ids = ids.expand(axes, *ids.shape) if axes > 1 else ids
    by_type = "layer_type" in inspect.signature(type(specimen.rotary).forward).parameters
    kind = layer_type(module) if by_type else None
    return specimen.rotary(x, ids) if kind is None else specimen.rotary(x, ids, kind)


def mask_of(scenario: Scenario, specimen: Specimen, padded: Tensor) -> Tensor | None:
    """(batch, 1, query, key): what may be seen, in the scenario's form."""
    if scenario.mask == "none":
        return None
    at, variant = torch.arange(scenario.pos), specimen.variant
    distance, reach, chunk = at[:, None] - at[None, :], variant.window or scenario.pos, at // (variant.chunk or scenario.pos)
    earlier = distance >= 0 if variant.causal else torch.ones_like(distance, dtype=torch.bool)
    near = (distance.abs() < reach) & (chunk[:, None] == chunk[None, :])
    visible = (earlier & near)[None] & (at[None, None, :] >= padded[:, None, None])
    if not variant.causal:  # or no row would be blind: padding would see what is real
        visible = visible & (at[None, :, None] >= padded[:, None, None])
    visible = visible[:, None].to(specimen.device)
    if scenario.mask == "boolean":
        return visible
    return torch.zeros((), dtype=specimen.dtype, device=visible.device).masked_fill(~visible, torch.finfo(specimen.dtype).min)


EARLIER = ("shared_kv", "shared_kv_states")
"""What stands for an earlier layer, and is no input along the positions."""


def cut(base: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    """The inputs of the positions from start to stop, which see keys up to stop."""
    mask, table = base["attention_mask"], base["position_embeddings"]
    along = {name: 1 if name == "position_ids" else 2 for name in base if name not in ("hidden_states", "position_embeddings", "attention_mask", *EARLIER)}
    return {
        "hidden_states": base["hidden_states"][:, start:stop].clone(),
        "position_embeddings": table[:, start:stop].clone() if isinstance(table, Tensor) else table and tuple(t[:, start:stop].clone() for t in table),
        **{name: base[name].narrow(axis, start, stop - start).clone() for name, axis in along.items()},
        "attention_mask": None if mask is None else mask[:, :, start:stop, :stop].clone(),
    }
