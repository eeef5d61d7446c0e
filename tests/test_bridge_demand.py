"""Work follows demand: what nobody watches is not made, in eager mode and under torch.compile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from few import FAMILIES, few
from ropebridge import attach

pytestmark = pytest.mark.slow

POS = 600
COMPILED = ("gemma2",)


class Largest(TorchDispatchMode):
    """Keeps the most elements that any operation gave back."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.elements = max(
            [
                self.elements,
                *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)),
            ]
        )
        return result


@torch.no_grad()
def largest(bridge: Any, layer_inputs: Any) -> int:
    with Largest() as kept:
        bridge(**{**layer_inputs, "attention_mask": None})
    return kept.elements


@pytest.mark.parametrize("layer", [0, 1])
def test_nothing_of_size_query_by_key_is_made_where_nobody_watches(
    bridge_layer: Any, family: str, layer: int
) -> None:
    bridge = bridge_layer(family, layer, config={"max_position_embeddings": 1024})
    inputs = bridge.get_random_inputs(1, POS, seed=0)
    assert largest(bridge, inputs) < bridge.variant.heads * POS * POS / 2
    bridge.hook_points["hook_pattern"].add_hook(lambda tensor, hook: None)
    assert largest(bridge, inputs) >= bridge.variant.heads * POS * POS


@pytest.fixture
def _compiler() -> Iterator[None]:
    """A compiler that remembers nothing of other tests."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("family", few(COMPILED, FAMILIES))
@pytest.mark.usefixtures("_compiler")
@torch.no_grad()
def test_a_bridged_model_compiles_as_the_model_alone_does(
    build: Any, tokens: Tensor, family: str
) -> None:
    """Into one graph; transformers' own experts break that of GPT-OSS."""
    model = build(family)
    wanted = model(tokens, use_cache=False).logits
    with attach(model) as bridged:
        compiled = torch.compile(bridged.model, backend="eager", fullgraph=family != "gpt_oss")
        torch.testing.assert_close(
            compiled(tokens, use_cache=False).logits, wanted, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("family", few(COMPILED, FAMILIES))
@pytest.mark.usefixtures("_compiler")
@torch.no_grad()
def test_a_layer_compiles_into_one_graph_and_its_hooks_fire(bridge_layer: Any, family: str) -> None:
    bridge = bridge_layer(family)
    inputs = bridge.get_random_inputs(2, 9, seed=0)
    wanted, _ = bridge(**inputs)
    compiled = torch.compile(bridge, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs)[0], wanted, rtol=1e-5, atol=1e-5)
    kept: list[Tensor] = []
    with bridge.hook_points["hook_z"].add_hook(lambda tensor, hook: tensor * 0):
        edited = compiled(**inputs)[0]
    bias = bridge.b_O
    torch.testing.assert_close(
        edited, torch.zeros_like(edited) if bias is None else bias.expand_as(edited)
    )
    with bridge.hook_points["hook_pattern"].add_hook(
        lambda tensor, hook: kept.append(tensor.clone())
    ):
        compiled(**inputs)
    assert [tuple(pattern.shape) for pattern in kept] == [(2, 6, 9, 9)]
