"""Define what a recipe says of a family's tiny model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

from packaging.version import Version


@dataclass(frozen=True)
class Recipe:
    """Describe one family's tiny model.

    name: the family. package: its package in transformers, where that has another name;
        model_package: that of its model, where it is another family's.
    since: the first release of transformers whose config takes what the recipe says.
    layers: one of each kind of attention layer that the model has.
    config: what the config sets beside `SIZES`; `...` leaves out what stands there.
    inputs: what a forward is given: token ids, token ids of several codebooks, embeddings, a pair
        of texts for encoder and decoder, a text and codebooks for them, a text and which of its
        tokens see images, or a block to draft after the states of another model.
    decodes: its forward takes a cache and goes on from it.
    extra: other tensors that every forward is given, by their shapes.
    codebooks: how many tokens stand at one position.
    part: path of the part of the model whose layers are meant, where several stacks number theirs.
    """

    name: str
    config_class: str
    model_class: str
    package: str = ""
    model_package: str = ""
    layers: tuple[int, ...] = (0,)
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Literal["ids", "codebooks", "embeds", "pair", "speech", "seeing", "draft"] = "ids"
    decodes: bool = True
    extra: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    codebooks: int = 3
    part: str = ""
    since: str = ""

    @property
    def installed(self) -> bool:
        """Return whether the installed transformers has the family: an older one may not."""
        new_enough = not self.since or Version(version("transformers")) >= Version(self.since)
        return (
            new_enough and find_spec(f"transformers.models.{self.package or self.name}") is not None
        )

    def load(self, stem: str, name: str) -> Any:
        """Return a class of the family's package."""
        package = self.package or self.name
        package = self.model_package or package if stem == "modeling" else package
        return getattr(import_module(f"transformers.models.{package}.{stem}_{package}"), name)
