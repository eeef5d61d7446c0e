"""A class under another name is recognised by the forward it keeps, or by its source, and then
proved."""

import importlib
import importlib.util
import inspect
import math
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers.models.helium import modeling_helium
from transformers.models.llama import modeling_llama

from ropebridge import attach
from ropebridge_conformance.zoo.builder import build_model, inputs_of
from ropebridge_spec import Family, UnsupportedAttention, describe
from ropebridge_spec.recognise import is_as_told, known_as, source_in, source_of, source_of_class
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


# ---- a name is not enough ----


def farther(scores_from: Any) -> Any:
    """A forward that is Llama's own on 32 positions or fewer, and scales its scores beyond them."""

    def forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        scale = self.scaling
        self.scaling = scale * max(1.0, math.log(hidden_states.shape[1]) / math.log(32))
        try:
            return scores_from(self, hidden_states, *args, **kwargs)
        finally:
            self.scaling = scale

    return forward


def turned(q: Any, k: Any, cos: Any, sin: Any, *_: Any) -> Any:
    """A rotation that is Llama's own."""
    return ROTATE(q, k, cos, sin)


ROTATE = modeling_llama.apply_rotary_pos_emb


@pytest.mark.parametrize("by", ["another", "a_wrapper", "a_function_it_calls"])
def test_a_class_that_was_patched_is_not_known_by_its_name(
    monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Even where a patch says what it wraps, and where it differs beyond any length that a proof
    might try."""
    own = modeling_llama.LlamaAttention.forward
    model = build_model("llama")
    with attach(model):
        pass
    patched = farther(own)
    if by == "a_function_it_calls":
        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", turned)
    elif by == "a_wrapper":
        monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", wraps(own)(patched))
    else:
        monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", patched)
    with pytest.raises(
        UnsupportedAttention,
        match=(
            r"^attention class 'LlamaAttention' is not the one of"
            r" transformers/models/llama/modeling_llama\.py: its forward, or a function(.|\n)*"
            r"families=\{\*\*FAMILIES, 'LlamaAttention': dataclasses\.replace\("
        ),
    ):
        attach(model)
    monkeypatch.undo()
    with attach(model):
        pass


def test_another_class_of_a_known_name_is_not_taken_for_it(tmp_path: Path, remember: Any) -> None:
    module = copied(
        modeling_llama,
        "Llama",
        tmp_path,
        "self.scaling = self.head_dim**-0.5",
        "self.scaling = self.head_dim**-0.25",
    )
    kind = type("LlamaAttention", (module.MineAttention,), {})
    kind.__module__ = "modeling_mine"
    model: Any = build_model("llama")
    for layer in model.model.layers:
        layer.self_attn.__class__ = kind
    with pytest.raises(UnsupportedAttention, match="'LlamaAttention' is not the one of"):
        attach(model)


def test_a_subclass_that_computes_a_part_anew_is_not_known_by_its_base() -> None:
    class Other(modeling_llama.LlamaAttention):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    assert known_as(Kept, FAMILIES) == ["LlamaAttention"]
    assert known_as(Other, FAMILIES) == []


def test_who_says_that_a_patched_class_computes_the_same_is_believed_as_far_as_it_is_proved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = modeling_llama.LlamaAttention.forward
    said = replace(FAMILIES["LlamaAttention"], source="")
    same = wraps(own)(lambda self, *args, **kwargs: own(self, *args, **kwargs))
    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", same)
    with attach(build_model("llama"), families={**FAMILIES, "LlamaAttention": said}) as bridged:
        assert len(bridged.layers) == 2


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_class_of_the_table_has_the_source_of_its_file(name: str) -> None:
    family = FAMILIES[name]
    assert isinstance(family, Family)
    path = f"transformers.{family.source.removesuffix('.py').replace('/', '.')}"
    try:
        kind = getattr(importlib.import_module(path), name)
    except (ImportError, AttributeError):
        pytest.skip("not in this release of transformers")
    assert is_as_told(kind, family)
    assert source_of(kind) == source_in(family.source, name) != ""


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_class_is_read_as_python_reads_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """In the encoding that it says; characters that end a line of text end none of a program."""
    source = (
        f"# -*- coding: {encoding} -*-\nNAME = 'caf\xe9 \x0c \x1c'\n\n"
        "class First:\n    def forward(self):\n        return 1\n\n"
        "class Second:\n    def forward(self):\n        return 2\n"
    )
    (tmp_path / f"odd_{encoding[:3]}.py").write_bytes(source.encode(encoding))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(f"odd_{encoding[:3]}")
    for kind in (module.First, module.Second):
        assert source_of_class(kind).rstrip() == inspect.getsource(kind).rstrip()
