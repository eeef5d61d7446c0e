"""Choose the layers, heads and positions that a method goes through."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ropebridge.bridged import BridgedModel
from ropebridge.methods.errors import MethodError
from ropebridge_spec import axis_names

Heads = Iterable[int] | Iterable[tuple[int, int]]
"""Numbers of heads, in every chosen layer that has them; or pairs (layer, head)."""

OF_HEADS = ("head", "kv_head")
OF_POSITIONS = ("pos", "query")


@dataclass(frozen=True)
class Selection:
    """Hold what was chosen of a model.

    layers: places among `bridged.layers`, in order.
    heads: numbers of heads for each of them, in order; None for all, of whatever axis.
    positions: positions, counted from the front or from -1 at the end; None for all.
    """

    layers: tuple[int, ...]
    heads: dict[int, tuple[int, ...]] | None
    positions: tuple[int, ...] | None

    def heads_of(self, layer: int, count: int) -> tuple[int, ...]:
        """Return the numbers of the chosen heads of a layer that has so many."""
        if self.heads is None:
            return tuple(range(count))
        return tuple(head for head in self.heads.get(layer, ()) if head < count)

    def positions_of(self, length: int) -> tuple[int, ...]:
        """Return the chosen positions among so many, counted from the front.

        Raises:
            MethodError: one lies outside.
        """
        if self.positions is None:
            return tuple(range(length))
        for position in self.positions:
            if not -length <= position < length:
                raise MethodError(
                    f"positions={list(self.positions)} names position {position}; the inputs have"
                    f" {length}, counted from 0, or from -1 at the end"
                )
        return tuple(sorted({position % length for position in self.positions}))

    def mask(self, layer: int, axes: str, shape: Sequence[int]) -> Tensor:
        """Return booleans of a hook point's shape without its batch axis, each axis as long as the
        hook point's or 1: true at the chosen heads and positions.

        Args:
            layer: whose hook point it is.
            axes: of the hook point, "batch pos head d_head".
            shape: of what it held.
        """
        mask = torch.ones([1] * (len(shape) - 1), dtype=torch.bool)
        for at, axis in enumerate(axis_names(axes)[1:]):
            size = shape[at + 1]
            if axis in OF_HEADS:
                mask = mask & flags_along(self.heads_of(layer, size), size, at, mask.ndim)
            if axis in OF_POSITIONS:
                mask = mask & flags_along(self.positions_of(size), size, at, mask.ndim)
        return mask


def flags_along(chosen: Sequence[int], size: int, axis: int, ndim: int) -> Tensor:
    """Return booleans with `size` places along one axis and 1 along the others: true at the chosen
    ones."""
    flags = torch.zeros(size, dtype=torch.bool)
    flags[list(chosen)] = True
    return flags.reshape([size if at == axis else 1 for at in range(ndim)])


def select(
    bridged: BridgedModel,
    layers: Iterable[int] | None = None,
    heads: Heads | None = None,
    positions: Iterable[int] | None = None,
) -> Selection:
    """Return what was chosen of a model.

    Args:
        layers: places among `bridged.layers`; None for all, or for those that pairs in `heads`
            name.
        heads: numbers of heads, or pairs (layer, head); None for all.
        positions: positions; None for all.

    Raises:
        MethodError: a layer or a head that the model does not have, or nothing at all.
    """
    for name, value in {"layers": layers, "heads": heads, "positions": positions}.items():
        if isinstance(value, str) or not isinstance(value, (Iterable, type(None))):
            raise MethodError(f"{name}={value!r} is no list of numbers; give {name}=[{value!r}]")
    numbers, pairs = split_heads_and_pairs(heads)
    refuse_unknown(bridged, pairs)
    if layers is not None:
        chosen = sorted({int(layer) for layer in layers})
    elif pairs and not numbers:
        chosen = sorted({layer for layer, _ in pairs})
    else:
        chosen = list(range(len(bridged.layers)))
    refuse_unknown(bridged, [(layer, 0) for layer in chosen])
    of_layer: dict[int, tuple[int, ...]] | None = None
    if heads is not None:
        refuse_absent_heads(bridged, numbers, chosen)
        of_layer = {
            layer: tuple(sorted({*numbers, *(head for at, head in pairs if at == layer)}))
            for layer in chosen
        }
    where = None if positions is None else tuple(int(position) for position in positions)
    if not chosen or where == () or (of_layer is not None and not any(of_layer.values())):
        raise MethodError("layers=, heads= or positions= choose nothing; None chooses all")
    return Selection(tuple(chosen), of_layer, where)


def split_heads_and_pairs(heads: Heads | None) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the numbers, and the pairs, among chosen heads."""
    numbers: list[int] = []
    pairs: list[tuple[int, int]] = []
    for head in heads or ():
        if isinstance(head, (tuple, list)):
            layer, number = head
            pairs.append((int(layer), int(number)))
        else:
            numbers.append(int(head))
    return numbers, pairs


def refuse_absent_heads(
    bridged: BridgedModel, numbers: Iterable[int], layers: Iterable[int]
) -> None:
    """Refuse the number of a head that no chosen layer has."""
    most = max((bridged.layers[layer].variant.heads for layer in layers), default=0)
    for number in numbers:
        if not 0 <= number < most:
            raise MethodError(
                f"heads= names head {number}; the chosen layers have {most} heads at most, counted"
                " from 0"
            )


def refuse_unknown(bridged: BridgedModel, heads: Iterable[tuple[int, int]]) -> None:
    """Refuse a head (layer, head) that the model does not have."""
    for layer, head in heads:
        if not (
            0 <= layer < len(bridged.layers) and 0 <= head < bridged.layers[layer].variant.heads
        ):
            sizes = [one.variant.heads for one in bridged.layers]
            raise MethodError(
                f"there is no head {head} in layer {layer}; the model has {len(sizes)} layers, of"
                f" {sizes} heads, both counted from 0"
            )
