"""Head ablation: what the metric becomes when one head's z is replaced by nothing, by its mean, or
by that of another run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ropebridge.bridged import BridgedModel
from ropebridge.methods.errors import MethodError
from ropebridge.methods.running import (
    Inputs,
    Metric,
    logits_of,
    measure,
    named_inputs,
    over_heads,
    values_at,
)

By = Literal["zero", "mean", "resample"]


@torch.no_grad()
def head_ablation(
    bridged: BridgedModel,
    inputs: Inputs,
    metric: Metric,
    *,
    by: By = "zero",
    others: Inputs | None = None,
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
        quiet: no progress bar.

    Returns:
        (layer, head) float32: the metric under that ablation; nan where a layer has no such head.

    Raises:
        MethodError: `by` is none of the three, a batch of one is to be resampled from itself, or
            `others` do not fit.
    """
    values = replacements(bridged, inputs, by, others)

    def one(layer: int, head: int) -> Tensor:
        return measure(
            metric, logits_of(bridged, inputs, ablations(bridged, [(layer, head)], values))
        )

    return over_heads(bridged, one, f"{by} ablation", quiet)


@torch.no_grad()
def ablated(
    bridged: BridgedModel,
    inputs: Inputs,
    heads: Sequence[tuple[int, int]],
    *,
    by: By = "zero",
    others: Inputs | None = None,
) -> Tensor:
    """Return the logits (batch, pos, vocabulary) with several heads (layer, head) ablated together.

    Args:
        heads: pairs of layer and head.
        by, others: as in `head_ablation`.

    Raises:
        MethodError: as `head_ablation`; or a head that the model does not have.
    """
    refuse_unknown_heads(bridged, heads)
    return logits_of(
        bridged, inputs, ablations(bridged, heads, replacements(bridged, inputs, by, others))
    )


def ablations(
    bridged: BridgedModel, heads: Sequence[tuple[int, int]], values: dict[str, Tensor]
) -> list[tuple[str, Any]]:
    """Return the hooks that replace these heads' z."""

    def hook_for(head: int) -> Any:
        def replace_head(z: Tensor, hook: Any) -> None:
            if values:
                refuse_other_shape(values[hook.name], z)
                z[:, :, head] = values[hook.name][:, :, head]
            else:
                z[:, :, head] = 0

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
    mask = named_inputs(inputs).get("attention_mask")
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


def refuse_unknown_heads(bridged: BridgedModel, heads: Sequence[tuple[int, int]]) -> None:
    """Refuse a head that the model does not have."""
    for layer, head in heads:
        if not (
            0 <= layer < len(bridged.layers) and 0 <= head < bridged.layers[layer].variant.heads
        ):
            sizes = [one.variant.heads for one in bridged.layers]
            raise MethodError(
                f"there is no head {head} in layer {layer}; the model has {len(sizes)} layers, of"
                f" {sizes} heads, both counted from 0"
            )
