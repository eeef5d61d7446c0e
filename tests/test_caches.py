"""Caches that keep keys and values in another form than they were given (CACHE-1)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, QuantizedCache

from ropebridge import attach
from ropebridge_conformance.zoo.builder import build_model, cache_name, inputs_of
from ropebridge_conformance.zoo.specimens import randomise

pytestmark = pytest.mark.slow


@torch.no_grad()
def test_a_layer_that_is_handed_the_caches_of_two_sequences_reads_its_own() -> None:
    """RoFormer's self-attention takes an EncoderDecoderCache as well as a plain one."""
    model = build_model("roformer")
    randomise(model)
    ids = inputs_of("roformer", model.config)["input_ids"]

    def steps() -> Tensor:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        spans = [slice(0, 6), *(slice(at, at + 1) for at in range(6, ids.shape[1]))]
        return torch.cat(
            [
                model(ids[:, span], **{cache_name(model): cache}, use_cache=True).logits
                for span in spans
            ],
            dim=1,
        )

    alone = steps()
    with attach(model):
        assert torch.allclose(steps(), alone, atol=1e-5 * float(alone.abs().max()))


BACKENDS = {"fp8": None, "quanto": "optimum.quanto", "hqq": "hqq"}
"""Who quantises, and the package it needs."""


@torch.no_grad()
def steps(model: Any, ids: Tensor, backend: str) -> Tensor:
    """Logits of a prefill and of steps, from a cache in eight bits, or in four but for the last
    four positions."""
    options = (
        {}
        if backend == "fp8"
        else {"nbits": 4, "q_group_size": 20, "axis_key": 0, "axis_value": 0, "residual_length": 4}
    )
    cache = QuantizedCache(backend, model.config, **options)
    spans = [(0, 6), *((at, at + 1) for at in range(6, ids.shape[1]))]
    return torch.cat(
        [
            model(ids[:, start:stop], **{cache_name(model): cache}, use_cache=True).logits
            for start, stop in spans
        ],
        dim=1,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_quantised_cache_gives_what_it_gives_alone(backend: str) -> None:
    """Prefill and steps; what quantising itself moves is a hundred thousand times as much, so the
    cache was in use."""
    if BACKENDS[backend]:
        pytest.importorskip(BACKENDS[backend])
    model = build_model("llama")
    randomise(model)
    ids = inputs_of("llama", model.config)["input_ids"]
    alone = steps(model, ids, backend)
    with attach(model):
        bridged, exact = steps(model, ids, backend), model(ids).logits.detach()
    scale = float(alone.abs().max())
    assert float((bridged - alone).abs().max()) <= 1e-5 * scale
    assert float((alone - exact).abs().max()) > 1e-2 * scale
