"""Explanation of what each layer of a bridged model would do in a pass: what is watched, by which
kernel it attends, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from ropebridge.bridge import PositionEmbeddingsAttentionBridge
from ropebridge.inputs import device_of
from ropebridge.kernels.choose import demand_of_layer
from ropebridge.kernels.demand import choose
from ropebridge.masks import Visibility


@dataclass(frozen=True)
class LayerExplanation:
    """Hold what one layer would do.

    name: `blocks.{layer}.attn`. watched: the short names of its hook points that are watched.
    kernel: the kernel by which it attends. reason: why.
    """

    name: str
    watched: tuple[str, ...]
    kernel: str
    reason: str


@dataclass(frozen=True)
class Explanation(Sequence[LayerExplanation]):
    """Hold what each layer would do; printed, layers that do the same are one line.

    layers: one explanation for each layer. heading: the pass that was asked about.
    """

    layers: tuple[LayerExplanation, ...]
    heading: str

    def __getitem__(self, number: int) -> LayerExplanation:  # type: ignore[override]
        return self.layers[number]

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        lines = [self.heading]
        for names, layer in alike(self.layers):
            watched = ", ".join(layer.watched) or "nothing"
            lines.append(f"{names}: {watched} watched; {layer.kernel}: {layer.reason}")
        return "\n".join(lines)


def alike(layers: Sequence[LayerExplanation]) -> Iterator[tuple[str, LayerExplanation]]:
    """Yield the names of each run of layers that do the same, and what they do."""

    def what(layer: LayerExplanation) -> tuple[object, ...]:
        return layer.watched, layer.kernel, layer.reason

    for _, group in groupby(layers, what):
        run = list(group)
        names = run[0].name if len(run) == 1 else f"{run[0].name} to {run[-1].name}"
        yield names, run[0]


def explain_layers(
    layers: Sequence[PositionEmbeddingsAttentionBridge], pos: int, padding: bool
) -> Explanation:
    """Return what each layer would do in a pass over so many positions, with the hooks that are in
    it now and gradients as they are now; padding says whether some of them are masked."""
    grad = "with gradients" if torch.is_grad_enabled() else "without gradients"
    heading = f"a pass over {pos} positions, {'' if padding else 'not '}padded, {grad}"
    return Explanation(tuple(explain_layer(layer, pos, padding) for layer in layers), heading)


def explain_layer(
    layer: PositionEmbeddingsAttentionBridge, pos: int, padding: bool
) -> LayerExplanation:
    """Return what one layer would do, as `explain_layers` does."""
    variant, device = layer.variant, device_of(layer)
    # a model that attends by eager hands its layers a mask in every pass, which is read on a CPU
    masked = padding or (layer.attends_by == "eager" and device.type != "cpu")
    real = torch.ones(1, pos, dtype=torch.bool, device=device) if masked else None
    seen = Visibility(
        pos,
        pos,
        device,
        causal=variant.causal,
        window=variant.window,
        chunk=variant.chunk,
        padding=real,
    )
    trained = any(part.requires_grad for part in layer.wrapped.parameters())
    demand = demand_of_layer(
        layer,
        seen,
        device=device,
        wants_pattern=False,
        other_width=variant.d_head_v != variant.d_head or variant.differential is not None,
        derivatives=torch.is_grad_enabled() and trained,
    )
    choice = choose(demand, layer.kernels)
    watched = tuple(name for name, point in layer.hook_points.items() if point.watched)
    return LayerExplanation(layer.name, watched, choice.kernel, choice.reason)
