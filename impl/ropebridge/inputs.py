"""Random inputs for one call of a layer, with the model's own rotary tables."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ropebridge.masks import Visibility
from ropebridge_spec import Variant, shared_key

if TYPE_CHECKING:
    from ropebridge.bridge import PositionEmbeddingsAttentionBridge


def random_inputs(
    bridge: PositionEmbeddingsAttentionBridge,
    batch: int,
    pos: int,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    seed: int | None,
    generator: torch.Generator | None,
    left_padding: int,
) -> dict[str, Any]:
    """See `PositionEmbeddingsAttentionBridge.get_random_inputs`."""
    like = floating_parameter(bridge)
    device, dtype = torch.device(device or like.device), dtype or like.dtype
    draw = generator_for(seed, generator)
    shape = (batch, pos, bridge.variant.d_model)
    hidden_states = torch.randn(shape, generator=draw, device=draw.device if draw else device, dtype=torch.float32).to(device, dtype)
    padded = paddings(batch, left_padding, device)
    ids = position_ids(pos, padded) if left_padding else position_ids(pos, padded)[:1]
    tables = bridge.make_tables(hidden_states, ids) if bridge.variant.rotary or gets_tables_anyway(bridge) else None
    explicit = bridge.requires_attention_mask or left_padding
    mask = additive_mask(pos, bridge.variant, padded, dtype) if explicit else None
    return {
        "hidden_states": hidden_states,
        "position_embeddings": tables,
        "attention_mask": mask,
        **placed(bridge.variant, ids),
        **shared(bridge, hidden_states, draw),
    }


def shared(bridge: PositionEmbeddingsAttentionBridge, like: Tensor, draw: torch.Generator | None) -> dict[str, Any]:
    """Where a layer leaves its keys and values, and made-up ones in their place for a layer that is given an earlier one's (KV-1)."""
    variant, (batch, pos, _) = bridge.variant, like.shape
    if variant.kv_given is None:
        return {variant.calling.kv_left: {}} if variant.calling.kv_left else {}
    shapes = [(batch, variant.kv_heads, pos, width) for width in (variant.d_head, variant.d_head_v)]
    pair = tuple(torch.randn(shape, generator=draw, device=draw.device if draw else like.device).to(like.device, like.dtype) for shape in shapes)
    return {variant.kv_given: {shared_key(bridge.original_component): pair}}


def placed(variant: Variant, ids: Tensor) -> dict[str, Tensor]:
    """What a layer that needs them is told of its positions: the positions, or made-up temperatures (SCORE-4)."""
    if variant.calling.tables == "own":
        return {"position_ids": ids}
    if variant.temperature is None or variant.temperature.counted:
        return {}
    if variant.temperature.given is None:
        return {"position_ids": ids}
    return {variant.temperature.given: 1.0 + 0.1 * ids[:, None, :, None].float()}


def gets_tables_anyway(bridge: PositionEmbeddingsAttentionBridge) -> bool:
    """Whether a layer that does not rotate is handed tables all the same."""
    return bridge.rotary_emb is not None and bridge.variant.calling.tables == "all"


def floating_parameter(bridge: PositionEmbeddingsAttentionBridge) -> Tensor:
    """A parameter whose device and dtype are the module's own; a quantised module may hold none, then torch's default."""
    assert bridge.original_component is not None
    parameters = chain(*(bridge.submodule(role).parameters() for role in bridge.variant.roles), bridge.original_component.parameters())
    return next((parameter for parameter in parameters if parameter.is_floating_point()), torch.empty(0))


def generator_for(seed: int | None, generator: torch.Generator | None) -> torch.Generator | None:
    """The generator that was given or seeded; None draws from torch's global one."""
    if seed is not None and generator is not None:
        raise ValueError("get_random_inputs was given a seed and a generator; give one of them")
    return torch.Generator().manual_seed(seed) if seed is not None else generator


def paddings(batch: int, left_padding: int, device: torch.device) -> Tensor:
    """(batch,) padded positions: none for the first, `left_padding` for the last."""
    return torch.linspace(0, left_padding, batch, device=device).round().long() if batch > 1 else torch.full((1,), left_padding, device=device)


def position_ids(pos: int, padded: Tensor) -> Tensor:
    """(batch, pos): positions count from the first real token; padding has position 0."""
    return (torch.arange(pos, device=padded.device)[None] - padded[:, None]).clamp(min=0)


def additive_mask(pos: int, variant: Variant, padded: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, 1, query, key): 0 where a query may see a key, the dtype's lowest number where not, as transformers makes it."""
    real = torch.arange(pos, device=padded.device)[None] >= padded[:, None]
    rows = slice(0, pos)
    visible = Visibility(pos, pos, padded.device, 0, 0, variant.causal, variant.window, variant.chunk, padding=real).block(rows, rows)
    assert visible is not None
    return torch.zeros((), dtype=dtype, device=padded.device).masked_fill(~visible, torch.finfo(dtype).min)
