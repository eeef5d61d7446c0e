"""Head ablation: what the metric becomes when one head's z is replaced by nothing, by its mean, or
by that of another run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ropebridge.bridged import BridgedModel
from ropebridge.methods.errors import MethodError
from ropebridge.methods.running import (
    Inputs,
    Metric,
    inputs_by_name,
    logits_of,
    table_of_heads,
    values_at,
)
from ropebridge.methods.selection import Heads, Selection, refuse_unknown, select
from ropebridge.methods.variants import measure_each

By = Literal["zero", "mean", "resample"]


@torch.no_grad()
def head_ablation(
    bridged: BridgedModel,
    inputs: Inputs,
    metric: Metric,
    *,
    by: By = "zero",
    others: Inputs | None = None,
    layers: Iterable[int] | None = None,
    heads: Heads | None = None,
    positions: Iterable[int] | None = None,
    at_once: int | None = None,
    quiet: bool = False,
) -> Tensor:
    """Return the metric with one head ablated, head after head.

    The head's `hook_z` is replaced; what comes after it is computed anew, later layers included.

    Args:
        inputs: what the model is run on.
        metric: a function of the logits.
        by: "zero"; "mean": the head's mean z over batch and positions of `others` (padding, as a
            two-axis attention_mask says it, left out); "resample": the head's z in the run on
            `others`.
        others: the run that means and samples come from; None takes `inputs` for means, and for
            samples `inputs` with the batch turned by one, so that each row is given its
            neighbour's.
        layers, heads, positions: which heads are gone through, and at which positions they are
            ablated; as in `select`.
        at_once: how many heads one forward pass ablates, each in rows of its own; None takes as
            many as make 2048 tokens.
        quiet: no progress bar.

    Returns:
        (layer, head) float32: the metric under that ablation; nan where a layer has no such head,
        or it was not chosen.

    Raises:
        MethodError: `by` is none of the three, a batch of one is to be resampled from itself, or
            `others` do not fit.
    """
    chosen = select(bridged, layers, heads, positions)
    values = replacements(bridged, inputs, by, others)
    table, places = table_of_heads(bridged, chosen)
    variants = [ablations(bridged, [place], values, chosen) for place in places]
    found = measure_each(bridged, inputs, metric, variants, f"{by} ablation", quiet, at_once)
    for place, value in zip(places, found, strict=True):
        table[place] = value
    return table


@torch.no_grad()
def ablated(
    bridged: BridgedModel,
    inputs: Inputs,
    heads: Sequence[tuple[int, int]],
    *,
    by: By = "zero",
    others: Inputs | None = None,
    positions: Iterable[int] | None = None,
) -> Tensor:
    """Return the logits (batch, pos, vocabulary) with several heads (layer, head) ablated together.

    Args:
        heads: pairs of layer and head.
        by, others, positions: as in `head_ablation`.

    Raises:
        MethodError: as `head_ablation`; or a head that the model does not have.
    """
    refuse_unknown(bridged, heads)
    chosen = select(bridged, positions=positions)
    values = replacements(bridged, inputs, by, others)
    return logits_of(bridged, inputs, ablations(bridged, heads, values, chosen))


def ablations(
    bridged: BridgedModel,
    heads: Sequence[tuple[int, int]],
    values: dict[str, Tensor],
    chosen: Selection,
) -> list[tuple[str, Any]]:
    """Return the hooks that replace these heads' z, at the chosen positions."""

    def hook_for(head: int) -> Any:
        def replace_head(z: Tensor, hook: Any) -> None:
            rows = list(chosen.positions_of(z.shape[1]))
            if values:
                refuse_other_shape(values[hook.name], z)
                value = values[hook.name].expand_as(z)
                z[:, rows, head] = value[:, rows, head]
            else:
                z[:, rows, head] = 0

        return replace_head

    return [(f"{bridged.layers[layer].name}.hook_z", hook_for(head)) for layer, head in heads]


def replacements(
    bridged: BridgedModel, inputs: Inputs, by: By, others: Inputs | None
) -> dict[str, Tensor]:
    """Hook name -> (batch or 1, pos or 1, head, d_head_v): what heads are replaced by; nothing for
    zero."""
    if by == "zero":
        return {}
    if by == "mean":
        chosen = inputs if others is None else others
        return {
            name: mean_of(z, chosen) for name, z in values_at(bridged, chosen, "hook_z").items()
        }
    if by == "resample":
        return samples(bridged, inputs) if others is None else values_at(bridged, others, "hook_z")
    raise MethodError(f"by={by!r} is no way to ablate; it must be 'zero', 'mean' or 'resample'")


def samples(bridged: BridgedModel, inputs: Inputs) -> dict[str, Tensor]:
    """Return each row's neighbour's z."""
    values = values_at(bridged, inputs, "hook_z")
    if next(iter(values.values())).shape[0] < 2:
        raise MethodError(
            "a batch of one has no other row to resample from; pass others=, inputs of the same"
            " shape"
        )
    return {name: z.roll(1, 0) for name, z in values.items()}


def mean_of(z: Tensor, inputs: Inputs) -> Tensor:
    """Return (1, 1, head, d_head_v): the mean over batch and positions that are no padding."""
    mask = inputs_by_name(inputs).get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return z.mean((0, 1), keepdim=True)
    weight = mask.to(z)[..., None, None]
    return (z * weight).sum((0, 1), keepdim=True) / weight.sum()


def refuse_other_shape(value: Tensor, shown: Tensor) -> None:
    """Refuse the values of a run on other sizes; a mean, of size 1, fits every one."""
    if any(have not in (1, want) for have, want in zip(value.shape, shown.shape, strict=True)):
        raise MethodError(
            f"others gave values of shape {tuple(value.shape)}, and inputs have"
            f" {tuple(shown.shape)}; both runs must have the same batch and length\n  choose"
            " prompts of one length, or pad both alike"
        )
