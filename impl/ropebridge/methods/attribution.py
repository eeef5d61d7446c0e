"""Attribution patching: activation patching to first order, all places at once, by one backward
pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ropebridge.bridged import BridgedModel
from ropebridge.methods.errors import MethodError
from ropebridge.methods.patching import (
    empty_table,
    every,
    layer_of,
    masks_of,
    places_of,
    refuse_other_run,
)
from ropebridge.methods.running import Inputs, Metric, logits_of, measure, values_at
from ropebridge.methods.selection import Heads, select


def attribution_patching(
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
) -> Tensor:
    """Return how much the metric on `inputs` would change under each patch from `others`, to first
    order (Nanda 2023).

    That is the gradient of the metric at the activation of `inputs`, times the activation of
    `others` less that of `inputs`, summed over batch and every axis that `each` does not name.
    Where the metric is linear in the activation it is `activation_patching` less the unpatched
    metric, exactly; where softmax is saturated it sees nothing.

    Args:
        inputs, others, metric, hook, each, layers, heads, positions: as in `activation_patching`.

    Returns:
        (layer, *each) float32; nan where a layer has no such place, or it was not chosen.

    Raises:
        MethodError, UnknownHook: as `activation_patching`; or the metric does not depend on the
            logits, or the two runs are masked differently.
    """
    chosen = select(bridged, layers, heads, positions)
    with torch.no_grad():
        theirs = values_at(bridged, others, hook)
    ours: dict[str, Tensor] = {}
    with torch.enable_grad():
        value = measure(
            metric, logits_of(bridged, inputs, [(name, keep_in_graph(ours)) for name in theirs])
        )
    gradients = gradients_at(value, ours)
    axes = {name: places_of(bridged, name, each) for name in theirs}
    table = empty_table(bridged, theirs, axes)
    masks = masks_of(bridged, theirs, chosen)
    for name, mask in masks.items():
        refuse_other_run(theirs[name], ours[name])
        change = difference(theirs[name], ours[name].detach(), name).float()
        effect = change * gradients[name].float() * mask.to(change.device)
        found = summed(effect, axes[name]).cpu()
        for place in every(mask, axes[name]):
            table[(layer_of(bridged, name), *place)] = found[place]
    return table


def difference(theirs: Tensor, ours: Tensor, name: str) -> Tensor:
    """Return how another run's activations differ, of their shape: not at all where both are -inf,
    as scores that no query may see.

    Raises:
        MethodError: one run forbids what the other shows.
    """
    forbidden = ours == -torch.inf
    if not torch.equal(forbidden, theirs == -torch.inf):
        raise MethodError(
            f"inputs and others are masked differently: at {name!r} one is -inf where the other is"
            " a number, and the first order of that is infinite\n  pad both alike, or take"
            " activation_patching"
        )
    return (theirs - ours).masked_fill(forbidden, 0.0)


def keep_in_graph(ours: dict[str, Tensor]) -> Any:
    """Return a hook that keeps the very tensor the layer goes on with, and lets gradients begin
    there where none would flow."""

    def keep(tensor: Tensor, hook: Any) -> None:
        ours[hook.name] = tensor if tensor.requires_grad else tensor.requires_grad_()

    return keep


def gradients_at(value: Tensor, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return name -> gradient of the metric at each tensor, of its shape; 0 where the metric does
    not depend on it."""
    if not value.requires_grad:
        raise MethodError(
            "no gradient flows from the metric to the logits; a metric for attribution must be"
            " differentiable: no argmax, no .item(), no .detach()"
        )
    found = torch.autograd.grad(
        value, list(ours.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(ours, found, strict=True))


def summed(effect: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the sum over every axis but these, which keep their order."""
    rest = [axis for axis in range(effect.ndim) if axis not in axes]
    return effect.sum(rest)
