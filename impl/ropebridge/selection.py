"""Layer's own selector of keys (clause SEL-1): called as its class calls it, and what it gives read
as booleans."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ropebridge.masks import Visibility
from ropebridge_spec import ContractError, Selector


@dataclass(frozen=True)
class Given:
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


def handed_down(name: str, argument: str, picks: Tensor | None) -> Tensor:
    """Return an earlier layer's picks, without which a layer that has no selector cannot go on
    (SEL-1)."""
    if picks is None:
        raise ContractError(
            f"{name!r} was given no {argument}, and picks no keys of its own; clause SEL-1 requires"
            " an earlier layer's"
        )
    return picks


def pick(module: nn.Module, selector: Selector, given: Given, seen: Visibility) -> Tensor:
    """Return what the selector gives, in its family's form; each argument under the name that
    transformers has for it."""
    x = given.hidden_states
    # position_ids: ([axis,] batch, pos)
    arguments = {
        "hidden_states": x,
        "q_resid": given.q_latent,
        "position_embeddings": given.tables,
        "attention_mask": mask_for(selector, seen, x.shape[0]),
        "position_ids": given.position_ids.expand(*given.position_ids.shape[:-2], x.shape[0], -1),
        "past_key_values": given.cache,
        "cache": given.cache,
    }
    wanted = inspect.signature(module.forward).parameters
    unknown = [name for name in wanted if name not in arguments]
    if unknown:
        raise ContractError(
            f"the selector {type(module).__name__} takes {', '.join(unknown)}, and what they mean"
            " is not known (clause ARG-1)"
        )
    picks: Tensor = module(**{name: value for name, value in arguments.items() if name in wanted})
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
