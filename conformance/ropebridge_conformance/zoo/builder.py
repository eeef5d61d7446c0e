"""Build the tiny models of the recipes, and what their forwards are given."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.zoo.recipes import RECIPE_BY_NAME
from ropebridge_conformance.zoo.recipes.sizes import SIZES


def build_config(name: str, **changes: Any) -> Any:
    """Return the tiny config of a family; `changes` replace what its recipe sets."""
    recipe = RECIPE_BY_NAME[name]
    config_class = recipe.load("configuration", recipe.config_class)
    aliases = getattr(config_class, "attribute_map", {})
    known = (
        {entry.name for entry in dataclasses.fields(config_class)} - set(aliases.values())
        | set(aliases)
        | {"head_dim"}
    )
    given = (
        {key: value for key, value in SIZES.items() if key in known}
        | copy.deepcopy(dict(recipe.config))
        | changes
    )
    return config_class(**{key: value for key, value in given.items() if value is not ...})


def build_model(name: str, attn: str = "eager", **changes: Any) -> Any:
    """Return a family's tiny model as transformers initialises it, in float32 on the cpu and in
    eval mode, attending by `attn`."""
    recipe, config = RECIPE_BY_NAME[name], build_config(name, **changes)
    config._experts_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # of the cpu alone: five milliseconds less
        model = recipe.load("modeling", recipe.model_class)._from_config(
            config, attn_implementation=attn
        )
    return model.eval()


def inputs_of(name: str, config: Any, batch: int = 2, pos: int = 12) -> dict[str, Tensor]:
    """Return what one forward of a family's tiny model is given, position by position; longer than
    the window, no special token."""
    draw = torch.Generator().manual_seed(1)
    recipe = RECIPE_BY_NAME[name]
    if recipe.inputs == "embeds":
        return {"inputs_embeds": torch.randn(batch, pos, config.hidden_size, generator=draw)}
    if recipe.inputs == "draft":
        states = torch.randn(
            batch, pos, config.hidden_size * len(config.target_layer_ids), generator=draw
        )
        return {
            "noise_embeds": torch.randn(
                batch, config.block_size, config.hidden_size, generator=draw
            ),
            "context_hidden_states": states,
        }
    shape = (batch, pos, recipe.codebooks) if recipe.inputs == "codebooks" else (batch, pos)
    ids = torch.randint(3, 40, shape, generator=draw)
    if recipe.inputs == "seeing":
        return {
            "input_ids": ids,
            "image_attention_mask": torch.ones(batch, pos, 1, dtype=torch.long),
        }
    if recipe.inputs == "speech":
        return {
            "input_ids": ids,
            "decoder_input_ids": torch.randint(3, 40, (*shape, recipe.codebooks), generator=draw),
        }
    return (
        {"input_ids": ids, "decoder_input_ids": ids.flip(0)}
        if recipe.inputs == "pair"
        else {"input_ids": ids}
    )


def cache_name(model: Any) -> str:
    """Return under which name a model's forward takes its cache and its output holds it: `cache`
    since transformers 5.24, `past_key_values` before."""
    return (
        "cache"
        if "cache" in inspect.signature(type(model).forward).parameters
        else "past_key_values"
    )


def extra_of(name: str) -> dict[str, Tensor]:
    """Return what every forward of a family's tiny model is given beside."""
    draw = torch.Generator().manual_seed(2)
    ids = {
        key: torch.randint(3, 20, shape, generator=draw)
        for key, shape in RECIPE_BY_NAME[name].extra.items()
        if key.endswith("_ids")
    }
    masks = {
        key: torch.ones(shape, dtype=torch.long)
        for key, shape in RECIPE_BY_NAME[name].extra.items()
        if key.endswith("_attention_mask")
    }
    return (
        {
            key: torch.randn(shape, generator=draw)
            for key, shape in RECIPE_BY_NAME[name].extra.items()
        }
        | ids
        | masks
    )
