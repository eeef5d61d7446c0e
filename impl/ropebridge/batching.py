"""Refuse continuous batching of a bridged model where it is asked for: it runs in a thread of its
own, by paged attention, where an error would go unheard."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

from torch import nn

from ropebridge_spec import AttachError

METHODS = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")
"""The methods of transformers' models that begin continuous batching."""


def refuse_batching(name: str, *_: Any, **__: Any) -> NoReturn:
    """Refuse a call of one of these methods.

    Raises:
        AttachError: always.
    """
    raise AttachError(
        f"{name} batches continuously, by paged attention, and the bridge stands for 'eager',"
        " 'sdpa' and 'flex_attention'\n  call bridged.detach() first, or"
        " bridged.model.generate(input_ids, attention_mask=...) with left padding"
    )


def forbid_batching(model: nn.Module) -> None:
    """Let an instance refuse continuous batching; its class stays as it is."""
    for name in METHODS:
        if hasattr(type(model), name):
            setattr(model, name, partial(refuse_batching, name))


def allow_batching(model: nn.Module) -> None:
    """Take the refusal away again."""
    for name in METHODS:
        if getattr(vars(model).get(name), "func", None) is refuse_batching:
            delattr(model, name)
