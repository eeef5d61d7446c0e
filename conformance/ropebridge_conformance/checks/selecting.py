"""Selecting: a layer's own selector of keys is asked, with what the hooks left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.findings import Finding, failed, passed, vacuous
from ropebridge_conformance.judging.questions import Question, check
from ropebridge_conformance.subjects.traces import record
from ropebridge_conformance.zoo.calls import calls
from ropebridge_conformance.zoo.scenarios import Scenario
from ropebridge_spec import Variant

SOURCES = {"hidden_states": "hook_in", "q_resid": "hook_q_latent"}
"""What a selector is given, by the name of its argument, and the hook point that holds it."""


def selects(scenario: Scenario, variant: Variant) -> bool:
    """Return whether the layer has a selector of its own."""
    return variant.selector is not None and variant.selector.picks_argument is None


@check("SEL-1", scenarios=("prefill", "decode"), where=selects)
def the_selector_is_given_what_the_hooks_left(bench: Bench, q: Question) -> Finding:
    """SEL-1: hook_in, hook_q_latent and the tables, each edited, reach the selector bit for bit."""
    layer, selector = bench.layer(q.specimen, q.situation.opted_in), q.specimen.variant.selector
    assert selector is not None
    own: Any = getattr(q.specimen.module, selector.module)
    own.seen = {}
    names = bench.watched(q.specimen, q.situation, "fused")
    edits = {name: turned for name in (*SOURCES.values(), "hook_cos", "hook_sin") if name in names}
    trace = record(layer, calls(q.situation, q.specimen, layer), names, edits)[-1]
    if not own.seen:
        return failed("the layer's selector was not asked", divergent="hook_attn_scores")
    for argument, hook in SOURCES.items():
        given = own.seen.get(argument)
        if given is not None and not torch.equal(given, trace.values[hook][..., : given.shape[-1]]):
            return failed(
                f"{argument} of the selector is not what hook {hook} left",
                divergent="hook_attn_scores",
            )
    for table, hook in zip(
        own.seen["position_embeddings"] or (), ("hook_cos", "hook_sin"), strict=False
    ):
        left = trace.values[hook]
        # earlier positions' come first, where they are given too
        if not torch.equal(table[..., -left.shape[-2] :, :].expand_as(left), left):
            return failed(
                f"the tables of the selector are not what {hook} left", divergent="hook_attn_scores"
            )
    return passed() if edits else vacuous("nothing that the selector is given has a hook")


def turned(value: Tensor) -> Tensor:
    """Return another value of the same shape."""
    return value.roll(1, -1) + 1
