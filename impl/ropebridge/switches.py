"""Switches that make a layer's kind: read when the bridge was put over it, and held to in every
call, so that nothing runs that was not proved."""

from __future__ import annotations

import sys
from collections.abc import Mapping
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
class Switches:
    """Hold the forward of a module's class, and the plain attributes of the module and of its
    config, as they were."""

    forward: Any
    module: tuple[tuple[str, Any], ...]
    config: tuple[tuple[str, Any], ...]


def read_switches(module: nn.Module) -> Switches:
    """Return the switches of a module as they are."""
    config = vars(getattr(module, "config", None) or object)
    return Switches(
        type(module).forward,
        tuple(
            (name, value)
            for name, value in sorted(vars(module).items())
            if isinstance(value, PLAIN_TYPES)
            and not name.startswith("_")
            and name not in MAY_CHANGE
        ),
        tuple(
            (name, value)
            for name in OF_CONFIG
            if isinstance(value := config.get(name), PLAIN_TYPES)
        ),
    )


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
    config = getattr(module, "config", None) or object
    for owner, switches in ((module, then.module), (config, then.config)):
        for switch, value in switches:
            now = vars(owner).get(switch)
            if now is not value and now != value:
                raise AttachError(changed(name, owner, switch, value, now))
    refuse_other_attention(name, module)


def changed(name: str, owner: object, switch: str, then: object, now: object) -> str:
    """Return the message for a switch that has another value than when the bridge was made."""
    return (
        f"{name!r} is not what it was when it was attached to: {switch} of its"
        f" {type(owner).__name__} was {then!r} and is {now!r}\n  attach again to go on with the new"
        " value: bridged.detach(); bridged = attach(model)"
    )


def refuse_other_attention(name: str, module: nn.Module) -> None:
    """Refuse a model that attends by another function than transformers' own eager, sdpa and flex:
    the bridge would compute something else."""
    config: Any = getattr(module, "config", None)
    chosen = getattr(config, "_attn_implementation", None) or "eager"
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


def attention_functions(module: nn.Module) -> Mapping[Any, Any]:
    """Return name -> function, as the file of a module's class looks its attention up; nothing
    where it does not."""
    around = vars(sys.modules.get(type(module).__module__, sys))
    functions: Mapping[Any, Any] = around.get("ALL_ATTENTION_FUNCTIONS") or {}
    return functions
