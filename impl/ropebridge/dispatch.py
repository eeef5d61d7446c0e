"""Models that accelerate dispatched over devices: its hook stays around the bridge's forward, and
weights that it offloaded are brought in where they are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

PUT_THERE = ("_hf_hook", "_old_forward", "forward")
"""What accelerate puts on an instance that it hooks."""


def is_dispatched(module: nn.Module) -> bool:
    """Return whether accelerate's hook lies around a module's forward: it calls `_old_forward`."""
    return "_hf_hook" in vars(module) and "_old_forward" in vars(module)


def is_offloaded(module: nn.Module) -> bool:
    """Return whether accelerate keeps a module's own weights elsewhere, and brings them in for its
    forward alone."""
    return bool(getattr(vars(module).get("_hf_hook"), "offload", False))


def weights_in(module: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which a module's own weights are there, wherever accelerate keeps
    them."""
    if not is_offloaded(module):
        return nullcontext()
    from accelerate.utils import align_module_device  # type: ignore[import-untyped]

    context: AbstractContextManager[None] = align_module_device(module)
    return context


@contextmanager
def all_weights_in(module: nn.Module) -> Iterator[None]:
    """Be in a context in which the weights of a module and of all in it are there."""
    with ExitStack() as stack:
        for part in module.modules():
            stack.enter_context(weights_in(part))
        yield


def weight_of(module: Any, name: str) -> Any:
    """Return a parameter of a module, or None where it has none, from wherever accelerate keeps
    it."""
    with weights_in(module):
        return getattr(module, name)


def runs_on(module: nn.Module) -> torch.device | None:
    """Return the device on which accelerate runs a module whose weights it offloaded; None for
    others."""
    hook: Any = vars(module).get("_hf_hook")
    return torch.device(hook.execution_device) if is_offloaded(module) else None
