"""Compiled models: one graph for a set of hook points, whatever functions are hooked to them, and
for all layers and steps of decoding."""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import StaticCache

from benchmarks.contests import CACHES
from few import few
from ropebridge import Entropy, TopK, Watch, attach

pytestmark = pytest.mark.slow

Z, PATTERN = ".attn.hook_z", ".attn.hook_pattern"


class Counter:
    """Stand for a compiler, and count its graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    """A compiler that remembers nothing of other tests."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def model(build: Any) -> Any:
    return build("llama", "sdpa", num_hidden_layers=4)


def at(ending: str) -> Callable[[str], bool]:
    return lambda name: name.endswith(ending)


def zero_head(head: Any) -> Callable[..., None]:
    """A function of one head, by a number in its closure."""

    def edit(z: Tensor, hook: Any) -> None:
        z[:, :, head] = 0.0

    return edit


EDITS: list[Callable[..., Any]] = [
    zero_head(0),
    zero_head(1),
    zero_head([2, 3]),
    lambda z, hook: z * 0.5,
    lambda z, hook: None,
    lambda z, hook: z + len(hook.name),
]


def run(call: Any, tokens: Tensor, bridged: Any, *pairs: Any) -> Tensor:
    with torch.no_grad(), bridged.hooks(list(pairs)):
        logits: Tensor = call(tokens, use_cache=False).logits
        return logits


def test_a_new_function_is_no_new_graph(model: Any, tokens: Tensor) -> None:
    """Other closures, other code, looks, parts and reductions: one graph in all."""
    bridged, counter = attach(model, verify=False), Counter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for edit in EDITS:
        right = run(model, tokens, bridged, (at(Z), edit))
        got = run(compiled, tokens, bridged, (at(Z), edit))
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)
    assert counter.graphs == 1


@pytest.mark.every
def test_parts_and_reductions_are_shown_in_a_graph(model: Any, tokens: Tensor) -> None:
    bridged, counter = attach(model, verify=False), Counter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    kept: list[Any] = []

    def keep(value: Any, hook: Any) -> None:
        kept.append(value)

    for watch in (
        Watch("blocks.1.attn.hook_pattern", heads=[2, 0], query=slice(-3, None)),
        Watch("blocks.1.attn.hook_pattern", key=0),
        Watch("blocks.1.attn.hook_pattern", reduce=TopK(2)),
        Watch("blocks.1.attn.hook_pattern", reduce=Entropy(), heads=1),
    ):
        for call in (model, compiled):
            run(call, tokens, bridged, (watch, keep))
        one, other = kept[-2:]
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert counter.graphs == 1
    part = Watch("blocks.1.attn.hook_pattern", heads=1, query=slice(0, 2))
    edited = run(compiled, tokens, bridged, (part, lambda pattern, hook: pattern * 0))
    right = run(model, tokens, bridged, (part, lambda pattern, hook: pattern * 0))
    torch.testing.assert_close(edited, right, rtol=1e-4, atol=1e-5)


@pytest.mark.every
def test_layers_share_a_graph(model: Any, tokens: Tensor) -> None:
    """Compiled one by one they are one graph, watched or not, as without a bridge."""
    bridged, counter = attach(model, verify=False), Counter()
    right = run(model, tokens, bridged), run(model, tokens, bridged, (at(Z), EDITS[0]))
    for layer in model.model.layers:
        layer.compile(backend=counter, fullgraph=True)
    torch.testing.assert_close(run(model, tokens, bridged), right[0], rtol=1e-4, atol=1e-5)
    assert counter.graphs == 1
    edited = run(model, tokens, bridged, (at(Z), EDITS[0]))
    torch.testing.assert_close(edited, right[1], rtol=1e-4, atol=1e-5)
    assert counter.graphs == 2


@pytest.mark.parametrize("ending", few([Z], [None, Z, PATTERN]))
def test_steps_of_decoding_share_a_graph(model: Any, tokens: Tensor, ending: str | None) -> None:
    bridged, counter = attach(model, verify=False), Counter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    fired: list[str] = []

    def look(tensor: Tensor, hook: Any) -> None:
        fired.append(hook.name)

    def steps(call: Any) -> Tensor:
        (name,) = (n for n in signature(model.forward).parameters if n in CACHES)
        given = {name: StaticCache(config=model.config, max_cache_len=32), "use_cache": True}
        model(tokens, **given)
        made = [call(tokens[:, at : at + 1], **given).logits for at in range(5)]
        return torch.cat(made, dim=1)

    watching: Any = contextlib.nullcontext()
    if ending is not None:
        watching = bridged.hooks([(at(ending), look)])
    with torch.no_grad():
        right = steps(model)
        with watching:
            got = steps(compiled)
    torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)
    assert counter.graphs == 1
    assert len(fired) == (0 if ending is None else 4 * (1 + 5))


@pytest.mark.every
def test_a_cache_of_a_compiled_model_is_that_of_the_model(model: Any, tokens: Tensor) -> None:
    bridged, counter = attach(model, verify=False), Counter()
    with torch.no_grad():
        _, right = bridged.run_with_cache(tokens, use_cache=False)
        model.compile(backend=counter, fullgraph=True)
        _, got = bridged.run_with_cache(tokens, use_cache=False)
        _, again = bridged.run_with_cache(tokens, use_cache=False)
    assert list(got) == list(right) == list(again)
    for name, tensor in right.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-4, atol=1e-5)
        assert torch.equal(got[name], again[name])
    assert counter.graphs == 1


@pytest.mark.every
def test_gradients_flow_through_hooks_in_a_graph(model: Any, tokens: Tensor) -> None:
    """There a graph takes in the code of the hooks."""
    bridged = attach(model, verify=False)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    weight = model.model.layers[0].self_attn.q_proj.weight
    gradients = []
    for call in (model, compiled):
        model.zero_grad()
        with bridged.hooks([(at(Z), zero_head(1))]):
            call(tokens, use_cache=False).logits.square().mean().backward()
        gradients.append(weight.grad.clone())
    assert float(gradients[0].abs().max()) > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-7)


@pytest.mark.every
def test_a_copy_of_a_model_fires_its_own_hooks(model: Any, tokens: Tensor) -> None:
    bridged = attach(model, verify=False)
    seen: list[str] = []
    bridged.add_hook(at(Z), lambda z, hook: seen.append("first"))
    other: nn.Module = copy.deepcopy(model)
    bridged.reset_hooks()
    compiled = torch.compile(other, backend="eager", fullgraph=True)
    with torch.no_grad():
        compiled(tokens, use_cache=False)
    assert seen == ["first"] * 4  # of the copied hooks, and not of the points they were copied from
    points = {id(m): m for m in other.modules() if type(m).__name__ == "HookPoint"}.values()
    numbers = {int(point._number) for point in points}  # type: ignore[operator]
    assert numbers.isdisjoint(int(point._number) for point in bridged.hook_points.values())


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler of C++")
@pytest.mark.timeout(600)
@pytest.mark.every
def test_inductor_neither_writes_over_what_hooks_keep_nor_loses_their_edits(
    build: Any, tokens: Tensor
) -> None:
    model = build("llama", "sdpa", num_hidden_layers=1)
    bridged = attach(model, verify=False)
    compiled = torch.compile(model, fullgraph=True)
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(tensor: Tensor, hook: Any) -> None:
        kept[hook.name] = (tensor, tensor.clone())

    names = list(bridged.hook_points)
    pairs = [(name, keep) for name in names]
    right = run(model, tokens, bridged, *pairs)
    wanted = dict(kept)
    kept.clear()
    got = run(compiled, tokens, bridged, *pairs)
    torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)
    assert set(kept) == set(names)
    for name, (tensor, then) in kept.items():
        assert torch.equal(tensor, then), name
        torch.testing.assert_close(tensor, wanted[name][0], rtol=1e-4, atol=1e-5)
    edited = [(at(Z), zero_head(1))]
    torch.testing.assert_close(
        run(compiled, tokens, bridged, *edited),
        run(model, tokens, bridged, *edited),
        rtol=1e-4,
        atol=1e-5,
    )
