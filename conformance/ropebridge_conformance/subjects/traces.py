"""Traces: what a layer's hooks were shown, in which order, and what the layer gave back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ropebridge_conformance.subjects.answers import NotShown, Values, answered, shown
from ropebridge_conformance.subjects.asked import in_contract
from ropebridge_conformance.zoo.calls import CallInputs

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


def record(
    layer: Any,
    calls: Sequence[CallInputs],
    watch: Collection[str],
    edits: Mapping[str, Edit] | None = None,
    **extra: Any,
) -> list[Trace]:
    """Run the calls in order with hooks at `watch`; edits apply in every call, before the value is
    recorded.

    Raises:
        NotShown: an edit is to be made where nobody watches, as at a declared gap; or its hook did
            not fire.
    """
    traces: list[Trace] = []
    for name in edits or {}:
        if name not in watch:
            raise NotShown(name)
    for call in calls:
        trace = Trace(call)
        hooks = [
            hook for name in watch for hook in hooks_at(name, trace, (edits or {}).get(name), layer)
        ]
        trace.out, trace.weights = answered(layer.run({**call.inputs, **extra}, hooks))
        for name in edits or {}:
            if name not in trace.fired:
                raise NotShown(name)
        traces.append(trace)
    return traces


def hooks_at(
    name: str, trace: Trace, edit: Edit | None, layer: Any
) -> list[tuple[str, Callable[..., Any]]]:
    """Return a recording hook at a hook point of a layer, after the edit if there is one."""

    def look(tensor: Tensor, hook: Any) -> None:
        trace.fired.append(name)
        trace.names[name] = str(getattr(hook, "name", ""))
        trace.values[name] = in_contract(layer, name, shown(name, tensor).detach().clone())

    def change(tensor: Tensor, hook: Any) -> Tensor | None:
        trace.before_edit[name] = in_contract(layer, name, shown(name, tensor).detach().clone())
        return edit(tensor) if edit is not None else None

    return [(name, change), (name, look)] if edit is not None else [(name, look)]
