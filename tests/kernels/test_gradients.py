"""First derivatives by row blocks are those of plain operations, whoever edits the pattern or asks
for a gradient there; second ones too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ropebridge.kernels.demand import KernelSettings

pytestmark = pytest.mark.slow

POS = 11
BLOCKS, COMPOSITE = KernelSettings("row_blocks", rows=4), KernelSettings("composite")


def look(tensor: Tensor, hook: Any) -> None:
    """Change nothing."""


def replace(tensor: Tensor, hook: Any) -> Tensor:
    """Add weight at every key, those that no row may see too."""
    return tensor + 0.1


def write(tensor: Tensor, hook: Any) -> None:
    """Halve every other key, in place."""
    tensor[..., ::2] *= 0.5


def in_float64(bridge: Any) -> Any:
    """The same bridge, in float64: two correct ways then differ by no more than its rounding."""
    bridge.original_component.double()
    return bridge


def gradients(bridge: Any, settings: KernelSettings, hook: Callable[..., Any]) -> list[Tensor]:
    """The gradients at inputs, weights and pattern, and the gradient of a gradient."""
    bridge.kernels = settings
    shown: list[Tensor] = []

    def keep(tensor: Tensor, hook: Any) -> None:
        shown.append(tensor)

    inputs = bridge.get_random_inputs(2, POS, seed=3, left_padding=2)
    x = inputs["hidden_states"].requires_grad_()
    point = bridge.hook_points["hook_pattern"]
    with point.add_hook(hook), point.add_hook(keep):
        out = bridge(**inputs)[0]
    loss = (out.square() * torch.linspace(0, 1, POS)[:, None]).sum()
    weights = [bridge.submodule(role).weight for role in "qkv"]
    first = torch.autograd.grad(loss, [x, *weights, shown[0]], create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), [x, *weights])
    return [*first, *second]


@pytest.mark.parametrize("hook", [look, replace, write])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_derivatives_by_blocks_are_those_of_plain_operations(
    bridge_layer: Any, family: str, hook: Callable[..., Any]
) -> None:
    bridge = in_float64(bridge_layer(family, attn="sdpa"))
    by_blocks = gradients(bridge, BLOCKS, hook)
    for found, wanted in zip(by_blocks, gradients(bridge, COMPOSITE, hook), strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


def first_gradient(bridge: Any, settings: KernelSettings, use: Callable[..., Tensor]) -> Tensor:
    """The gradient at the input of what is made of the output and the pattern; no graph of it."""
    bridge.kernels = settings
    shown: list[Tensor] = []
    inputs = bridge.get_random_inputs(1, POS, seed=3)
    x = inputs["hidden_states"].requires_grad_()
    with bridge.hook_points["hook_pattern"].add_hook(lambda tensor, hook: shown.append(tensor)):
        out = bridge(**inputs)[0]
    return torch.autograd.grad(use(out, shown[0]), x)[0]


@pytest.mark.parametrize(
    "use",
    [
        lambda out, pattern: out.square().sum(),
        lambda out, pattern: pattern.square().sum(),
        lambda out, pattern: out.square().sum() + pattern.square().sum(),
    ],
    ids=["output", "pattern", "both"],
)
def test_a_loss_may_be_made_of_the_output_of_the_pattern_or_of_both(
    bridge_layer: Any, use: Callable[..., Tensor]
) -> None:
    bridge = in_float64(bridge_layer("llama", attn="sdpa"))
    found, wanted = (first_gradient(bridge, how, use) for how in (BLOCKS, COMPOSITE))
    assert wanted.abs().max() > 0
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


def test_a_pattern_that_was_written_to_after_the_pass_is_refused_in_the_backward_pass(
    bridge_layer: Any,
) -> None:
    """As torch refuses it of any tensor that a gradient needs."""

    def spoil(out: Tensor, pattern: Tensor) -> Tensor:
        pattern.detach().zero_()
        return out.sum()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first_gradient(bridge_layer("llama", attn="sdpa"), BLOCKS, spoil)
