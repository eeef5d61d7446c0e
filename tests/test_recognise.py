"""A class under another name is recognised by the forward it keeps, or by its source, and then
proved."""

import importlib.util
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers.models.helium import modeling_helium
from transformers.models.llama import modeling_llama

from ropebridge import attach
from ropebridge_conformance.recipes import build_model, inputs_of
from ropebridge_spec import UnsupportedAttention, describe
from ropebridge_spec.recognise import known_as
from ropebridge_spec.rows import FAMILIES

pytestmark = pytest.mark.slow


class Kept(modeling_llama.LlamaAttention):
    """Its own name, and nothing else."""


def copied(
    original: ModuleType, stem: str, folder: Path, old: str = "", new: str = ""
) -> ModuleType:
    """A file of transformers under another name, its family renamed, with one change."""
    text = (
        inspect.getsource(original)
        .replace("from ...", "from transformers.")
        .replace(
            f"from .configuration_{stem.lower()}",
            f"from {original.__package__}.configuration_{stem.lower()}",
        )
    )
    assert old in text
    path = folder / "modeling_mine.py"
    path.write_text(
        text.replace(f"{stem}Attention", "MineAttention")
        .replace(f"{stem}RMSNorm", "MineRMSNorm")
        .replace(old, new, 1),
        encoding="utf-8",
    )
    spec = importlib.util.spec_from_file_location("modeling_mine", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(importlib.sys.modules, "modeling_mine", module)  # type: ignore[attr-defined]
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def remember(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a module importable, as one that was loaded from a hub is."""
    import sys

    return lambda module: monkeypatch.setitem(sys.modules, "modeling_mine", module)


def with_attention(family: str, kind: type) -> Any:
    model = build_model(family)
    for layer in model.model.layers:
        layer.self_attn.__class__ = kind
    return model


@torch.no_grad()
def test_a_subclass_that_keeps_its_forward_is_its_base() -> None:
    model = with_attention("llama", Kept)
    inputs = inputs_of("llama", model.config)
    wanted = model(**inputs).logits
    with attach(model) as bridged:
        torch.testing.assert_close(bridged(**inputs).logits, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("original", "stem", "pairing"),
    [(modeling_llama, "Llama", "half"), (modeling_helium, "Helium", "interleaved")],
    ids=["llama", "helium"],
)
def test_a_copy_under_another_name_is_told_by_its_source_and_proved(
    original: ModuleType, stem: str, pairing: str, tmp_path: Path, remember: Any
) -> None:
    """The two classes differ in the function they rotate with alone."""
    module = copied(original, stem, tmp_path)
    remember(module)
    with attach(with_attention(stem.lower(), module.MineAttention)) as bridged:
        assert bridged.layers[0].variant.rotary is not None
        assert bridged.layers[0].variant.rotary.pairing == pairing


def test_a_copy_that_computes_something_else_is_not_recognised(
    tmp_path: Path, remember: Any
) -> None:
    module = copied(
        modeling_llama,
        "Llama",
        tmp_path,
        "return torch.cat((-x2, x1), dim=-1)",
        "return torch.cat((x2, -x1), dim=-1)",
    )
    remember(module)
    with pytest.raises(
        UnsupportedAttention,
        match="attention class 'MineAttention' is not in the table of families",
    ):
        attach(with_attention("llama", module.MineAttention))


def test_a_copy_of_what_two_families_do_differently_asks_which(
    tmp_path: Path, remember: Any
) -> None:
    """Phimoe's attention has the source of Llama's, and its model windows the mask."""
    module = copied(modeling_llama, "Llama", tmp_path)
    remember(module)
    model = with_attention("llama", module.MineAttention)
    assert known_as(module.MineAttention, FAMILIES) == ["ArceeAttention", "PhimoeAttention"]
    model.config.sliding_window = 4
    with pytest.raises(
        UnsupportedAttention,
        match=(
            r"has the source of ArceeAttention and of PhimoeAttention, (.|\n)*say which: families="
        ),
    ):
        describe(model.model.layers[0].self_attn)
