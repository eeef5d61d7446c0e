"""One forward of a whole model, recorded as one trace a layer: what each layer was given, and what
its hooks held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ropebridge_conformance.subjects.traces import Trace, hooks_at
from ropebridge_conformance.zoo.calls import CallInputs
from ropebridge_conformance.zoo.scenarios import Scenario
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_spec import by_role, describe, own_names, parameters_of


class BridgedModelLike(Protocol):
    """Hold a model with hooks in it: what `attach(model)` gives, the bridge's or another's."""

    @property
    def hook_points(self) -> Any:
        """Return full name -> hook point, which has `spec` and `layer()`."""

    def run_with_hooks(self, *args: Any, fwd_hooks: Any, **kwargs: Any) -> Any:
        """Run the model once with hooks (name, fn)."""

    def detach(self) -> None:
        """Give the model back as it was."""


@dataclass(frozen=True)
class Recorded:
    """Hold one layer of a model, how it was called, and what its hooks held."""

    number: int
    specimen: Specimen
    scenario: Scenario
    trace: Trace


@torch.no_grad()
def record_model(
    bridged: BridgedModelLike, model: Any, ids: Tensor, way: str
) -> tuple[list[Recorded], Tensor]:
    """Return every layer with every hook point watched, and the logits (batch pos vocabulary).

    Args:
        ids: (batch, pos) token ids.
        way: names the scenario: how the model was loaded.
    """
    layers = attention_layers(model)
    traces = {number: Trace(CallInputs({}, first_query=0, keys=0)) for number in layers}
    with ExitStack() as stack:
        for number, module in layers.items():
            stack.enter_context(inputs_kept(module, traces[number]))
        logits = bridged.run_with_hooks(
            ids, fwd_hooks=list(all_hooks(bridged, traces)), use_cache=False
        ).logits
    recorded = [
        Recorded(n, specimen_of(model, layers[n]), scenario_of(trace, f"{way}-blocks.{n}"), trace)
        for n, trace in traces.items()
    ]
    return recorded, logits


def attention_layers(model: Any) -> dict[int, nn.Module]:
    """Return block number -> attention module."""
    return {number: block.self_attn for number, block in enumerate(model.model.layers)}


def all_hooks(bridged: BridgedModelLike, traces: dict[int, Trace]) -> Iterator[tuple[str, Any]]:
    """Yield a recording hook for every hook point of the model."""
    for name, point in bridged.hook_points.items():
        for _, look in hooks_at(point.spec.name, traces[point.layer()], None, None):
            yield name, look


@contextmanager
def inputs_kept(module: nn.Module, trace: Trace) -> Iterator[None]:
    """Keep what the surrounding model hands to a layer."""
    handle = module.register_forward_pre_hook(partial(keep_inputs, trace), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def keep_inputs(
    trace: Trace, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Keep what a layer is called with in its trace, by the contract's names."""
    kind, variant = type(module), describe(module)
    passed = {**dict(zip(parameters_of(kind), args, strict=False)), **kwargs}
    given = {"position_embeddings": None, "attention_mask": None, **by_role(passed, variant)}
    trace.call = CallInputs(
        given,
        first_query=0,
        keys=given["hidden_states"].shape[1],
        names=own_names(kind, variant),
    )


def specimen_of(model: Any, module: nn.Module) -> Specimen:
    """Return a layer as the judge knows one."""
    weight = next(module.parameters())
    return Specimen(module, model.model.rotary_emb, describe(module), weight.dtype, weight.device)


def scenario_of(trace: Trace, id: str) -> Scenario:
    """Return how the model called a layer, in the judge's terms."""
    mask, x = trace.call.given["attention_mask"], trace.call.given["hidden_states"]
    form = "none" if mask is None else "boolean" if mask.dtype == torch.bool else "additive"
    return Scenario(id, "as the model calls it", mask=form, batch=x.shape[0], pos=x.shape[1])  # type: ignore[arg-type]
