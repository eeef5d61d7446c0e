"""Patterns that are to be seen, one panel per head, and what to write at their rows and columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ropebridge.bridged import BridgedModel
from ropebridge_spec import RopebridgeError

Heads = Iterable[int] | Iterable[tuple[int, int]] | None


class PlotError(RopebridgeError, ValueError):
    """Report that a plot was asked for that cannot be made."""


@dataclass(frozen=True)
class Panel:
    """Hold one head and its pattern.

    Attributes:
        layer: the place of its layer in `bridged.layers`.
        head: the head.
        pattern: (query, key) float32 on the CPU.
    """

    layer: int
    head: int
    pattern: Tensor


@torch.no_grad()
def panels_of(
    bridged: BridgedModel,
    inputs: Tensor | Mapping[str, Any],
    layers: Iterable[int] | None,
    heads: Heads,
    row: int,
) -> list[Panel]:
    """Run the model once and take the chosen heads' patterns of one row; others are not kept."""
    chosen = choose([layer.variant.heads for layer in bridged.layers], layers, heads)
    found: dict[str, Tensor] = {}

    def keep(pattern: Tensor, hook: Any) -> None:
        if not 0 <= row < pattern.shape[0]:
            raise PlotError(
                f"row={row} is not in the batch; it has {pattern.shape[0]} rows, counted from 0"
            )
        found[hook.name] = pattern[row].detach().float().cpu()

    names = {layer: f"{bridged.layers[layer].name}.hook_pattern" for layer, _ in chosen}
    hooks = [(name, keep) for name in names.values()]
    bridged.run_with_hooks(fwd_hooks=hooks, **keywords(bridged, inputs))
    return [Panel(layer, head, found[names[layer]][head].contiguous()) for layer, head in chosen]


def keywords(bridged: BridgedModel, inputs: Tensor | Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of the model's call.

    Raises:
        PlotError: the inputs are neither a tensor nor a mapping.
    """
    if not isinstance(inputs, (Tensor, Mapping)):
        raise PlotError(
            f"inputs are {inputs!r}; they must be token ids (batch, pos), or a mapping of what the"
            " model is called with: tokenizer(text, return_tensors='pt')"
        )
    uncached = {"use_cache": False} if bridged.accepts("use_cache") else {}
    return {**uncached, **({"input_ids": inputs} if isinstance(inputs, Tensor) else inputs)}


def choose(
    sizes: Sequence[int], layers: Iterable[int] | None, heads: Heads
) -> list[tuple[int, int]]:
    """Return the heads (layer, head) that are asked for, in the order in which they are.

    Raises:
        PlotError: one of them is not there, or there are none.
    """
    rows = list(range(len(sizes)) if layers is None else layers)
    asked: list[Any] | None = None if heads is None else list(heads)
    if asked and isinstance(asked[0], tuple):
        chosen = asked
    else:
        chosen = []
        for layer in rows:
            # a layer that is not there is refused below, by its first head
            size = sizes[layer] if 0 <= layer < len(sizes) else 1
            chosen += [(layer, head) for head in (range(size) if asked is None else asked)]
    for layer, head in chosen:
        if not (0 <= layer < len(sizes) and 0 <= head < sizes[layer]):
            raise PlotError(
                f"there is no head {head} in layer {layer}; the model has {len(sizes)} layers, of"
                f" {list(sizes)} heads, both counted from 0"
            )
    if not chosen:
        raise PlotError(
            f"no head is chosen; pass layers= and heads= of a model with {len(sizes)} layers, of"
            f" {list(sizes)} heads"
        )
    return chosen


def tokens_of(
    tokens: Sequence[str] | None, inputs: Tensor | Mapping[str, Any], row: int, panel: Panel
) -> list[str]:
    """Return what stands at each key: as given, or token ids, or places where there are none.

    Raises:
        PlotError: there are more or fewer than keys.
    """
    keys = panel.pattern.shape[1]
    if tokens is None:
        ids = inputs if isinstance(inputs, Tensor) else inputs.get("input_ids")
        known = isinstance(ids, Tensor) and ids.shape[1] == keys
        return (
            [str(int(x)) for x in ids[row]]
            if known and ids is not None
            else [str(place) for place in range(keys)]
        )
    if len(tokens) != keys:
        raise PlotError(
            f"{len(tokens)} tokens were given for {keys} keys; pass those of row {row}:"
            f" tokens=tokenizer.convert_ids_to_tokens(ids[{row}])"
        )
    return list(tokens)
