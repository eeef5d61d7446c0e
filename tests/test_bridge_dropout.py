"""Dropout applies in training mode only, after hook_pattern, and draws the same numbers watched or
not (clause DROP-1)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ropebridge.kernels.demand import KernelSettings

pytestmark = pytest.mark.slow

RATE = 0.3
LENGTHS = pytest.mark.parametrize("pos", [9, 300], ids=["one_block", "three_blocks"])


@pytest.fixture
def bridge(bridge_layer: Any, family: str) -> Any:
    """In training mode, with a rate that is felt."""
    bridge = bridge_layer(family, config={"attention_dropout": RATE})
    bridge.original_component.train()
    return bridge


def output(
    bridge: Any, inputs: dict[str, Any], seed: int, *watched: str
) -> tuple[Tensor, dict[str, Tensor]]:
    kept: dict[str, Tensor] = {}
    handles = [
        bridge.hook_points[name].add_hook(
            lambda tensor, hook: kept.__setitem__(hook.spec.name, tensor.detach().clone())
        )
        for name in watched
    ]
    torch.manual_seed(seed)
    out, _ = bridge(**inputs)
    for handle in handles:
        handle.remove()
    return out, kept


@LENGTHS
@pytest.mark.parametrize("mask", [True, False], ids=["explicit_mask", "no_mask"])
def test_the_same_numbers_are_drawn_watched_or_not(bridge: Any, pos: int, mask: bool) -> None:
    inputs = bridge.get_random_inputs(2, pos, seed=0)
    inputs["attention_mask"] = inputs["attention_mask"] if mask else None
    unwatched, _ = output(bridge, inputs, 7)
    watched, _ = output(bridge, inputs, 7, "hook_attn_scores", "hook_pattern", "hook_z")
    torch.testing.assert_close(watched, unwatched, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_other_numbers_give_another_output(bridge: Any) -> None:
    """Else the test above would say nothing."""
    inputs = bridge.get_random_inputs(2, 9, seed=0)
    assert not torch.allclose(output(bridge, inputs, 7)[0], output(bridge, inputs, 8)[0], atol=1e-3)


@LENGTHS
@torch.no_grad()
def test_the_pattern_is_shown_before_dropout(bridge: Any, pos: int) -> None:
    bridge.kernels = KernelSettings("composite")  # what dropout takes: the same to the bit
    inputs = bridge.get_random_inputs(2, pos, seed=0)
    _, training = output(bridge, inputs, 7, "hook_pattern")
    bridge.original_component.eval()
    _, evaluating = output(bridge, inputs, 7, "hook_pattern")
    assert torch.equal(training["hook_pattern"], evaluating["hook_pattern"])


@torch.no_grad()
def test_dropout_scales_what_it_keeps_by_the_rate(bridge: Any) -> None:
    """Values of one: z is then the sum of what was kept of each row, 1 / (1 - rate) times its
    share. Of 64 * 9 * 4 rows of 9 entries, the mean count has a standard deviation of 0.03."""
    inputs = bridge.get_random_inputs(64, 9, seed=0)
    bridge.hook_points["hook_v"].add_hook(lambda tensor, hook: torch.ones_like(tensor))
    bridge.hook_points["hook_pattern"].add_hook(lambda tensor, hook: torch.full_like(tensor, 1 / 9))
    _, kept = output(bridge, inputs, 7, "hook_z")
    count = kept["hook_z"] * 9 * (1 - RATE)
    torch.testing.assert_close(count, count.round(), atol=1e-4, rtol=0)
    assert pytest.approx(float(count.mean()), abs=0.15) == 9 * (1 - RATE)


@pytest.mark.parametrize("watched", [(), ("hook_pattern",)], ids=["unwatched", "watched"])
@torch.no_grad()
def test_in_evaluation_nothing_is_dropped(bridge: Any, watched: tuple[str, ...]) -> None:
    bridge.original_component.eval()
    inputs = bridge.get_random_inputs(2, 9, seed=0)
    assert torch.equal(
        output(bridge, inputs, 7, *watched)[0], output(bridge, inputs, 8, *watched)[0]
    )


def test_dropout_reaches_the_gradient(bridge: Any) -> None:
    def gradient(seed: int) -> Tensor:
        inputs = bridge.get_random_inputs(2, 9, seed=0)
        x = inputs["hidden_states"].requires_grad_()
        output(bridge, inputs, seed)[0].square().sum().backward()
        return x.grad

    assert torch.equal(gradient(7), gradient(7))
    assert not torch.allclose(gradient(7), gradient(8), atol=1e-3)


@pytest.mark.parametrize("name", ["starcoder2", "seed_oss"])
@torch.no_grad()
def test_an_output_is_dropped_out_in_training_after_hook_out(bridge_layer: Any, name: str) -> None:
    """DROP-2: the numbers are those the wrapped module draws."""
    bridge = bridge_layer(name, config={"residual_dropout": RATE, "attention_dropout": 0.0})
    inputs, module = bridge.get_random_inputs(2, 9, seed=0), bridge.original_component
    whole, _ = output(bridge, inputs, 7, "hook_out")
    module.train()
    dropped, kept = output(bridge, inputs, 7, "hook_out")
    torch.manual_seed(7)
    wanted, _ = type(module).forward(module, **inputs)
    torch.testing.assert_close(dropped, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(kept["hook_out"], whole)
    assert 0.2 < float((dropped == 0).float().mean()) < 0.4
