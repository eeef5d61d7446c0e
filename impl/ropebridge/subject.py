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
from ropebridge.hooks import Direction, HookHandle, HookPoint
from ropebridge.kernels.demand import KernelSettings
from ropebridge_spec import FAMILIES, Family, HookFunction, OptIn, Variant, Watch

Hooks = Sequence[tuple[str | Watch, HookFunction]]


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
            f"blocks.{number_of(module)}.attn",
            getattr(module, "config", None),
            families=families,
            **options,
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
            for watch, fn in map(as_watch, hooks):
                stack.enter_context(add_hook(points, watch, fn))
            self._backward += [
                add_hook(points, watch, fn, "bwd") for watch, fn in map(as_watch, backward_hooks)
            ]
            returned = dict(
                zip(self.bridge.variant.calling.returns, self.bridge(**inputs), strict=True)
            )
            return returned["out"], whole_pattern(returned)


def number_of(module: nn.Module) -> int:
    """Return the number of the layer; 0 where its module has none."""
    own = getattr(module, "layer_idx", None)
    return int(own) if own is not None and own >= 0 else 0


def as_watch(pair: tuple[str | Watch, HookFunction]) -> tuple[Watch, HookFunction]:
    """Return a pair whose name is a watch, of the whole where it was a name alone."""
    wanted, fn = pair
    return (wanted if isinstance(wanted, Watch) else Watch(wanted)), fn


def add_hook(
    points: Mapping[str, HookPoint], watch: Watch, fn: HookFunction, dir: Direction = "fwd"
) -> HookHandle:
    """Hook a function to the hook point that a watch names."""
    return points[str(watch.name)].add_hook(
        fn, dir, heads=watch.heads, query=watch.query, key=watch.key
    )


def whole_pattern(returned: Mapping[str, Any]) -> Tensor | None:
    """Return (batch, head, query, key): the pattern over all keys, of a layer that gives it back
    whole or in parts; None where nobody asked."""
    if "pattern" in returned:
        return returned["pattern"]  # type: ignore[no-any-return]
    own, source = returned["pattern_own"], returned["pattern_source"]
    return own if source is None else torch.cat([own, source], dim=-1)


@dataclass(frozen=True)
class Factory:
    """Make subjects of the production bridge.

    families: what `describe` knows. kernels: how a layer chooses its kernel. unsupported: no gap,
        the bridge has everything, in every family it serves.
    """

    name: str = "bridge"
    families: Mapping[str, Family | Variant] = field(default_factory=lambda: FAMILIES)
    kernels: KernelSettings = field(default_factory=KernelSettings)
    unsupported: Mapping[str, str] = field(default_factory=dict)

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
    whole = {"MEM-2": "plain operations of torch make a part of the whole"}
    return Factory("bridge-composite", kernels=KernelSettings("composite"), unsupported=whole)
