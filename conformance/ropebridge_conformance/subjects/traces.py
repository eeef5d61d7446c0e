"""Traces: what a layer's hooks were shown, in which order, and what the layer gave back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.subjects.answers import Values, answered, shown
from ropebridge_conformance.zoo.scenarios import CallInputs
from ropebridge_reference import Past

Edit = Callable[[Tensor], Tensor | None]


@dataclass
class Trace:
    """Record one call.

    values: what each hook point held when the layer went on, after any edit. before_edit: what
        those that were edited held before.
    """

    call: CallInputs
    values: Values = field(default_factory=Values)
    before_edit: Values = field(default_factory=Values)
    fired: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    out: Tensor | None = None
    weights: Tensor | None = None
    past: Past | None = None


def record(
    layer: Any,
    calls: Sequence[CallInputs],
    watch: Collection[str],
    edits: Mapping[str, Edit] | None = None,
    **extra: Any,
) -> list[Trace]:
    """Run the calls in order with hooks at `watch`; edits apply in every call, before the value is
    recorded."""
    traces: list[Trace] = []
    for call in calls:
        trace = Trace(call, past=past_of(traces))
        hooks = [hook for name in watch for hook in hooks_at(name, trace, (edits or {}).get(name))]
        trace.out, trace.weights = answered(layer.run({**call.inputs, **extra}, hooks))
        traces.append(trace)
    return traces


def hooks_at(name: str, trace: Trace, edit: Edit | None) -> list[tuple[str, Callable[..., Any]]]:
    """Return a recording hook at a hook point, after the edit if there is one."""

    def look(tensor: Tensor, hook: Any) -> None:
        trace.fired.append(name)
        trace.names[name] = str(getattr(hook, "name", ""))
        trace.values[name] = shown(name, tensor).detach().clone()

    def change(tensor: Tensor, hook: Any) -> Tensor | None:
        trace.before_edit[name] = shown(name, tensor).detach().clone()
        return edit(tensor) if edit is not None else None

    return [(name, change), (name, look)] if edit is not None else [(name, look)]


def past_of(traces: Sequence[Trace]) -> Past | None:
    """Return the keys and values that earlier calls left, as their hooks saw them (EDIT-4)."""
    kept = [trace for trace in traces if {"hook_rot_k", "hook_v"} <= trace.values.keys()]
    if not kept:
        return None
    return Past(
        torch.cat([left(t, "hook_rot_k", "hook_k_normed") for t in kept], 1),
        torch.cat(
            [
                left(t, "hook_v", "hook_rot_v" if "hook_rot_v" in t.fired else "hook_v_normed")
                for t in kept
            ],
            1,
        ),
    )


def left(trace: Trace, usual: str, normed: str) -> Tensor:
    """Return the last of two hook points that fired, head by head: a norm may come after
    (NORM-3)."""
    later = normed in trace.fired and trace.fired.index(normed) > trace.fired.index(usual)
    return trace.values[normed].view_as(trace.values[usual]) if later else trace.values[usual]
