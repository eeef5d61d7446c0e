"""Recordings of calls whose hooks are given parts, which together are the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.subjects.answers import answered, shown
from ropebridge_conformance.subjects.parts import places
from ropebridge_conformance.subjects.traces import Edit, Trace
from ropebridge_conformance.zoo.calls import CallInputs
from ropebridge_spec import NARROWED, HookSpec, Selection, Variant, Watch, axis_of

EVEN, ODD = slice(0, None, 2), slice(1, None, 2)
FIRST, OTHERS = 0, slice(1, None)
EDITED = 1
"""Which of the parts of a hook point an edit is made in; the first where that holds nothing, as of
one kv head."""


class WrongPart(Exception):
    """Report that a hook was given another part than it asked for, or not told which; `hook` is its
    hook point."""

    def __init__(self, hook: str, complaint: str) -> None:
        super().__init__(f"{hook} {complaint}")
        self.hook = hook


def cover(spec: HookSpec) -> tuple[Watch, ...]:
    """Return parts of a hook point that together are the whole of it, none of them twice; one of
    heads and positions where it has both, of keys too where it has them."""
    ways = {way for way in NARROWED if axis_of(way, spec.axes) is not None}
    if ways == {"heads", "query", "key"}:
        return (
            Watch(spec.name, FIRST, None, slice(3, None)),
            Watch(spec.name, OTHERS, ODD),
            Watch(spec.name, OTHERS, EVEN),
            Watch(spec.name, FIRST, None, slice(0, 3)),
        )
    if ways == {"heads", "query"}:
        others = (Watch(spec.name, OTHERS, ODD), Watch(spec.name, OTHERS, EVEN))
        return (Watch(spec.name, FIRST), *others)
    if ways == {"heads"}:
        return Watch(spec.name, FIRST), Watch(spec.name, OTHERS)
    if ways == {"query"}:
        return Watch(spec.name, None, ODD), Watch(spec.name, None, EVEN)
    return (Watch(spec.name),)


def record_parts(
    layer: Any,
    calls: Sequence[CallInputs],
    specs: Sequence[HookSpec],
    variant: Variant,
    edits: Mapping[str, Edit] | None = None,
) -> list[Trace]:
    """Run the calls in order, each hook point watched by parts that cover it, and return what they
    held, put together; an edit is made in one part of its hook point, before that is recorded.

    Raises:
        WrongPart: a hook was given another part than it asked for, or not told which.
    """
    traces: list[Trace] = []
    for call in calls:
        trace = Trace(call)
        hooks: list[tuple[str | Watch, Callable[..., Any]]] = []
        for spec in specs:
            shape = call.shape_of(spec, variant)
            watches = cover(spec)
            place = EDITED if holds_something(watches[EDITED % len(watches)], spec, shape) else 0
            for number, watch in enumerate(watches):
                edit = (edits or {}).get(spec.name) if number == place else None
                if edit is not None:
                    hooks.append((watch, change(edit)))
                hooks.append((watch, look(trace, spec, watch, shape)))
        trace.out, trace.weights = answered(layer.run(call.inputs, hooks))
        traces.append(trace)
    return traces


def holds_something(watch: Watch, spec: HookSpec, shape: Sequence[int]) -> bool:
    """Return whether a part of a tensor of this shape holds a number."""
    chosen = watch.selection(spec.axes, shape, spec.name).along(spec.axes)
    return all(numbers is None or len(numbers) for numbers in chosen)


def change(edit: Edit) -> Callable[..., Tensor | None]:
    """Return a hook that edits its part."""
    return lambda tensor, hook: edit(tensor)


def look(trace: Trace, spec: HookSpec, watch: Watch, shape: Sequence[int]) -> Callable[..., None]:
    """Return a hook that puts its part where it belongs in the whole."""
    wanted = watch.selection(spec.axes, shape, spec.name)

    def hook(part: Tensor, hook: Any) -> None:
        there = places(wanted, spec.axes, shape)
        complaint = complaint_about_part(shown(spec.name, part), hook, wanted, there[0].shape)
        if complaint and not watch.whole:
            raise WrongPart(spec.name, complaint)
        if spec.name not in trace.values:
            trace.fired.append(spec.name)
            trace.values[spec.name] = part.new_full(tuple(shape), torch.nan)
        trace.values[spec.name][there] = part.detach()

    return hook


def complaint_about_part(part: Tensor, hook: Any, wanted: Selection, shape: Sequence[int]) -> str:
    """Return what is wrong with what a hook was given, and told; nothing if nothing is."""
    if part.shape != torch.Size(shape):
        return f"was given a part of shape {tuple(part.shape)}; clause PART-1 requires {shape}"
    if not part.is_contiguous():
        return f"was given a part of strides {part.stride()}; clause EDIT-2 requires contiguous"
    told = getattr(hook, "selection", None)
    for way in NARROWED:
        numbers, given = getattr(wanted, way), getattr(told, way, None)
        same = (given is None) == (numbers is None) and list(given or ()) == list(numbers or ())
        if not same:
            return f"was told hook.selection.{way} is {given}; clause PART-1 requires {numbers}"
    return ""
