"""Find the rotary attention layers of a model, what they are called, and the module that makes
their tables."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile, zip_longest
from typing import Any

from torch import nn

from ropebridge_spec import LEFT_ALONE, AttachError, Family, UnsupportedAttention, Variant
from ropebridge_spec.paths import holds


def rotary_attention(
    model: nn.Module, families: Mapping[str, Family | Variant]
) -> Iterator[tuple[str, nn.Module]]:
    """Yield every attention module that is given rotary tables, or that a family is known of, with
    its path in the model."""
    for path, module in model.named_modules():
        name = type(module).__name__
        given_tables = (
            name.endswith("Attention")
            and "position_embeddings" in inspect.signature(type(module).forward).parameters
        )
        known = any(base.__name__ in families for base in type(module).__mro__)
        entry = families.get(name)
        if isinstance(entry, Family) and entry.only is not None and not holds(module, entry.only):
            continue
        if known or (given_tables and name not in LEFT_ALONE):
            yield path, module


def layer_number(path: str, module: nn.Module) -> int:
    """Return the number of a layer: its own `layer_idx`, or the last number in its path."""
    own: Any = getattr(module, "layer_idx", None)
    numbers = [int(part) for part in path.split(".") if part.isdigit()]
    own = None if own is not None and own < 0 else own  # a module that layers share
    if own is None and not numbers:
        raise UnsupportedAttention(
            f"{path!r} has no layer_idx, so its hooks would have no name; set module.layer_idx to"
            " the number of its block"
        )
    return int(numbers[-1] if own is None else own)


def hook_names(layers: Sequence[tuple[str, int]]) -> list[str]:
    """Return `blocks.{layer}.attn` of each layer; where two would share a name, what tells their
    paths apart stands before it: `encoder.blocks.0.attn`.

    Raises:
        AttachError: the layers of one name cannot be told apart by the part of the model they stand
            in.
    """
    names = [f"blocks.{number}.attn" for _, number in layers]
    if len(set(names)) == len(names):
        return names
    prefixes = distinguishing_prefixes([path for path, _ in layers])
    full = [".".join([*prefix, name]) for prefix, name in zip(prefixes, names, strict=True)]
    twice = sorted({name for name in full if full.count(name) > 1})
    if twice:
        raise AttachError(
            f"several attention layers share the names {twice}; attach to each part of the model"
            " by itself: attach(model.model)"
        )
    return full


def distinguishing_prefixes(paths: Sequence[str]) -> list[tuple[str, ...]]:
    """Return for each path the words before its layer number that are not the same in all paths.

    `model.encoder.layers.0.attn` and `model.decoder.layers.0.attn` give ("encoder",) and
    ("decoder",).
    """
    stacks = [path.split(".")[: last_number(path)] for path in paths]
    differ = [len(set(words)) > 1 for words in zip_longest(*stacks)]
    return [
        tuple(word for word, different in zip(stack, differ, strict=False) if different)
        for stack in stacks
    ]


def common_parent(paths: Sequence[str]) -> list[str]:
    """Return the words of the path of the innermost module around all of these.

    `model.layers.0.attn` and `model.layers.1.attn` give ["model", "layers"].
    """
    columns = zip(*(path.split(".")[:-1] for path in paths), strict=False)
    return [words[0] for words in takewhile(lambda words: len(set(words)) == 1, columns)]


def innermost_around(model: nn.Module, paths: Sequence[str]) -> tuple[str, nn.Module]:
    """Return the path of the innermost module around all of these that has a forward of its own,
    and the module."""
    parts = common_parent(paths)
    around = model.get_submodule(".".join(parts))
    while isinstance(around, (nn.ModuleList, nn.ModuleDict)):
        parts.pop()
        around = model.get_submodule(".".join(parts))
    return ".".join(parts), around


def last_number(path: str) -> int:
    """Return where in a path its last number stands; its end where it has none."""
    parts = path.split(".")
    return next((at for at in range(len(parts) - 1, -1, -1) if parts[at].isdigit()), len(parts))


def nearest_rotary(model: nn.Module, path: str) -> nn.Module | None:
    """Return the rotary embedding that the closest module around an attention layer holds."""
    parts = path.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        around = model.get_submodule(".".join(parts[:depth]))
        rotary = [
            child
            for name, child in around.named_children()
            if name == "rotary_emb" or type(child).__name__.endswith(ROTARY)
        ]
        if rotary:
            return rotary[0]
    return None


ROTARY = ("RotaryEmbedding", "SinusoidalPositionalEmbedding")
"""How the classes are named that make rotary tables."""
