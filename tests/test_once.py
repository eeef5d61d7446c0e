"""What all layers of a pass make of the same rotary tables is made once, and never of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ropebridge import attach
from ropebridge.once import Once
from ropebridge.stages import rotary

pytestmark = pytest.mark.slow


def test_layers_lay_the_tables_out_once(
    build: Any, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit of one layer's tables is that layer's alone."""
    bridged = attach(build("llama", "sdpa", num_hidden_layers=4), verify=False)
    made: list[Any] = []
    real = rotary.turn_of

    def spy(*given: Any) -> Any:
        made.append(given)
        return real(*given)

    monkeypatch.setattr(rotary, "turn_of", spy)

    def passes(*pairs: Any) -> tuple[int, Tensor]:
        made.clear()
        with torch.no_grad(), bridged.hooks(list(pairs)):
            logits = bridged(tokens, use_cache=False).logits
        return len(made), logits

    assert passes()[0] == 1
    count, edited = passes(("blocks.1.attn.hook_cos", lambda cos, hook: cos * 0.5))
    assert count == 3  # of the model's, of the edited one, of the model's again
    for layer in bridged.layers:
        layer.once = Once()
    apart, same = passes(("blocks.1.attn.hook_cos", lambda cos, hook: cos * 0.5))
    assert apart == 4
    assert torch.equal(edited, same)


def test_other_tensors_and_written_ones_are_made_of_anew() -> None:
    once, made = Once(), []

    def ask(tensor: Tensor, how: str = "") -> Any:
        return once.make((tensor,), how, lambda: made.append(tensor.clone()) or len(made))

    tensor = torch.ones(3)
    assert [ask(tensor), ask(tensor)] == [1, 1]
    assert ask(tensor.clone()) == 2
    assert [ask(tensor), ask(tensor, "otherwise"), ask(tensor, "otherwise")] == [3, 4, 4]
    tensor.mul_(2.0)
    assert ask(tensor, "otherwise") == 5
    with torch.inference_mode():
        assert ask(tensor, "otherwise") == 6
        assert [ask(torch.ones(3)), ask(torch.ones(3))] == [7, 8]
    tensor.requires_grad_()
    assert [ask(tensor), ask(tensor)] == [9, 10]
    once.release()
    assert ask(torch.ones(3)) == 11
