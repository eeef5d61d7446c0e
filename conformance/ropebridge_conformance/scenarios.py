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
from ropebridge_spec import OptIn

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
    Scenario("large", "sixteen rows of forty positions, for statistics of the error", batch=16, pos=40),
)
SCENARIO: Mapping[str, Scenario] = {scenario.id: scenario for scenario in SCENARIOS}
CORE = ("prefill", "left_padding", "no_mask", "decode")
OPTED = ("split", "attn_in")


@dataclass(frozen=True)
class CallInputs:
    """What one call is given, and where its positions stand."""

    given: Mapping[str, Any]
    first_query: int
    keys: int


def calls(scenario: Scenario, specimen: Specimen, layer: Any, seed: int = 0) -> list[CallInputs]:
    """The calls of a scenario, in order; a scenario with steps shares one fresh cache between them.

    Built on the layer's own `get_random_inputs` where it has one; masks, paddings and their tables are the judge's.
    """
    base = base_inputs(scenario, specimen, layer, seed)
    cache = {"past_key_values": DynamicCache()} if scenario.steps else {}
    first = scenario.pos - scenario.steps
    spans = [(0, first), *((i, i + 1) for i in range(first, scenario.pos))]
    return [CallInputs({**cut(base, start, stop), **cache}, start, stop) for start, stop in spans]


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
    return {**inputs, "attention_mask": mask_of(scenario, specimen, padded)}


def get_random_inputs(specimen: Specimen, batch: int, pos: int) -> dict[str, Any]:
    """Standard normal hidden states and the model's own tables, for subjects that have no inputs of their own."""
    x = torch.randn(batch, pos, specimen.variant.d_model).to(specimen.device, specimen.dtype)
    return {"hidden_states": x, "position_embeddings": tables(specimen, x, torch.arange(pos, device=x.device)[None])}


def tables(specimen: Specimen, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor] | None:
    """cos and sin of the model's own rotary module for these position ids; None where a layer neither rotates nor must be given any."""
    module: Any = specimen.module
    required = inspect.signature(type(module).forward).parameters["position_embeddings"].default is inspect.Parameter.empty
    if specimen.variant.rotary is None and not required:
        return None
    by_type = "layer_type" in inspect.signature(type(specimen.rotary).forward).parameters
    cos, sin = specimen.rotary(x, ids, layer_type_of(module)) if by_type else specimen.rotary(x, ids)
    return cos, sin


def layer_type_of(module: Any) -> str:
    """The type of a layer, as its model's config names it."""
    return str(module.layer_type if hasattr(module, "layer_type") else module.config.layer_types[module.layer_idx])


def mask_of(scenario: Scenario, specimen: Specimen, padded: Tensor) -> Tensor | None:
    """(batch, 1, query, key): what may be seen, in the scenario's form."""
    if scenario.mask == "none":
        return None
    at = torch.arange(scenario.pos)
    distance = at[:, None] - at[None, :]
    reach = specimen.variant.window or scenario.pos
    visible = ((distance >= 0) & (distance < reach))[None] & (at[None, None, :] >= padded[:, None, None])
    visible = visible[:, None].to(specimen.device)
    if scenario.mask == "boolean":
        return visible
    return torch.zeros((), dtype=specimen.dtype, device=visible.device).masked_fill(~visible, torch.finfo(specimen.dtype).min)


def cut(base: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    """The inputs of the positions from start to stop, which see keys up to stop."""
    mask, table = base["attention_mask"], base["position_embeddings"]
    return {
        "hidden_states": base["hidden_states"][:, start:stop].clone(),
        "position_embeddings": None if table is None else tuple(t[:, start:stop].clone() for t in table),
        "attention_mask": None if mask is None else mask[:, :, start:stop, :stop].clone(),
    }
