"""Random inputs for one call of a layer, with the model's own rotary tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ropebridge.dispatch import runs_on
from ropebridge.masks import Visibility
from ropebridge_spec import Variant, shared_key


class Layer(Protocol):
    """Name what random inputs are made by: a bridge with a rotary module."""

    original_component: nn.Module | None
    rotary_emb: nn.Module | None
    requires_attention_mask: bool

    @property
    def variant(self) -> Variant:
        """Return what the layer computes."""

    def make_tables(
        self, hidden_states: Tensor, position_ids: Tensor, *, copied: bool = False
    ) -> Any:
        """Return the tables of the model's own rotary module, or of a copy of it."""

    def submodule(self, role: str) -> nn.Module:
        """Return the module in a role."""


def random_inputs(
    bridge: Layer,
    batch: int,
    pos: int,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    seed: int | None,
    generator: torch.Generator | None,
    left_padding: int,
    first: int = 0,
) -> dict[str, Any]:
    """Return what `PositionEmbeddingsAttentionBridge.get_random_inputs` does, for positions that
    begin with `first`."""
    like = floating_parameter(bridge)
    device, dtype = torch.device(device or device_of(bridge)), dtype or like.dtype
    draw = generator_for(seed, generator)
    shape = (batch, pos, bridge.variant.d_model)
    like = torch.empty(0, device=device, dtype=dtype)
    hidden_states = draw_like(like, shape, draw)
    padded = paddings(batch, left_padding, device)
    ids = first + (position_ids(pos, padded) if left_padding else position_ids(pos, padded)[:1])
    source, kv_ids = (
        other_sequence(bridge.variant, hidden_states, draw),
        with_source(bridge.variant, ids),
    )
    tables = (
        bridge.make_tables(hidden_states, kv_ids, copied=True)
        if bridge.variant.rotary or gets_tables_anyway(bridge)
        else None
    )
    explicit = bridge.requires_attention_mask or left_padding
    mask = additive_mask(pos, bridge.variant, padded, dtype) if explicit else None
    return {
        "hidden_states": hidden_states,
        "position_embeddings": tables,
        bridge.variant.calling.tables_in: tables,
        "attention_mask": mask,
        bridge.variant.calling.mask_in: mask,
        **source,
        **position_arguments(bridge.variant, ids),
        **shared_kv(bridge, hidden_states, draw),
        **random_added_value(bridge.variant, hidden_states, draw),
        **layer_argument(bridge),
        **random_picks(bridge.variant, hidden_states),
    }


def draw_like(like: Tensor, shape: Sequence[int], draw: torch.Generator | None) -> Tensor:
    """Return standard normal numbers of a shape, in the dtype and on the device of a tensor; drawn
    in float32, where the generator is."""
    device = draw.device if draw else like.device
    numbers = torch.randn(shape, generator=draw, device=device, dtype=torch.float32)
    return numbers.to(like.device, like.dtype)


def shared_kv(bridge: Layer, like: Tensor, draw: torch.Generator | None) -> dict[str, Any]:
    """Return where a layer leaves its keys and values, and made-up ones in their place for a layer
    that is given an earlier one's (KV-1)."""
    variant, (batch, pos, _) = bridge.variant, like.shape
    if variant.shared_kv_argument is None:
        return {variant.calling.kept_kv_argument: {}} if variant.calling.kept_kv_argument else {}
    shapes = [(batch, variant.kv_heads, pos, width) for width in (variant.d_head, variant.d_head_v)]
    pair = tuple(draw_like(like, shape, draw) for shape in shapes)
    return {variant.shared_kv_argument: {shared_key(bridge.original_component): pair}}


def random_added_value(
    variant: Variant, like: Tensor, draw: torch.Generator | None
) -> dict[str, Tensor]:
    """Return made-up numbers for a layer that is handed what is added to its value (PROJ-1)."""
    if variant.added_value is None:
        return {}
    shape = (*like.shape[:2], variant.kv_heads * variant.d_head_v)
    return {variant.added_value: draw_like(like, shape, draw)}


def layer_argument(bridge: Layer) -> dict[str, int]:
    """Return the argument that names a layer, for a module that several layers share: one of those
    whose adapters it holds; nothing for other modules."""
    module: Any = bridge.original_component
    if bridge.variant.calling.layer is None:
        return {}
    beside = bridge.variant.projections.beside
    for layer, own in module.layer_dic.items():
        if beside is None or list(getattr(module, beside.format("q"))[own].parameters()):
            return {bridge.variant.calling.layer: layer}
    return {}


SOURCE = 3
"""How many positions another sequence has."""


def other_sequence(
    variant: Variant, like: Tensor, draw: torch.Generator | None
) -> dict[str, Tensor]:
    """Return made-up states of another sequence that keys and values are made of too (KV-2)."""
    if variant.source is None:
        return {}
    shape = (like.shape[0], SOURCE, variant.d_model)
    return {variant.source.argument: draw_like(like, shape, draw)}


def with_source(variant: Variant, ids: Tensor) -> Tensor:
    """Return (1, source + pos): position ids after those of another sequence that is rotated
    too."""
    if variant.source is None or variant.source.place == "after":
        return ids
    return torch.cat(
        [torch.arange(SOURCE, device=ids.device).expand(ids.shape[0], -1), ids + SOURCE], dim=1
    )


def random_picks(variant: Variant, like: Tensor) -> dict[str, Tensor]:
    """Return made-up picks for a layer that is handed an earlier one's (SEL-1): of each query its
    own position, and the one half way to it."""
    if variant.selector is None or variant.selector.picks_argument is None:
        return {}
    at = torch.arange(like.shape[1], device=like.device)
    return {
        variant.selector.picks_argument: torch.stack([at, at // 2], dim=-1).expand(
            like.shape[0], -1, -1
        )
    }


def position_arguments(variant: Variant, ids: Tensor) -> dict[str, Tensor]:
    """Return what a layer that needs them is told of its positions: the positions, or made-up
    temperatures (SCORE-4)."""
    if variant.calling.tables == "own" or variant.selector is not None:
        return {"position_ids": ids}
    if variant.temperature is None or variant.temperature.counted:
        return {}
    if variant.temperature.factor_argument is None:
        return {"position_ids": ids}
    return {variant.temperature.factor_argument: 1.0 + 0.1 * ids[:, None, :, None].float()}


def gets_tables_anyway(bridge: Layer) -> bool:
    """Return whether a layer that does not rotate is handed tables all the same."""
    return bridge.rotary_emb is not None and bridge.variant.calling.tables == "all"


def floating_parameter(bridge: Layer) -> Tensor:
    """Return a parameter whose device and dtype are the module's own; a quantised module may hold
    none, then torch's default."""
    assert bridge.original_component is not None
    parameters = chain(
        *(bridge.submodule(role).parameters() for role in bridge.variant.roles),
        bridge.original_component.parameters(),
    )
    return next(
        (parameter for parameter in parameters if parameter.is_floating_point()), torch.empty(0)
    )


def device_of(bridge: Layer) -> torch.device:
    """Return the device that the layer runs on, wherever accelerate keeps its weights."""
    parts = [bridge.submodule(role) for role in bridge.variant.roles]
    offloaded = [device for part in parts if (device := runs_on(part)) is not None]
    return offloaded[0] if offloaded else floating_parameter(bridge).device


def generator_for(seed: int | None, generator: torch.Generator | None) -> torch.Generator | None:
    """Return the generator that was given or seeded; None draws from torch's global one."""
    if seed is not None and generator is not None:
        raise ValueError("get_random_inputs was given a seed and a generator; give one of them")
    return torch.Generator().manual_seed(seed) if seed is not None else generator


def paddings(batch: int, left_padding: int, device: torch.device) -> Tensor:
    """Return (batch,) padded positions: none for the first, `left_padding` for the last."""
    return (
        torch.linspace(0, left_padding, batch, device=device).round().long()
        if batch > 1
        else torch.full((1,), left_padding, device=device)
    )


def position_ids(pos: int, padded: Tensor) -> Tensor:
    """Return (batch, pos): positions count from the first real token; padding has position 0."""
    return (torch.arange(pos, device=padded.device)[None] - padded[:, None]).clamp(min=0)


def additive_mask(pos: int, variant: Variant, padded: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (batch, 1, query, key): 0 where a query may see a key, the dtype's lowest number where
    not, as transformers makes it."""
    real = torch.arange(pos, device=padded.device)[None] >= padded[:, None]
    rows = slice(0, pos)
    visible = Visibility(
        pos, pos, padded.device, 0, 0, variant.causal, variant.window, variant.chunk, padding=real
    ).block(rows, rows)
    assert visible is not None
    if variant.source is not None:
        visible = F.pad(
            visible, (SOURCE, 0) if variant.source.place == "before" else (0, SOURCE), value=True
        )
    return torch.zeros((), dtype=dtype, device=padded.device).masked_fill(
        ~visible, torch.finfo(dtype).min
    )
