"""Ask a subject's layer: its exceptions are marked as its own, it is asked nothing
of a hook point that it declares not to have, and its conventions are translated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.subjects.answers import NotShown, asking
from ropebridge_conformance.subjects.parts import Hooks, name_of


class AskedLayer:
    """Stand for a layer of a subject.

    gaps: hook point -> why the subject does not have it. lowest: whether its masked scores are the
        lowest number of their dtype, where the contract has -inf (SCORE-2).
    """

    def __init__(self, layer: Any, gaps: Mapping[str, str], *, lowest: bool = False) -> None:
        self.layer, self.gaps, self.lowest = layer, gaps, lowest

    def run(
        self, inputs: Mapping[str, Any], hooks: Hooks = (), backward_hooks: Hooks = ()
    ) -> tuple[Any, Any]:
        """Return one call of the subject's layer.

        Raises:
            NotShown: a hook is asked for that is a declared gap.
        """
        for wanted, _ in (*hooks, *backward_hooks):
            if name_of(wanted) in self.gaps:
                raise NotShown(name_of(wanted))
        # a subject without backward hooks need not take the argument
        backward = {"backward_hooks": backward_hooks} if backward_hooks else {}
        with asking():
            return self.layer.run(inputs, hooks, **backward)  # type: ignore[no-any-return]

    def in_contract(self, hook: str, value: Tensor) -> Tensor:
        """Return what a hook was shown, as the contract would show it."""
        if not self.lowest or hook != "hook_attn_scores":
            return value
        return value.masked_fill(value <= torch.finfo(value.dtype).min / 2, -torch.inf)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)


def in_contract(layer: Any, hook: str, value: Tensor) -> Tensor:
    """Return what a layer showed a hook, as the contract would show it; a layer that is asked
    without the judge between has no conventions."""
    return layer.in_contract(hook, value) if isinstance(layer, AskedLayer) else value
