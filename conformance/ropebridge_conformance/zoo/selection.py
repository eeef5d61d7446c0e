"""Selectors of keys, pinned (clause SEL-1): in the zoo a family's selector picks by lot, and keeps
what it was given.

What a selector picks jumps with the last bit of what it is given, and no bound could be put on
that. Pinned, it picks the same keys for every witness; that it is called, with what, and that its
picks are kept to, is judged.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ropebridge_spec import Selector, Variant, selector_arguments

PICKED = 4
"""How many keys, or blocks of keys, are picked for a query."""
BLOCK_HEADS = 2
"""How many heads a selector of blocks has."""
LOTS = torch.rand(16, BLOCK_HEADS, 64, 64, generator=torch.Generator().manual_seed(0))
"""A lot for every batch row, selector head, query position and key."""


def pin(module: Any, variant: Variant) -> None:
    """Let a layer's selector, if it has one, pick by lot; `seen` on it holds what it was last
    given."""
    selector, of_keys = variant.selector, variant.calling.tables_of == "keys"
    if selector is None or selector.picks_argument is not None:
        return
    own = getattr(module, selector.module)
    signature = inspect.signature(own.forward)

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        own.seen = tree_map(detached, signature.bind(*args, **kwargs).arguments)
        return numbers(selector, *extent(own.seen, of_keys))

    forward.__signature__ = signature  # type: ignore[attr-defined]
    own.forward = forward


def detached(leaf: Any) -> Any:
    """Return a tensor outside the graph of gradients, so that the module that holds it can be
    copied; anything else as it is."""
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def extent(given: Mapping[str, Any], of_keys: bool) -> tuple[Tensor, int]:
    """Return what may be seen (batch, 1, query, key), as far as the selector is told, and the
    position of the first query: told, or else that of the last keys that there are tables for
    (`of_keys`), or of all."""
    x, mask, ids = given["hidden_states"], given.get("attention_mask"), given.get("position_ids")
    # the first row of a batch is never padded
    first = None if ids is None else int(ids.flatten()[0])
    if mask is None:
        keys = (first or 0) + x.shape[1]
        mask = torch.ones(x.shape[0], x.shape[1], keys, dtype=torch.bool, device=x.device)
    visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    visible = visible if visible.ndim == 4 else visible.unsqueeze(1)
    if first is None:
        keys = given["position_embeddings"][0].shape[-2] if of_keys else visible.shape[-1]
        first = keys - x.shape[1]
    return visible.expand(x.shape[0], -1, -1, -1), first


def numbers(selector: Selector, visible: Tensor, first: int) -> Tensor:
    """Return the picks, in the family's own form: the best lots of what may be seen."""
    batch, _, query, key = visible.shape
    rows, keys = (torch.arange(count) % LOTS.shape[-1] for count in (first + query, key))
    lots = LOTS[:batch, :, rows[first:]][..., keys].to(visible.device)
    if selector.picks == "blocks":
        blocks = -(-key // selector.block)
        own = torch.arange(first, first + query, device=visible.device) // selector.block
        lots = lots[..., :blocks].scatter(
            -1, own[None, None, :, None].expand(batch, BLOCK_HEADS, query, 1), 2.0
        )
        later = torch.arange(blocks, device=visible.device) > own[:, None]
        best = lots.masked_fill(later, -1.0).topk(min(PICKED // 2, blocks), dim=-1).indices
        return best.masked_fill(best > own[:, None], -1)
    best = (
        lots[:, 0, :, :key]
        .masked_fill(~visible[:, 0], -1.0)
        .topk(min(PICKED, key), dim=-1)
        .indices.int()
    )
    return best if selector.picks == "keys" else as_mask(best, key).unsqueeze(1)


def as_mask(numbers: Tensor, keys: int) -> Tensor:
    """Return booleans (..., keys), True at the numbers (..., n)."""
    return (numbers.unsqueeze(-1) == torch.arange(keys, device=numbers.device)).any(-2)


def picked(picks: Tensor, selector: Selector, variant: Variant, keys: int) -> Tensor:
    """Return (batch, head or 1, query, key): whether a key was picked for a query."""
    if selector.picks == "mask":
        return picks
    if selector.picks == "keys":
        return as_mask(picks, keys).unsqueeze(1)
    of_key = torch.arange(keys, device=picks.device) // selector.block
    return as_mask(picks, int(of_key[-1]) + 1)[..., of_key].repeat_interleave(
        variant.heads // picks.shape[1], dim=1
    )


def picked_for(bias: Tensor, variant: Variant, batch: int, first: int) -> Tensor | None:
    """Return (batch, head or 1, query, key): what the pinned selector of a layer picks, given what
    the mask allows; None where it has no selector."""
    if variant.selector is None:
        return None
    visible = (bias > -torch.inf)[:, :1].expand(batch, -1, -1, -1)
    return picked(
        numbers(variant.selector, visible, first), variant.selector, variant, bias.shape[-1]
    )


def call_selector(
    module: Any, selector: Selector, given: Mapping[str, Any], bias: Tensor
) -> Tensor:
    """Return what a layer's own selector makes of hook_in, hook_q_latent, the tables, the mask and
    the positions."""
    x = given["hidden_states"]
    visible = (bias > -torch.inf)[:, :1].expand(x.shape[0], -1, -1, -1)
    offered = {**given, "mask": visible[:, 0] if selector.picks == "keys" else visible}
    own = getattr(module, selector.module)
    picks: Tensor = own(**selector_arguments(own, offered))
    return picks
