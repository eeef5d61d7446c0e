"""Layer's own selector of keys (clause SEL-1): called as its class calls it, and what it gives read
as booleans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ropebridge.base import AttentionBridge
from ropebridge.masks import Visibility
from ropebridge_spec import ContractError, Selector, selector_arguments


@dataclass(frozen=True)
class SelectorInputs:
    """Hold what a selector may ask for.

    hidden_states: (batch, pos, d_model). q_latent: (batch, pos, q_rank), or None. tables: (cos,
        sin), or None.
    position_ids: (batch or 1, pos), with an axis before it where the model rotates by several.
        cache: the model's, or None.
    """

    hidden_states: Tensor
    q_latent: Tensor | None
    tables: tuple[Tensor, Tensor] | None
    position_ids: Tensor
    cache: Any


def pick_keys(
    inputs: SelectorInputs | None, picks: Tensor | None, seen: Visibility, layer: AttentionBridge
) -> Tensor | None:
    """Return what the layer's own selector picks, or an earlier layer's did and handed down, in the
    shape that `Selector.picks` says; None in a family that selects no keys.

    Raises:
        ContractError: a layer that has no selector was handed no picks.
    """
    selector = layer.variant.selector
    if selector is None or inputs is None:
        return picks
    if selector.picks_argument is None:
        return call_selector(getattr(layer.wrapped, selector.module), selector, inputs, seen)
    if picks is None:
        raise ContractError(
            f"{layer.name!r} was given no {selector.picks_argument}, and picks no keys of its own;"
            " clause SEL-1 requires an earlier layer's"
        )
    return picks


def among_picks(
    seen: Visibility, picks: Tensor | None, heads: int, layer: AttentionBridge
) -> Visibility:
    """Return what may be seen, of the keys that were picked."""
    selector = layer.variant.selector
    if selector is None or picks is None:
        return seen
    return seen._replace(picked=allowed(picks, selector, heads, seen.key))


def call_selector(
    module: nn.Module, selector: Selector, inputs: SelectorInputs, seen: Visibility
) -> Tensor:
    """Return what a selector gives, in its family's form; each argument under the name that
    transformers has for it."""
    batch, ids = inputs.hidden_states.shape[0], inputs.position_ids
    given = {
        **vars(inputs),
        "position_ids": ids.expand(*ids.shape[:-2], batch, -1),  # ([axis,] batch, pos)
        "mask": mask_for(selector, seen, batch),
    }
    picks: Tensor = module(**selector_arguments(module, given))
    return picks


def mask_for(selector: Selector, seen: Visibility, batch: int) -> Tensor:
    """Return what may be seen, (batch, query, key) for a selector of keys, else (batch, 1, query,
    key): booleans, or the bias that the mask is."""
    mask = seen.block(slice(0, seen.query), slice(0, seen.key))
    if mask is None:
        mask = torch.ones(1, 1, seen.query, seen.key, dtype=torch.bool, device=seen.device)
    mask = mask[:, :1].expand(batch, 1, seen.query, seen.key)
    return mask[:, 0] if selector.picks == "keys" else mask


def allowed(picks: Tensor, selector: Selector, heads: int, keys: int) -> Tensor:
    """Return (batch, head or 1, query, key): whether a key was picked for a query."""
    # additive in transformers 5.18 to 5.20, where the mask that it is given is
    if selector.picks == "mask":
        return picks if picks.dtype == torch.bool else picks > torch.finfo(picks.dtype).min / 2
    if selector.picks == "keys":
        none = torch.zeros(*picks.shape[:-1], keys, dtype=torch.bool, device=picks.device)
        return none.scatter(-1, picks.long(), True).unsqueeze(1)
    blocks = -(-keys // selector.block)
    none = torch.zeros(*picks.shape[:-1], blocks + 1, dtype=torch.bool, device=picks.device)
    chosen = none.scatter(-1, picks.masked_fill(picks < 0, blocks), True)[..., :blocks]
    by_key = chosen.repeat_interleave(selector.block, dim=-1)[..., :keys]
    return by_key.repeat_interleave(heads // picks.shape[1], dim=1)
