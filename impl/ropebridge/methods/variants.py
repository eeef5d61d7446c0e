"""Run a model once for each of many sets of hooks, several of them as rows of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ropebridge.bridged import BridgedModel
from ropebridge.methods.errors import MethodError
from ropebridge.methods.running import Inputs, Metric, bar, inputs_by_name, logits_of, measure
from ropebridge.requests import Hooks

TOKENS = 2048
"""How many tokens one forward pass takes, where nothing is said: it bounds the logits in memory."""

OF_ROWS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids")
"""Inputs whose first axis is the batch, or that hold for every row alike."""


def measure_each(
    bridged: BridgedModel,
    inputs: Inputs,
    metric: Metric,
    variants: Sequence[Hooks],
    what: str,
    quiet: bool,
    at_once: int | None,
) -> Iterator[Tensor]:
    """Return an iterator over the metric of a run on the inputs under each set of hooks, with a
    progress bar.

    Args:
        variants: hooks, each by a full name.
        what: what the bar says.
        at_once: how many sets one forward pass runs, as rows; None takes as many as make `TOKENS`.
    """
    each = logits_of_each(bridged, inputs, variants, at_once)
    return measure_all(metric, each, len(variants), what, quiet)


def measure_all(
    metric: Metric, each: Iterable[Tensor], count: int, what: str, quiet: bool
) -> Iterator[Tensor]:
    """Yield the metric of so many logits (batch, pos, vocabulary), with a progress bar."""
    progress = bar(range(count), what, quiet)
    for logits in each:
        next(progress)
        yield measure(metric, logits)
    for _ in progress:  # nothing is left: the bar ends
        pass


def logits_of_each(
    bridged: BridgedModel, inputs: Inputs, variants: Sequence[Hooks], at_once: int | None
) -> Iterator[Tensor]:
    """Yield the logits (batch, pos, vocabulary) of a run on the inputs under each set of hooks."""
    named = inputs_by_name(inputs)
    rows = rows_of(named)
    together = at_once_of(bridged, named, variants, at_once)
    for group in groups(variants, together):
        if len(group) == 1:
            yield logits_of(bridged, inputs, group[0])
            continue
        all_rows = repeat_rows(named, rows, len(group))
        logits = logits_of(bridged, all_rows, hooks_of_rows(group, rows))
        yield from logits.split(rows)


def groups(variants: Sequence[Hooks], size: int) -> Iterator[Sequence[Hooks]]:
    """Yield so many sets of hooks at a time."""
    for start in range(0, len(variants), size):
        yield variants[start : start + size]


def at_once_of(
    bridged: BridgedModel, named: Mapping[str, Any], variants: Sequence[Hooks], asked: int | None
) -> int:
    """Return how many sets of hooks one forward pass runs.

    It is 1 where rows cannot be repeated: other inputs than `OF_ROWS`, or a hook point that all
    rows share, such as hook_cos.

    Raises:
        MethodError: fewer than 1 is asked for.
    """
    if asked is not None and asked < 1:
        raise MethodError(f"at_once={asked}; it must be 1 set of hooks or more")
    points = bridged.hook_points
    names = {name for hooks in variants for name, _ in hooks}
    known = [points[name] for name in map(str, names) if name in points]
    apart = all(point.spec.axes.startswith("batch") for point in known)
    by_axis = getattr(named.get("position_ids"), "ndim", 2) > 2  # (axis, batch, pos)
    if not apart or by_axis or not set(named) <= {*OF_ROWS}:
        return 1
    tokens = named.get("input_ids", named.get("inputs_embeds"))
    if not isinstance(tokens, Tensor):
        return 1
    room = max(1, TOKENS // max(1, tokens.shape[0] * tokens.shape[1]))
    return room if asked is None else asked


def rows_of(named: Mapping[str, Any]) -> int:
    """Return how many rows the inputs have."""
    tokens = named.get("input_ids", named.get("inputs_embeds"))
    return int(tokens.shape[0]) if isinstance(tokens, Tensor) else 1


def repeat_rows(named: Mapping[str, Any], rows: int, times: int) -> dict[str, Any]:
    """Return inputs with all their rows so many times over; what holds for every row stays."""
    return {
        name: torch.cat([value] * times)
        if isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == rows
        else value
        for name, value in named.items()
    }


def hooks_of_rows(group: Sequence[Hooks], rows: int) -> list[tuple[str, Any]]:
    """Return hooks that let each set see and edit its own rows, and no others."""
    of_name: dict[str, list[tuple[int, Callable[..., Any]]]] = {}
    for number, hooks in enumerate(group):
        for name, fn in hooks:
            of_name.setdefault(str(name), []).append((number, fn))
    return [(name, on_rows(own, rows)) for name, own in of_name.items()]


def on_rows(own: Iterable[tuple[int, Callable[..., Any]]], rows: int) -> Any:
    """Return one hook that calls each function with the rows of its set."""

    def each(tensor: Tensor, hook: Any) -> None:
        for number, fn in own:
            mine = tensor[number * rows : (number + 1) * rows]
            left = fn(mine, hook=hook)
            if left is not None:
                mine.copy_(left)

    return each
