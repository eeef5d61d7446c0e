"""`bridged.explain()` says what a pass then does, layer by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ropebridge import attach
from ropebridge.kernels import choose

pytestmark = pytest.mark.slow

LONG = {"max_position_embeddings": 1024}


def look(tensor: Any, hook: Any) -> None:
    """Change nothing."""


def kernels_of(model: Any, ids: Any, monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> list[str]:
    """The kernel that each layer takes in one pass."""
    taken: list[str] = []

    def spy(demand: Any, settings: Any) -> Any:
        choice = real(demand, settings)
        taken.append(choice.kernel)
        return choice

    real = choose.choose
    with monkeypatch.context() as patch:
        patch.setattr(choose, "choose", spy)
        model(ids, use_cache=False, **kwargs)
    return taken


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("pos", [1, 400])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_each_layer_takes_the_kernel_that_was_explained(
    build: Any, monkeypatch: pytest.MonkeyPatch, name: str, attn: str, pos: int, grad: bool
) -> None:
    bridged = attach(build(name, attn, **LONG))
    bridged.add_hook("blocks.1.attn.hook_pattern", look)
    ids = torch.randint(3, 99, (2, pos), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, : pos // 3] = 0
    with torch.set_grad_enabled(grad):
        explained = [layer.kernel for layer in bridged.explain(pos)]
        assert kernels_of(bridged.model, ids, monkeypatch) == explained
        if pos > 1:
            padded = [layer.kernel for layer in bridged.explain(pos, padding=True)]
            taken = kernels_of(bridged.model, ids, monkeypatch, attention_mask=mask)
            assert taken == padded


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_softcaps_and_sinks_are_explained(
    build: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bridged = attach(build(name))
    with torch.no_grad():
        explained = [layer.kernel for layer in bridged.explain(9)]
        ids = torch.arange(3, 12)[None]
        assert kernels_of(bridged.model, ids, monkeypatch) == explained == ["row_blocks"] * 2


def test_an_explanation_reads_as_lines_and_joins_layers_that_do_the_same(build: Any) -> None:
    bridged = attach(build("llama", "sdpa", num_hidden_layers=4))
    bridged.add_hook("blocks.3.attn.hook_pattern", look)
    bridged.add_hook("blocks.3.attn.hook_z", look)
    with torch.no_grad():
        explanation = bridged.explain(512)
    assert repr(explanation).splitlines() == [
        "a pass over 512 positions, not padded, without gradients",
        "blocks.0.attn to blocks.2.attn: nothing watched; row_blocks: a causal pass of a length at"
        " which blocks are faster",
        "blocks.3.attn: hook_pattern, hook_z watched; row_blocks: the pattern is wanted",
    ]
    assert len(explanation) == 4
    assert explanation[3].watched == ("hook_pattern", "hook_z")
    assert "padded, with gradients" in repr(bridged.explain(4, padding=True))


def test_layers_share_the_memory_of_patterns_and_give_it_back(build: Any) -> None:
    bridged = attach(build("llama", "sdpa", **LONG))
    places: list[int] = []

    def note(tensor: Any, hook: Any) -> None:
        places.append(tensor.data_ptr())

    ids = torch.arange(3, 99).repeat(1, 4)[:, :300]
    with torch.no_grad(), bridged.hooks([(lambda n: n.endswith("hook_pattern"), note)]):
        bridged(ids)
        assert bridged.layers[0].memory._pages
    assert places[0] == places[1]
    assert not bridged.layers[0].memory._pages
    with torch.no_grad():
        _, cache = bridged.run_with_cache(ids, names_filter=lambda n: n.endswith("hook_pattern"))
    one, two = cache.values()
    assert one.data_ptr() != two.data_ptr()
    assert not torch.equal(one, two)
