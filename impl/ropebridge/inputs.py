"""Random inputs for one call of a layer, with the model's own rotary tables."""

from __future__ import annotations

import inspect
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ropebridge.masks import Visibility

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
    mask = additive_mask(pos, bridge.variant.window, padded, dtype) if explicit else None
    return {"hidden_states": hidden_states, "position_embeddings": tables, "attention_mask": mask}


def gets_tables_anyway(bridge: PositionEmbeddingsAttentionBridge) -> bool:
    """Whether a layer that does not rotate is handed tables all the same: where its class could not do without."""
    module: Any = bridge.original_component
    parameters = inspect.signature(type(module).forward).parameters
    given = parameters.get("position_embeddings")
    return bridge.rotary_emb is not None and given is not None and given.default is inspect.Parameter.empty


def floating_parameter(bridge: PositionEmbeddingsAttentionBridge) -> Tensor:
    """A parameter whose device and dtype are the module's own; a quantised module may hold none, then torch's default."""
    assert bridge.original_component is not None
    parameters = chain(*(bridge.submodule(role).parameters() for role in bridge.variant.projections.roles), bridge.original_component.parameters())
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


def additive_mask(pos: int, window: int | None, padded: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, 1, query, key): 0 where a query may see a key, the dtype's lowest number where not, as transformers makes it."""
    real = torch.arange(pos, device=padded.device)[None] >= padded[:, None]
    rows = slice(0, pos)
    visible = Visibility(pos, pos, padded.device, window=window, padding=real).block(rows, rows)
    assert visible is not None
    return torch.zeros((), dtype=dtype, device=padded.device).masked_fill(~visible, torch.finfo(dtype).min)
