"""Define what every method does: run the model under hooks, read one number off its logits, and go
through places with a bar."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ropebridge.bridged import BridgedModel
from ropebridge.methods.errors import MethodError
from ropebridge.methods.selection import Selection
from ropebridge.requests import Hooks

Inputs = Tensor | Mapping[str, Any]
"""Token ids (batch, pos), or the keywords of the model's call: input_ids, attention_mask, ..."""

Metric = Callable[[Tensor], Tensor | float]
"""From logits (batch, pos, vocabulary) to one number: a tensor of no axes, or a Python number where
no gradient is wanted."""

Place = TypeVar("Place")


def logits_of(bridged: BridgedModel, inputs: Inputs, fwd_hooks: Hooks = ()) -> Tensor:
    """Return the logits (batch, pos, vocabulary) of one run under hooks, without a key-value cache.

    Raises:
        MethodError: the model's output has no logits, it drops out at random, or the inputs are
            none.
        AttachError, ContractError, UnknownHook, HookNeverFired: as `BridgedModel.hooks`.
    """
    refuse_dropout(bridged)
    output = bridged.run_with_hooks(fwd_hooks=fwd_hooks, **keywords(bridged, inputs))
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise MethodError(
            f"{type(bridged.model).__name__} returned {type(output).__name__} without logits; a"
            " metric is a function of logits\n  attach to the causal language model"
            " (AutoModelForCausalLM), not to its body"
        )
    return logits


def keywords(bridged: BridgedModel, inputs: Inputs) -> dict[str, Any]:
    """Return the keywords of the model's call.

    Raises:
        MethodError: the inputs are neither a tensor nor a mapping.
    """
    uncached = {"use_cache": False} if bridged.accepts("use_cache") else {}
    return {**uncached, **inputs_by_name(inputs)}


def inputs_by_name(inputs: Inputs) -> dict[str, Any]:
    """Return inputs by the names of the model's forward."""
    if isinstance(inputs, Tensor):
        return {"input_ids": inputs}
    if not isinstance(inputs, Mapping):
        raise MethodError(
            f"inputs are {inputs!r}; they must be token ids (batch, pos), or a mapping of what the"
            " model is called with: tokenizer(text, return_tensors='pt')"
        )
    return dict(inputs)


def refuse_dropout(bridged: BridgedModel) -> None:
    """Refuse a model that drops out: two runs of it differ by more than what a method changes."""
    drops = bridged.model.training and (
        any(layer.dropout or layer.variant.output_dropout for layer in bridged.layers)
        or any(isinstance(module, nn.Dropout) and module.p for module in bridged.model.modules())
    )
    if drops:
        raise MethodError(
            f"{type(bridged.model).__name__} is in train mode and drops out at random, so that"
            " runs differ by chance; call model.eval() first"
        )


def measure(metric: Metric, logits: Tensor) -> Tensor:
    """Return what the metric says, still in the graph.

    Raises:
        MethodError: it is not one number.
    """
    if not callable(metric):
        raise MethodError(
            f"the metric is {metric!r}; it must be a function of the logits (batch, pos,"
            " vocabulary) that returns one number: methods.answer_logit(answers)"
        )
    value = metric(logits)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.tensor(float(value))
    if not isinstance(value, Tensor) or value.ndim:
        given = (
            f"a tensor of shape {tuple(value.shape)}"
            if isinstance(value, Tensor)
            else type(value).__name__
        )
        raise MethodError(
            f"the metric returned {given}; it must return one number: take"
            " .mean() or .sum() over the batch"
        )
    return value


def values_at(bridged: BridgedModel, inputs: Inputs, hook: str) -> dict[str, Tensor]:
    """Return full name -> value at every layer's hook point of this short name, in one run on the
    inputs, detached.

    Raises:
        UnknownHook: no layer has it.
    """
    refuse_dropout(bridged)
    _, cache = bridged.run_with_cache(
        names_filter=names_at(bridged, hook), **keywords(bridged, inputs)
    )
    return cache


def names_at(bridged: BridgedModel, hook: str) -> list[str]:
    """Return the full names of a hook point, a layer each; where there are none, the name itself,
    for the error to speak of."""
    return [name for name in bridged.hook_points if name.endswith(f".{hook}")] or [hook]


def bar(places: Collection[Place], what: str, quiet: bool) -> Iterator[Place]:
    """Return the places one after another, with a progress bar on stderr."""
    return iter(tqdm(places, desc=what, disable=quiet, leave=False))


def table_of_heads(
    bridged: BridgedModel, chosen: Selection
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Return (layer, head) float32 on the CPU, full of nan, and the chosen heads (layer, head)."""
    heads = [layer.variant.heads for layer in bridged.layers]
    places = [
        (layer, head) for layer in chosen.layers for head in chosen.heads_of(layer, heads[layer])
    ]
    return torch.full((len(heads), max(heads)), torch.nan), places
