"""Watching costs no accuracy: scores stay in float32 up to the softmax wherever no hook touched
them (PAT-1, LOOK-1)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from ropebridge import attach
from ropebridge.subject import Factory
from ropebridge_conformance.subjects.traces import record
from ropebridge_conformance.zoo.calls import calls
from ropebridge_conformance.zoo.scenarios import SCENARIO_BY_ID
from ropebridge_conformance.zoo.specimens import specimen

pytestmark = pytest.mark.slow

SCORES, PATTERN = "blocks.0.attn.hook_attn_scores", "blocks.0.attn.hook_pattern"
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
MODES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


def look(tensor: Tensor, hook: Any) -> None:
    """Look, and do nothing."""


def add_to_all_scores(model: Any, offset: float) -> None:
    """Give query and key biases that add the same number to every score: in the pair of dimensions
    that turns least."""
    for layer in model.model.layers:
        attention = layer.self_attn
        width = attention.head_dim
        for projection in (attention.q_proj, attention.k_proj):
            bias = torch.zeros_like(projection.bias).view(-1, width)
            bias[:, width // 2 - 1] = (offset / attention.scaling) ** 0.5
            projection.bias.data = bias.flatten()


def rms(error: Tensor) -> float:
    """The root of the mean square."""
    return float(error.double().square().mean().sqrt())


@pytest.mark.parametrize("watch", ["hook_pattern", "hook_attn_scores", "all"])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("offset", [8.0, 128.0, 512.0])
@torch.no_grad()
def test_watching_costs_no_accuracy_where_every_score_is_large(
    build: Any, tokens: Tensor, offset: float, dtype: str, watch: str
) -> None:
    """The pair that turns least hardly turns: scores differ, and are all near the offset."""
    model = build("qwen2", rope_parameters={"rope_type": "default", "rope_theta": 1e12})
    add_to_all_scores(model, offset)
    half = copy.deepcopy(model).to(HALF[dtype])
    truth = copy.deepcopy(half).double()(tokens).logits
    with attach(half, verify=False) as bridged:
        unwatched = rms(bridged(tokens).logits - truth)
        hooks = [(lambda name: watch == "all" or name.endswith(watch), look)]
        watched = rms(bridged.run_with_hooks(tokens, fwd_hooks=hooks).logits - truth)
    assert watched <= 1.1 * unwatched


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["replaced", "in_place"])
@pytest.mark.parametrize("dtype", HALF)
def test_an_edit_of_one_head_leaves_the_scores_of_the_others_unrounded(
    build: Any, family: str, tokens: Tensor, dtype: str, how: str, mode: str
) -> None:
    patterns: dict[str, Tensor] = {}

    def halve_the_first_head(tensor: Tensor, hook: Any) -> Tensor | None:
        edited = tensor.detach() if how == "in_place" else tensor.clone()
        edited[:, 0] *= 0.5
        return None if how == "in_place" else edited

    def keep(name: str) -> Callable[..., None]:
        return lambda tensor, hook: patterns.__setitem__(name, tensor.detach().clone())

    with attach(build(family).to(HALF[dtype]), verify=False) as bridged, MODES[mode]():
        bridged.run_with_hooks(tokens, fwd_hooks=[(PATTERN, keep("alone"))])
        bridged.run_with_hooks(tokens, fwd_hooks=[(SCORES, look), (PATTERN, keep("watched"))])
        edit = [(SCORES, halve_the_first_head), (PATTERN, keep("edited"))]
        bridged.run_with_hooks(tokens, fwd_hooks=edit)
    assert torch.equal(patterns["watched"], patterns["alone"])
    assert torch.equal(patterns["edited"][:, 1:], patterns["alone"][:, 1:])
    assert not torch.equal(patterns["edited"][:, 0], patterns["alone"][:, 0])


@pytest.mark.parametrize("dtype", HALF)
def test_an_edit_of_scores_goes_on_as_it_was_left(build: Any, tokens: Tensor, dtype: str) -> None:
    """Scores of which softmax knows the answer: every key that may be seen alike."""
    kept: list[Tensor] = []

    def level(tensor: Tensor, hook: Any) -> Tensor:
        return torch.where(tensor.isfinite(), 0.0, tensor)

    hooks = [(SCORES, level), (PATTERN, lambda tensor, hook: kept.append(tensor))]
    with attach(build("llama").to(HALF[dtype]), verify=False) as bridged, torch.no_grad():
        bridged.run_with_hooks(tokens, fwd_hooks=hooks)
    rows = torch.arange(1, tokens.shape[1] + 1)
    alike = (1 / rows[:, None]).tril().where(rows[:, None] >= rows, 0.0).to(HALF[dtype])
    assert torch.equal(kept[0], alike.expand_as(kept[0]))


@pytest.mark.parametrize("dtype", HALF)
def test_the_gradient_at_shown_scores_is_that_of_the_softmax(
    build: Any, tokens: Tensor, dtype: str
) -> None:
    """d p_i / d s_j = p_i (1 - p_j) on the diagonal, by the very pattern (GRAD-1)."""
    kept: dict[str, Tensor] = {}
    hooks = [
        (name, lambda tensor, hook: kept.__setitem__(hook.name, tensor))
        for name in (SCORES, PATTERN)
    ]
    with attach(build("llama").to(HALF[dtype]), verify=False) as bridged:
        bridged.run_with_hooks(tokens, fwd_hooks=hooks)
        p = kept[PATTERN]
        (gradient,) = torch.autograd.grad(p[..., -1, 0].sum(), kept[SCORES])
    wanted = -p[..., -1, :1] * p[..., -1, :]
    wanted[..., 0] = (p[..., -1, 0].double() * (1 - p[..., -1, 0].double())).to(p.dtype)
    assert gradient.dtype == HALF[dtype]
    torch.testing.assert_close(gradient[..., -1, :], wanted.detach(), rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("hook", ["hook_rot_q", "hook_rot_k"])
def test_looking_at_rotated_heads_changes_no_bit_of_short_calls(hook):
    """Query and key of few positions are rotated together: each is laid out as a hook is shown it,
    because products round by how their operands lie. One kv head and three rows showed it."""
    own, scenario = specimen("falcon_mqa_0", torch.float32, "cpu"), SCENARIO_BY_ID["decode"]
    layer = Factory().layer(own.module, rotary=own.rotary)
    alone, seen = (
        [trace.out for trace in record(layer, calls(scenario, own, layer), names)]
        for names in ((), (hook,))
    )
    assert all(torch.equal(one, other) for one, other in zip(alone, seen, strict=True))
