"""Sizes of what hook points hold, known before anything runs."""

from __future__ import annotations

import math

import torch

from ropebridge.bridge import PositionEmbeddingsAttentionBridge
from ropebridge.bridged import BridgedModel
from ropebridge.inputs import floating_parameter
from ropebridge.requests import NamesFilter, find_watches, one_for_each_name
from ropebridge.watch import Watch
from ropebridge_spec import ContractError, axis_sizes, shape_of, ungrouped
from ropebridge_spec import Watch as Part


def bytes_needed(
    bridged: BridgedModel,
    names_filter: NamesFilter = None,
    batch: int = 1,
    pos: int = 1,
    *,
    key: int | None = None,
    dtype: torch.dtype | None = None,
) -> int:
    """Return how many bytes a cache of these hook points takes, of one pass whose positions are
    those of the model (`run_with_cache` of input_ids alone).

    Args:
        bridged: the model.
        names_filter: a full hook name, a predicate of names, a `Watch` of either, several of those,
            or None for all.
        batch, pos: sizes of the input.
        key: keys that each query may see; None means `pos`, more where a cache holds earlier ones.
        dtype: in which the tensors are kept; None means the layer's own.

    Raises:
        ContractError: a size is less than 0, there are fewer keys than positions, or no such part.
        UnknownHook: no hook point of that name.
    """
    key = pos if key is None else key
    if min(batch, pos) < 0 or key < pos:
        raise ContractError(
            f"bytes_needed was given batch={batch}, pos={pos}, key={key}; sizes are 0 or more, and"
            " keys are no fewer than positions"
        )
    layer_of = {
        point.name: layer for layer in bridged.layers for point in layer.hook_points.values()
    }
    watches = one_for_each_name(find_watches(bridged.hook_points, names_filter))
    return sum(
        bytes_of(watch, layer_of[str(watch.name)], batch, pos, key, dtype) for watch in watches
    )


def bytes_of(
    watch: Part,
    layer: PositionEmbeddingsAttentionBridge,
    batch: int,
    pos: int,
    key: int,
    dtype: torch.dtype | None,
) -> int:
    """Return how many bytes the tensor at one hook point, or its part, takes, as `bytes_needed`
    does."""
    variant = ungrouped(layer.variant, layer.opted_in)
    sizes = axis_sizes(variant, batch=batch, pos=pos, key=key)
    spec = layer.hook(str(watch.name).rsplit(".", 1)[-1]).spec
    kept = floating_parameter(layer).dtype if dtype is None else dtype
    shape = shape_of(spec, sizes)
    chosen = watch.selection(spec.axes, shape, str(watch.name)).along(spec.axes)
    lengths = [
        length if numbers is None else len(numbers)
        for length, numbers in zip(shape, chosen, strict=True)
    ]
    if isinstance(watch, Watch) and watch.reduce is not None:
        wide = torch.promote_types(kept, torch.float32) if dtype is None else dtype
        batch, heads, query, key = lengths
        return watch.reduce.bytes_needed(batch, heads, query, key, wide)
    return math.prod(lengths) * kept.itemsize
