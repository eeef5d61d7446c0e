"""Between another implementation's layout and the contract's: what a hook is shown, and what its
edit becomes.

A translation loses nothing: a hook that looks is shown the value, an edit in place or a replacement
reaches the implementation as it would have without the translation, and nothing is handed back
where nothing was changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ropebridge_spec import HookFunction

Name = Callable[[str], str]


@dataclass(frozen=True)
class Layout:
    """Hold how one hook's tensor lies elsewhere.

    axes: the axes there, in words, for reports.
    show: from there to the contract. put_back: an edited value, and the value as it was there, to
        what it is there.
    """

    axes: str
    show: Callable[[Tensor], Tensor]
    put_back: Callable[[Tensor, Tensor], Tensor]

    def around(self, fn: HookFunction, name: Name) -> HookFunction:
        """Return a hook for there, of a hook for the contract."""

        def hook_there(value: Tensor, hook: Any) -> Tensor | None:
            shown = self.show(value)
            before = shown if shares_memory(shown, value) else shown.detach().clone()
            left = fn(shown, hook=SimpleNamespace(name=name(hook.name)))
            if left is None and (before is shown or torch.equal(before, shown)):
                return None
            return self.put_back(shown if left is None else left, value)

        return hook_there


def shares_memory(one: Tensor, other: Tensor) -> bool:
    """Return whether an edit of one in place is an edit of the other."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def renamed(fn: HookFunction, name: Name) -> HookFunction:
    """Return a hook for there, where the layout is the contract's and only the layer has another
    number."""
    return lambda value, hook: fn(value, hook=SimpleNamespace(name=name(hook.name)))


def heads_first(value: Tensor) -> Tensor:
    """Return (batch, head, pos, width) as (batch, pos, head, width), or the other way round."""
    return value.transpose(1, 2)


def with_infinities(scores: Tensor) -> Tensor:
    """Return scores whose masked entries are near the lowest number of the dtype, with -inf
    there."""
    return scores.masked_fill(lowest(scores), -torch.inf)


def without_infinities(edited: Tensor, before: Tensor) -> Tensor:
    """Return edited scores with, where they are still -inf, what stood there."""
    return torch.where(edited == -torch.inf, before, edited)


def lowest(scores: Tensor) -> Tensor:
    """Return where a score is a mask's and no score: at most half the lowest number (MASK-5)."""
    return scores <= torch.finfo(scores.dtype).min / 2


HEADS_FIRST = Layout(
    "batch head pos d_head", heads_first, lambda edited, before: heads_first(edited)
)
FINITE_MASK = Layout(
    "batch head query key, the dtype's lowest number where the contract has -inf",
    with_infinities,
    without_infinities,
)


def translated(
    name: str, fn: HookFunction, layouts: Mapping[str, Layout], rename: Name
) -> HookFunction:
    """Return a hook for there, of one for the contract's hook point."""
    layout = layouts.get(name)
    return renamed(fn, rename) if layout is None else layout.around(fn, rename)
