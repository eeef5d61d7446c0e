"""Switches that make a layer's kind: read when the bridge was put over it, and held to in every
call, so that nothing runs that was not proved."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ropebridge_spec import AttachError

PLAIN_TYPES = (bool, int, float, str, type(None))
MAY_CHANGE = ("training", "layer_idx", "gradient_checkpointing")
"""Attributes of a module that say nothing of what it computes, or are read anew in each call."""

OF_CONFIG = ("is_causal", "sliding_window", "attention_chunk_size", "alibi", "clip_qkv")
"""Attributes of a config that classes read in their forward, or models for their masks."""

SERVED = ("eager", "sdpa", "flex_attention")
OWN_FUNCTIONS = {"sdpa": sdpa_attention_forward, "flex_attention": flex_attention_forward}
"""What transformers itself registered under the names of implementations that a bridge stands for;
eager attention is a function of the class's own file."""


@dataclass(frozen=True)
class Attributes:
    """Hold the names of attributes, and their values in the same order."""

    names: tuple[str, ...]
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Switches:
    """Hold the forward of a module's class, and the plain attributes of the module and of its
    config, as they were."""

    forward: Any
    module: Attributes
    config: Attributes


def read_switches(module: nn.Module) -> Switches:
    """Return the switches of a module as they are."""
    config = getattr(module, "config", None)
    of_module = [name for name in vars(module) if name[0] != "_" and name not in MAY_CHANGE]
    return Switches(
        type(module).forward,
        plain_attributes(module, sorted(of_module)),
        plain_attributes(config, OF_CONFIG),
    )


def plain_attributes(owner: object, names: Iterable[str]) -> Attributes:
    """Return those of these attributes that are numbers, flags, strings or None; None too where
    there is no such attribute."""
    plain = [name for name in names if isinstance(own_attributes(owner).get(name), PLAIN_TYPES)]
    return Attributes(tuple(plain), tuple(own_attributes(owner).get(name) for name in plain))


def refuse_changes(name: str, module: nn.Module, then: Switches) -> None:
    """Refuse a layer that is no longer what its bridge was made for.

    Args:
        name: what messages call the layer.
        module: the wrapped module.
        then: its switches when the bridge was made.

    Raises:
        AttachError: a switch has another value, the class another forward, or the model attends by
            another function than transformers' own.
    """
    kind = type(module)
    if kind.forward is not then.forward:
        raise AttachError(
            f"{name!r} is not what it was when it was attached to: the forward of its class"
            f" {kind.__name__} was replaced, and the bridge stands for the one that was proved\n"
            "  undo the patch, or attach again: bridged.detach(); bridged = attach(model)"
        )
    config = getattr(module, "config", None)
    for owner, switches in ((module, then.module), (config, then.config)):
        now = tuple(map(own_attributes(owner).get, switches.names))
        if now != switches.values:
            refuse_change(name, owner, switches, now)
    refuse_other_attention(name, module)


def own_attributes(owner: object) -> Mapping[str, Any]:
    """Return the attributes that a module or a config holds itself; of None, none.

    A config's own look-up of any attribute, `__dict__` too, is code of transformers in Python, and
    takes longer than all that asks for it.
    """
    if owner is None:
        return {}
    if torch.compiler.is_compiling():
        return vars(owner)  # what dynamo can follow
    attributes: Mapping[str, Any] = object.__getattribute__(owner, "__dict__")
    return attributes


def refuse_change(name: str, owner: object, then: Attributes, now: tuple[Any, ...]) -> None:
    """Refuse the first attribute that has another value than when the bridge was made."""
    for switch, before, value in zip(then.names, then.values, now, strict=True):
        if before is not value and before != value:
            raise AttachError(
                f"{name!r} is not what it was when it was attached to: {switch} of its"
                f" {type(owner).__name__} was {before!r} and is {value!r}\n  attach again to go on"
                " with the new value: bridged.detach(); bridged = attach(model)"
            )


def refuse_other_attention(name: str, module: nn.Module) -> None:
    """Refuse a model that attends by another function than transformers' own eager, sdpa and flex:
    the bridge would compute something else."""
    config: Any = getattr(module, "config", None)
    chosen = implementation_of(config) or "eager"
    if chosen not in SERVED:
        raise AttachError(
            f"{name!r} attends by {chosen!r}, and the bridge stands for 'eager', 'sdpa' and"
            " 'flex_attention'; call model.set_attn_implementation('sdpa') first"
        )
    if torch.compiler.is_compiling():
        return
    function = attention_functions(module).get(chosen)
    if function is not None and function is not OWN_FUNCTIONS.get(chosen):
        raise AttachError(
            f"{name!r} attends by a function that was registered as {chosen!r}"
            f" ({getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}"
            "), and the bridge stands for transformers' own\n  register it under a name of its own,"
            " and call model.set_attn_implementation('eager') to attach"
        )


def implementation_of(config: Any) -> str | None:
    """Return the name of the implementation by which a model of this config attends, or None."""
    kept = own_attributes(config).get("_attn_implementation_internal")
    chosen: str | None = kept or getattr(config, "_attn_implementation", None)
    return chosen


def returns_pattern(config: Any) -> bool:
    """Return whether a config asks every layer for its pattern."""
    kept = own_attributes(config).get("_output_attentions")
    return bool(getattr(config, "output_attentions", False) if kept is None else kept)


def attention_functions(module: nn.Module) -> Mapping[Any, Any]:
    """Return name -> function, as the file of a module's class looks its attention up; nothing
    where it does not."""
    around = vars(sys.modules.get(type(module).__module__, sys))
    functions: Mapping[Any, Any] = around.get("ALL_ATTENTION_FUNCTIONS") or {}
    return functions
