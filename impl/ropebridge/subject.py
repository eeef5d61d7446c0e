"""Bridge as the judge sees it: `ropebridge check ropebridge.subject:Factory`.

Nothing of the judge is imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ropebridge.bridge import PositionEmbeddingsAttentionBridge
from ropebridge.hooks import HookHandle
from ropebridge.kernels.demand import KernelSettings
from ropebridge_spec import FAMILIES, Family, HookFunction, OptIn, Variant

Hooks = Sequence[tuple[str, HookFunction]]


class BridgedLayer:
    """Run one attention module with a bridge around it."""

    def __init__(
        self,
        module: nn.Module,
        rotary: nn.Module,
        opted_in: Sequence[OptIn],
        families: Mapping[str, Family | Variant],
        kernels: KernelSettings,
    ) -> None:
        options: dict[str, Any] = {f"use_{choice}": True for choice in opted_in}
        self.bridge = PositionEmbeddingsAttentionBridge(
            "blocks.0.attn", getattr(module, "config", None), families=families, **options
        )
        self.bridge.set_original_component(module)
        self.bridge.set_rotary_emb(rotary)
        self.bridge.kernels = kernels
        self._backward: list[HookHandle] = []
        self.get_random_inputs = self.bridge.get_random_inputs

    def run(
        self, inputs: Mapping[str, Any], hooks: Hooks = (), backward_hooks: Hooks = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Run one forward call with hooks, and return the output and the weights; the hooks are
        removed after it, those of the backward pass before the next call."""
        while self._backward:
            self._backward.pop().remove()
        points = self.bridge.hook_points
        with ExitStack() as stack:
            for name, fn in hooks:
                stack.enter_context(points[name].add_hook(fn))
            self._backward += [points[name].add_hook(fn, dir="bwd") for name, fn in backward_hooks]
            returned = dict(
                zip(self.bridge.variant.calling.returns, self.bridge(**inputs), strict=True)
            )
            return returned["out"], whole_pattern(returned)


def whole_pattern(returned: Mapping[str, Any]) -> Tensor | None:
    """Return (batch, head, query, key): the pattern over all keys, of a layer that gives it back
    whole or in parts; None where nobody asked."""
    if "pattern" in returned:
        return returned["pattern"]  # type: ignore[no-any-return]
    own, source = returned["pattern_own"], returned["pattern_source"]
    return own if source is None else torch.cat([own, source], dim=-1)


@dataclass(frozen=True)
class Factory:
    """Make subjects of the production bridge; `families` is what `describe` knows, `kernels` how a
    layer chooses its kernel."""

    name: str = "bridge"
    families: Mapping[str, Family | Variant] = field(default_factory=lambda: FAMILIES)
    kernels: KernelSettings = field(default_factory=KernelSettings)

    @property
    def unsupported(self) -> Mapping[str, str]:
        """Return no gap: the bridge has everything, in every family it serves."""
        return {}

    def layer(
        self, module: nn.Module, *, rotary: nn.Module, opted_in: Sequence[OptIn] = ()
    ) -> BridgedLayer:
        """Return a bridge around an attention module."""
        return BridgedLayer(module, rotary, opted_in, self.families, self.kernels)


def fused() -> Factory:
    """Return the bridge that takes torch's fused kernel wherever it can."""
    return Factory("bridge-fused", kernels=KernelSettings("fused"))


def row_blocks() -> Factory:
    """Return the bridge that attends by row blocks wherever it can, of so few rows that a short
    sequence has several."""
    return Factory("bridge-row-blocks", kernels=KernelSettings("row_blocks", rows=4))


def composite() -> Factory:
    """Return the bridge that attends by plain operations of torch alone."""
    return Factory("bridge-composite", kernels=KernelSettings("composite"))
