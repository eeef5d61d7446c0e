"""Knowledge of a tensor while code runs: whether its numbers can be looked at, and whether writing
to it is counted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad


def unreadable(tensor: Tensor) -> bool:
    """Return whether values cannot be looked at: on meta, while a graph is compiled, and under
    `torch.vmap`."""
    return torch.compiler.is_compiling() or tensor.is_meta or under_vmap()


def under_transform() -> bool:
    """Return whether a transform of `torch.func` runs this code, or forward-mode
    differentiation."""
    return not torch.compiler.is_compiling() and (
        torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    )


def under_vmap() -> bool:
    """Return whether `torch.vmap` runs this code: a tensor then stands for many."""
    return under_transform() and any(
        interpreter.key() == torch._C._functorch.TransformType.Vmap
        for interpreter in retrieve_all_functorch_interpreters()
    )


def version(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to; inference tensors and compiled graphs keep no
    count."""
    return None if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version
