"""Refusals of hooks that cannot be what they are asked to be, where they are given (FIRE-4)."""

from __future__ import annotations

import inspect
from types import CodeType, FunctionType
from typing import Literal

import torch

from ropebridge.watch import Watch
from ropebridge_spec import ContractError
from ropebridge_spec import Watch as Part


def remedy() -> str:
    """Return what to do so that a gradient flows, which depends on whether gradients are on."""
    if torch.is_grad_enabled():
        return "  let the model's input, or a weight before this point, require a gradient"
    return (
        "  gradients are off here: run the model outside of torch.no_grad(); gradient checkpointing"
        " with use_reentrant=True runs it without them too, so pass\n "
        " model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant':"
        " False})"
    )


def refuse_reduced_gradient(watch: Part, dir: Literal["fwd", "bwd"]) -> None:
    """Refuse to reduce a gradient."""
    if dir == "bwd" and isinstance(watch, Watch) and watch.reduce is not None:
        raise ContractError(
            f"a backward hook at {watch.name!r} cannot be given {watch.reduce!r}: reductions are of"
            " the pattern, and not of gradients"
        )


def takes_tensor_and_hook(code: CodeType) -> bool:
    """Return whether a function of this code has two parameters of which the second is `hook`, as
    most hooks have: its signature, which takes ten times as long to read, need not be asked for."""
    return (
        code.co_argcount == 2
        and code.co_varnames[1] == "hook"
        and code.co_posonlyargcount == code.co_kwonlyargcount == 0
    )


def refuse_uncallable(name: str, fn: object) -> None:
    """Refuse a hook that cannot be called as `fn(tensor, hook=...)`, where it is given and not
    where it would fire (FIRE-4)."""
    if not callable(fn):
        raise ContractError(
            f"hook {name!r} was given {type(fn).__name__} {fn!r}; clause FIRE-4 requires a function"
            " fn(tensor, hook)"
        )
    if isinstance(fn, FunctionType) and takes_tensor_and_hook(fn.__code__):
        return
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # a builtin that does not say what it takes
        return
    try:
        signature.bind(None, hook=None)
    except TypeError as error:
        raise ContractError(
            f"hook {name!r} was given a function with the parameters {signature}; clause FIRE-4"
            f" requires fn(tensor, hook), called with the keyword hook=: {error}"
        ) from error
