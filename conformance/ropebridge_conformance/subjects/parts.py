"""Hooks that are given a part of what a hook point holds (clauses PART-1, PART-2), made of hooks
that are given the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ropebridge_spec import (
    ContractError,
    HookFunction,
    HookSpec,
    Selection,
    Watch,
)

Hooks = Sequence[tuple[str | Watch, HookFunction]]
HooksByName = Sequence[tuple[str, HookFunction]]


def name_of(wanted: str | Watch) -> str:
    """Return the name of the hook point that is asked for, in whole or in part."""
    return str(wanted.name) if isinstance(wanted, Watch) else wanted


def by_name(hooks: Hooks, points: Mapping[str, HookSpec]) -> HooksByName:
    """Return hooks that are given the whole, by the names of their hook points: one that asks for a
    part is given its part of that. `points` has the layer's own, with their axes."""
    return [
        (name_of(wanted), on_the_whole(wanted, fn, points[name_of(wanted)]))
        if isinstance(wanted, Watch) and name_of(wanted) in points
        else (name_of(wanted), fn)
        for wanted, fn in hooks
    ]


def on_the_whole(watch: Watch, fn: HookFunction, spec: HookSpec) -> HookFunction:
    """Return a hook that shows another its part of the whole, and returns the whole with what that
    leaves."""

    def hook(whole: Tensor, hook: Any) -> Tensor:
        selection = watch.selection(spec.axes, whole.shape, hook.name)
        there = places(selection, spec.axes, whole.shape)
        part = whole[there]
        left = fn(part, hook=SimpleNamespace(name=hook.name, selection=selection))
        left = part if left is None else left
        if left.shape != part.shape or left.dtype != part.dtype:
            raise ContractError(
                f"hook {hook.name!r} was given a replacement of shape {tuple(left.shape)} and"
                f" {left.dtype}; clause {spec.axes_clause} requires {tuple(part.shape)} and"
                f" {part.dtype}"
            )
        edited = whole.clone()
        edited[there] = left
        return edited

    return hook


def places(selection: Selection, axes: str, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Return where a part lies: for each axis the numbers, in the shape of the part."""
    numbers = [
        torch.arange(length) if chosen is None else torch.tensor(list(chosen), dtype=torch.long)
        for length, chosen in zip(shape, selection.along(axes), strict=True)
    ]
    return torch.meshgrid(*numbers, indexing="ij")
