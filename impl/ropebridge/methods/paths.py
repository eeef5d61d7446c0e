"""Path patching: what one head says to another head's query, key or value, and to nothing else
(Wang et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ropebridge.bridged import BridgedModel
from ropebridge.methods.errors import MethodError
from ropebridge.methods.patching import refuse_other_run
from ropebridge.methods.running import (
    Inputs,
    Metric,
    inputs_by_name,
    table_of_heads,
    values_at,
)
from ropebridge.methods.selection import Heads, Selection, select
from ropebridge.methods.variants import at_once_of, groups, logits_of_each, measure_all
from ropebridge.requests import Hooks

Receiver = tuple[int, int, str]
"""Layer, head, and which of its inputs: "q", "k" or "v"; for k and v the head is a key-value
head."""


@torch.no_grad()
def path_patching(
    bridged: BridgedModel,
    inputs: Inputs,
    others: Inputs,
    metric: Metric,
    *,
    receivers: Sequence[Receiver] | Literal["logits"],
    layers: Iterable[int] | None = None,
    heads: Heads | None = None,
    positions: Iterable[int] | None = None,
    at_once: int | None = None,
    quiet: bool = False,
) -> Tensor:
    """Return the metric on `inputs` when receivers hear one sender as it spoke in the run on
    `others`, sender after sender.

    For each sender two runs on `inputs`. In the first, every head's z is held at its own value but
    for the sender's, which is that of `others`, and the receivers' inputs are kept: so the sender
    reaches them by the residual stream, MLPs and norms, and not through other heads. In the second,
    nothing is held but the receivers' inputs. With receivers="logits" the first run is all there
    is: the sender's effect that goes through no other head.

    Args:
        inputs, others: two batches of the same shape.
        metric: a function of the logits of the run on `inputs`.
        receivers: (layer, head, "q" | "k" | "v"), patched together, of a model attached with
            use_split_qkv_input=True; or "logits".
        layers, heads, positions: which heads send, and at which positions they speak as in
            `others`; as in `select`.
        at_once: how many senders one forward pass tries, each in rows of its own; None takes as
            many as make 2048 tokens.
        quiet: no progress bar.

    Returns: (layer, head) float32: the metric when that head is the sender; nan where no receiver
        comes after it, or it was not chosen.

    Raises:
        MethodError: a receiver that the model does not have, or two batches of different shapes.
        UnknownHook: the model was attached without use_split_qkv_input=True.
    """
    sites = [] if receivers == "logits" else [site_of(bridged, receiver) for receiver in receivers]
    ours, theirs = values_at(bridged, inputs, "hook_z"), values_at(bridged, others, "hook_z")
    last = (
        len(bridged.layers)
        if receivers == "logits"
        else max((layer for layer, _, _ in receivers), default=0)
    )
    chosen = select(bridged, layers, heads, positions)
    table, senders = table_of_heads(bridged, chosen)
    senders = [(layer, head) for layer, head in senders if layer < last]
    speak = [
        held_still(ours, theirs, f"{bridged.layers[layer].name}.hook_z", head, chosen)
        for layer, head in senders
    ]
    if sites:
        each = logits_heard(bridged, inputs, speak, sites, at_once)
    else:
        each = logits_of_each(bridged, inputs, speak, at_once)
    found = measure_all(metric, each, len(senders), "path patching", quiet)
    for sender, value in zip(senders, found, strict=True):
        table[sender] = value
    return table


def logits_heard(
    bridged: BridgedModel,
    inputs: Inputs,
    speak: Sequence[Hooks],
    sites: Sequence[tuple[str, int]],
    at_once: int | None,
) -> Iterator[Tensor]:
    """Yield the logits (batch, pos, vocabulary) of a run in which receivers hear what each set of
    hooks makes a sender say; what they hear is kept for no more senders than run at once."""
    names = {name for name, _ in sites}
    together = at_once_of(bridged, inputs_by_name(inputs), speak, at_once)
    for group in groups(speak, together):
        heard: list[dict[str, Tensor]] = [{} for _ in group]
        first = [
            [*hooks, *((name, keep(kept)) for name in names)]
            for hooks, kept in zip(group, heard, strict=True)
        ]
        for _ in logits_of_each(bridged, inputs, first, together):
            pass
        second = [[(name, put_head(kept, head)) for name, head in sites] for kept in heard]
        yield from logits_of_each(bridged, inputs, second, together)


def site_of(bridged: BridgedModel, receiver: Receiver) -> tuple[str, int]:
    """Return the hook point of a receiver's input, and its head there."""
    layer, head, role = receiver
    if role not in ("q", "k", "v"):
        raise MethodError(f"receiver {receiver!r} listens at {role!r}; it must be 'q', 'k' or 'v'")
    if not 0 <= layer < len(bridged.layers):
        raise MethodError(
            f"receiver {receiver!r} names layer {layer}; the model has {len(bridged.layers)},"
            " counted from 0"
        )
    variant = bridged.layers[layer].variant
    heads = variant.heads if role == "q" else variant.kv_heads
    if not 0 <= head < heads:
        raise MethodError(
            f"receiver {receiver!r} names head {head}; layer {layer} has {heads} heads for {role},"
            " counted from 0"
        )
    return f"{bridged.layers[layer].name}.hook_{role}_input", head


def held_still(
    ours: dict[str, Tensor],
    theirs: dict[str, Tensor],
    sender: str,
    head: int,
    chosen: Selection,
) -> list[tuple[str, Any]]:
    """Return hooks that hold every head's z at its own value, but for the sender's at the chosen
    positions."""

    def hold(z: Tensor, hook: Any) -> Tensor:
        held = ours[hook.name].clone()
        refuse_other_run(theirs[hook.name], z)
        if hook.name == sender:
            rows = list(chosen.positions_of(z.shape[1]))
            held[:, rows, head] = theirs[hook.name][:, rows, head]
        return held

    return [(name, hold) for name in ours]


def keep(heard: dict[str, Tensor]) -> Any:
    """Return a hook that keeps what a receiver's layer hears."""

    def look(tensor: Tensor, hook: Any) -> None:
        heard[hook.name] = tensor.clone()

    return look


def put_head(heard: dict[str, Tensor], head: int) -> Any:
    """Return a hook that lets one head hear what was kept."""

    def replace_input(tensor: Tensor, hook: Any) -> None:
        tensor[:, :, head] = heard[hook.name][:, :, head]

    return replace_input
