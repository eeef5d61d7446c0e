"""Tiny random models of eight families, bridges around their layers, the command, and a browser."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from few import FAMILIES, FOUR, few

if TYPE_CHECKING:  # imported where they are used: the process that deals out tests needs none
    import torch
    from click.testing import Result
    from torch import nn

    from ropebridge import PositionEmbeddingsAttentionBridge

    ModelFactory = Callable[..., nn.Module]
    BridgeFactory = Callable[..., PositionEmbeddingsAttentionBridge]

CONFIG = {"max_position_embeddings": 256}


def randomise(model: nn.Module, seed: int) -> None:
    """Give every parameter a value that matters: norms, biases and sinks too; no projection
    saturates softmax."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.copy_(
                noise * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 1.0 + 0.3 * noise
            )


BUILT: dict[str, nn.Module] = {}
"""Models that were built before: a copy takes half as long."""


def build_model(family: str, attn: str = "eager", seed: int = 0, **config: Any) -> nn.Module:
    """A tiny causal language model in eval mode; keywords go into its config."""
    from ropebridge_conformance.zoo import builder
    from ropebridge_conformance.zoo.recipes.sizes import YARN

    own = {"gpt_oss": {"rope_parameters": {**YARN, "factor": 16.0}}}
    settings = {**CONFIG, **own.get(family, {}), **config}
    kind = repr((family, attn, seed, sorted(settings.items())))
    if kind not in BUILT:
        model = builder.build_model(family, attn, **settings)
        randomise(model, seed)
        BUILT[kind] = model.eval()
    return copy.deepcopy(BUILT[kind])


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the import of packages fail, as where they are not installed."""

    def bar(*packages: str) -> None:
        known = [name for name in sys.modules if name.partition(".")[0] in packages]
        for name in {*packages, *known}:
            monkeypatch.setitem(sys.modules, name, None)

    return bar


WAITING = ("test_survival.py", "test_plugin.py")
"""Files whose tests wait for processes of their own, for minutes."""


NEEDS_A_MODEL = {"bridge", "bridge_layer", "browser", "build", "circuit", "circuit_model", "family"}
"""Fixtures that build tiny models of transformers, or start a browser."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow whatever needs a model; begin with the tests that wait, so that others run
    beside them and none is left to wait for at the end."""
    for item in items:
        if NEEDS_A_MODEL & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.name not in WAITING)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small only lose by being shared out among threads, and lose most where tests run
    side by side."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=few(FOUR, FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Each of the families that together do what the core of the zoo does."""
    return str(request.param)


@pytest.fixture(scope="session")
def build() -> ModelFactory:
    """`build(family, attn="eager", seed=0, **config)`: a tiny model."""
    return build_model


@pytest.fixture(scope="session")
def bridge_layer() -> BridgeFactory:
    """`bridge_layer(family, layer=0, attn="eager", config={}, **options)`: a bridge around one
    layer of a tiny model."""

    from ropebridge import PositionEmbeddingsAttentionBridge
    from ropebridge_conformance.zoo import specimens

    def make(
        family: str,
        layer: int = 0,
        attn: str = "eager",
        config: dict[str, Any] | None = None,
        **options: Any,
    ) -> PositionEmbeddingsAttentionBridge:
        model: Any = build_model(family, attn, **(config or {}))
        bridge = PositionEmbeddingsAttentionBridge(f"blocks.{layer}.attn", model.config, **options)
        bridge.set_original_component(specimens.attention_layer(model, layer))
        bridge.set_rotary_emb(specimens.rotary_module(model))
        return bridge

    return make


@pytest.fixture
def bridge(bridge_layer: BridgeFactory, family: str) -> PositionEmbeddingsAttentionBridge:
    """A bridge around the first layer of each family."""
    return bridge_layer(family)


@pytest.fixture
def llama(bridge_layer: BridgeFactory) -> PositionEmbeddingsAttentionBridge:
    """A bridge around the first layer of a Llama."""
    return bridge_layer("llama")


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    """(2, 12) token ids: longer than the window, no two rows alike, no special token."""
    import torch

    return torch.randint(3, 99, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def left_padding() -> torch.Tensor:
    """(2, 12): the second row is padded by three on the left."""
    import torch

    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :3] = 0
    return mask


@pytest.fixture
def ropebridge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`ropebridge(*words)`: the command, run in this process and in an empty folder."""
    from typer.testing import CliRunner

    from ropebridge_conformance.cli import app

    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, list(words))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, headless."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(
        (
            found
            for name in ("chromium", "chromium-browser", "google-chrome")
            if (found := shutil.which(name))
        ),
        None,
    )
    if chromium is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as run:
        running = run.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()
