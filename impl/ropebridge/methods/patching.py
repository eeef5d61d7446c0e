"""Activation patching: what the metric becomes when one activation is taken from another run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ropebridge.bridged import BridgedModel
from ropebridge.methods.errors import MethodError
from ropebridge.methods.running import Inputs, Metric, values_at
from ropebridge.methods.selection import Heads, Selection, select
from ropebridge.methods.variants import measure_each
from ropebridge_spec import axis_names

Index = tuple[int, ...]


@torch.no_grad()
def activation_patching(
    bridged: BridgedModel,
    inputs: Inputs,
    others: Inputs,
    metric: Metric,
    *,
    hook: str = "hook_z",
    each: str = "head",
    layers: Iterable[int] | None = None,
    heads: Heads | None = None,
    positions: Iterable[int] | None = None,
    at_once: int | None = None,
    quiet: bool = False,
) -> Tensor:
    """Return the metric on `inputs` with one activation after another taken from the run on
    `others`.

    Usually `inputs` are the corrupted prompts and `others` the clean ones: what restores the metric
    carries the answer.

    Args:
        inputs, others: two batches of the same shape.
        metric: a function of the logits of the run on `inputs`.
        hook: the short name of a hook point, `hook_z`.
        each: the axes of that hook point that are gone through one place at a time, in its own
            order, `"pos head"`; along the others everything is patched at once. An empty string
            patches whole layers.
        layers, heads, positions: which places are gone through, and along the axes that `each`
            does not name, what is patched; as in `select`. Heads are those of the hook point: of
            hook_k kv heads.
        at_once: how many patches one forward pass makes, each in rows of its own; None takes as
            many as make 2048 tokens.
        quiet: no progress bar.

    Returns:
        (layer, *each) float32: the metric under that patch; nan where a layer has no such place, or
        it was not chosen.

    Raises:
        MethodError: an axis that the hook point does not have, or two batches of different shapes.
        UnknownHook: no layer has the hook point.
    """
    chosen = select(bridged, layers, heads, positions)
    theirs = values_at(bridged, others, hook)
    axes = {name: places_of(bridged, name, each) for name in theirs}
    table = empty_table(bridged, theirs, axes)
    masks = masks_of(bridged, theirs, chosen)
    places = [(name, place) for name in masks for place in every(masks[name], axes[name])]
    variants = [
        [(name, put(theirs[name], masks[name], index_of(masks[name], place, axes[name])))]
        for name, place in places
    ]
    found = measure_each(bridged, inputs, metric, variants, f"patching {hook}", quiet, at_once)
    for (name, place), value in zip(places, found, strict=True):
        table[(layer_of(bridged, name), *place)] = value
    return table


def masks_of(
    bridged: BridgedModel, values: Mapping[str, Tensor], chosen: Selection
) -> dict[str, Tensor]:
    """Return name -> booleans of a value's shape without its batch axis: true where it was chosen;
    nothing of layers that were not."""
    masks = {}
    for name, value in values.items():
        layer = layer_of(bridged, name)
        if layer in chosen.layers:
            mask = chosen.mask(layer, bridged.hook_points[name].spec.axes, value.shape)
            masks[name] = mask.expand(value.shape[1:])
    return masks


def places_of(bridged: BridgedModel, name: str, each: str) -> Index:
    """Return the dimensions that the words of `each` name at a hook point, in the hook point's
    order."""
    axes = axis_names(bridged.hook_points[name].spec.axes)
    asked = axis_names(each)
    if not set(asked) <= set(axes[1:]) or len(set(asked)) < len(asked):
        raise MethodError(
            f"each={each!r} does not name axes of {name!r}; choose from {' '.join(axes[1:])!r}, or"
            " '' for the whole layer"
        )
    if list(asked) != [axis for axis in axes if axis in asked]:
        raise MethodError(
            f"each={each!r} is not in the order of {name!r}, whose axes are {' '.join(axes)!r}"
        )
    return tuple(axes.index(axis) for axis in asked)


def empty_table(
    bridged: BridgedModel, values: Mapping[str, Tensor], axes: Mapping[str, Index]
) -> Tensor:
    """Return (layer, ...) full of nan, each axis as long as in the layer that has most of it."""
    sizes = [[value.shape[axis] for axis in axes[name]] for name, value in values.items()]
    return torch.full(
        (len(bridged.layers), *(max(size) for size in zip(*sizes, strict=True))), torch.nan
    )


def every(mask: Tensor, axes: Index) -> Iterator[Index]:
    """Return every place along the axes at which anything is chosen."""
    places = product(*(range(mask.shape[axis - 1]) for axis in axes))
    return (place for place in places if bool(mask[index_of(mask, place, axes)].any()))


def index_of(mask: Tensor, place: Index, axes: Index) -> tuple[Any, ...]:
    """Return the index of a place in what has no batch axis."""
    at = dict(zip(axes, place, strict=True))
    return tuple(at.get(axis + 1, slice(None)) for axis in range(mask.ndim))


def put(value: Tensor, mask: Tensor, index: tuple[Any, ...]) -> Any:
    """Return a hook that puts what was chosen of one place, from another run's value, in its
    place."""
    here = (slice(None), *index)

    def patch(tensor: Tensor, hook: Any) -> None:
        refuse_other_run(value, tensor)
        chosen = mask[index].to(tensor.device)
        tensor[here] = torch.where(chosen, value[here], tensor[here])

    return patch


def refuse_other_run(value: Tensor, shown: Tensor) -> None:
    """Refuse the activations of a run of other sizes."""
    if value.shape != shown.shape:
        raise MethodError(
            f"others gave activations of shape {tuple(value.shape)}, and inputs have"
            f" {tuple(shown.shape)}; both runs must have the same batch and length\n  choose"
            " prompts of one length, or pad both alike"
        )


def layer_of(bridged: BridgedModel, name: str) -> int:
    """Return the place of a hook point's layer among `bridged.layers`."""
    return next(
        i for i, layer in enumerate(bridged.layers) if name.rpartition(".")[0] == layer.name
    )
