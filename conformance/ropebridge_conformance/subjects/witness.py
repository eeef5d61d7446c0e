"""Third witness: the wrapped module's own eager forward in Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ropebridge_conformance.stages.oracle import EndToEnd, context_of, end_to_end
from ropebridge_conformance.subjects.traces import Trace
from ropebridge_conformance.zoo.calls import CallInputs
from ropebridge_conformance.zoo.scenarios import SCENARIO_BY_ID
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_conformance.zoo.visibility import selected_bias
from ropebridge_conformance.zoo.weights import read_weights
from ropebridge_reference import Past, attention_layer
from ropebridge_spec import accepted_arguments


@torch.no_grad()
def hugging_face(specimen: Specimen, calls: Sequence[CallInputs]) -> tuple[Tensor, list[Tensor]]:
    """Return output (batch pos d_model) over all calls, and the attention weights of each, by the
    module itself.

    Visibility is handed down as the additive mask that its eager attention reads, with a cache of
    its own.
    """
    cache = DynamicCache() if len(calls) > 1 else None
    outs, weights = [], []
    module: Any = specimen.module
    for call in calls:
        own = replace(
            call, given={**call.given, "cache": cache, "attention_mask": additive(specimen, call)}
        )
        returned = dict(
            zip(
                specimen.variant.calling.returns,
                type(module).forward(module, **accepted_arguments(type(module), own.inputs)),
                strict=True,
            )
        )
        outs.append(returned["out"])
        weights.append(
            returned["pattern"]
            if "pattern" in returned
            else torch.cat([returned["pattern_own"], returned["pattern_source"]], -1)
        )
    return torch.cat(outs, 1), weights


def additive(specimen: Specimen, call: CallInputs) -> Tensor:
    """Return the call's visibility as 0 and the dtype's lowest number."""
    bias = bias_of_call(specimen, call)
    return bias.masked_fill(bias == -torch.inf, torch.finfo(specimen.dtype).min).to(specimen.dtype)


def bias_of_call(specimen: Specimen, call: CallInputs) -> Tensor:
    """Return the call's visibility as the reference reads it."""
    return selected_bias(
        call.given["attention_mask"],
        call.given["hidden_states"],
        call.span(specimen.variant),
        specimen.variant,
    )


def truth(specimen: Specimen, call: CallInputs) -> Tensor:
    """Return the output in float64, from the same rounded weights, inputs and tables."""
    weights = read_weights(specimen.module, specimen.variant, torch.float64)
    given = call.tables(specimen.variant)
    tables = None if given is None else (given[0].double(), given[1].double())
    x, given_kv = call.given["hidden_states"].double(), call.given_kv(specimen.variant)
    past = given_kv and Past(given_kv.key.double(), given_kv.value.double())
    variant, source = specimen.variant, call.source(specimen.variant)
    return attention_layer(
        x,
        tables,
        bias_of_call(specimen, call),
        weights,
        variant,
        positions=call.positions(variant),
        past=past,
        added_value=call.added_value(variant),
        source=None if source is None else source.double(),
    ).out


def carried_bounds(specimen: Specimen, call: CallInputs, dtype: str) -> EndToEnd:
    """Return the exact pattern and output of a call that needs no cache, with the error that
    `dtype` may carry through the layer."""
    context = context_of(Trace(call), specimen, SCENARIO_BY_ID["prefill"])
    return end_to_end(context.but(dtype=dtype))


def live_rows(specimen: Specimen, call: CallInputs) -> Tensor:
    """Return (batch, pos): whether a row sees at least one key."""
    x = call.given["hidden_states"]
    seen = (bias_of_call(specimen, call) > -torch.inf).any(-1).all(1)
    return seen.expand(x.shape[0], x.shape[1])
