"""Masks of a scenario, in the forms in which they are handed down."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from ropebridge_conformance.zoo.scenarios import SOURCE, MaskForm, Scenario
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_spec import (
    Source,
    Variant,
)


def may_see(mask: Tensor) -> Tensor:
    """Return booleans of a mask's shape: True where an additive one does not forbid."""
    return mask > torch.finfo(mask.dtype).min / 2


def block_mask(mask: Tensor) -> BlockMask:
    """Return the flex mask that says what an additive one (batch, head, query, key) allows."""
    visible, (batch, heads, query, key) = may_see(mask), mask.shape

    def says(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return visible[batch, head, query, key]

    made: BlockMask = create_block_mask(says, batch, heads, query, key, device=str(mask.device))
    return made


def as_float32(mask: Tensor, forbidden: float) -> Tensor:
    """Return an additive mask in float32, with another number where it forbids."""
    return mask.float().masked_fill(~may_see(mask), forbidden)


FAR_DOWN = 10_000.0
"""A bias that other conventions take for forbidden, and this contract does not (MASK-5)."""


def some_lower(mask: Tensor) -> Tensor:
    """Return an additive mask whose numbers at every third key lie FAR_DOWN lower."""
    third = torch.arange(mask.shape[-1], device=mask.device) % 3 == 0
    return torch.where(may_see(mask) & third, mask - FAR_DOWN, mask)


FORMS: Mapping[MaskForm, Callable[[Tensor], Tensor | BlockMask]] = {
    "as it is": lambda mask: mask,
    "booleans": may_see,
    "no head axis": lambda mask: mask[:, 0],
    "booleans without a head axis": lambda mask: may_see(mask)[:, 0],
    "one query for all": lambda mask: mask[:, :, -1:],
    "one row of the batch for all": lambda mask: mask[:1],
    "float32": lambda mask: as_float32(mask, torch.finfo(torch.float32).min),
    "lowest of bfloat16": lambda mask: as_float32(mask, torch.finfo(torch.bfloat16).min),
    "large numbers": some_lower,
    "-inf": lambda mask: mask.masked_fill(~may_see(mask), -torch.inf),
    "BlockMask": block_mask,
    "whole numbers": lambda mask: mask.long(),
    "floats": lambda mask: mask.float(),
}
"""What is made of a mask when it is handed down: of an additive one by head, (batch, head, query,
key), or of a two-axis one of booleans, (batch, key)."""


def mask_of(scenario: Scenario, specimen: Specimen, padded: Tensor) -> Tensor | None:
    """Return what may be seen, (batch, head or 1, query, key) or (batch, key), before it is given
    its form."""
    if scenario.mask == "none":
        return None
    if scenario.mask == "padding":
        return with_other_keys(real_keys(scenario, padded).to(specimen.device), specimen.variant)
    if scenario.mask == "free":
        return free_mask(scenario, specimen)
    at, variant = torch.arange(scenario.pos), specimen.variant
    distance, reach, chunk = (
        at[:, None] - at[None, :],
        variant.window or scenario.pos,
        at // (variant.chunk or scenario.pos),
    )
    earlier = distance >= 0 if variant.causal else torch.ones_like(distance, dtype=torch.bool)
    near = (distance.abs() < reach) & (chunk[:, None] == chunk[None, :])
    visible = (earlier & near)[None] & real_keys(scenario, padded)[:, None, :]
    if not variant.causal:  # or no row would be blind: padding would see what is real
        visible = visible & (at[None, :, None] >= padded[:, None, None])
    visible = visible[:, None].to(specimen.device)
    visible = visible if variant.source is None else beside_source(visible, variant.source)
    if scenario.mask == "boolean":
        return visible
    bias = torch.tensor(scenario.bias, dtype=specimen.dtype, device=visible.device)
    return bias.masked_fill(~visible, torch.finfo(specimen.dtype).min)


def real_keys(scenario: Scenario, padded: Tensor) -> Tensor:
    """Return (batch, key): which positions are no padding; `padded` (batch) counts those before."""
    at, stop = torch.arange(scenario.pos), torch.full_like(padded, scenario.pos)
    stop[-1] -= scenario.right_padding
    return (at >= padded[:, None]) & (at < stop[:, None])


def free_mask(scenario: Scenario, specimen: Specimen) -> Tensor:
    """Return (batch, head, query, key): every other key by lot, and each query's own; a number
    between -1 and 1 where a key may be seen."""
    keys = scenario.pos + (SOURCE if specimen.variant.source else 0)
    draw, shape = (
        torch.Generator().manual_seed(3),
        (scenario.batch, specimen.variant.heads, scenario.pos, keys),
    )
    visible = (torch.rand(shape, generator=draw) < 0.5) | torch.eye(
        scenario.pos, keys, dtype=torch.bool
    )
    numbers = (2 * torch.rand(shape, generator=draw) - 1).to(specimen.device, specimen.dtype)
    return numbers.masked_fill(~visible.to(specimen.device), torch.finfo(specimen.dtype).min)


def with_other_keys(real: Tensor, variant: Variant) -> Tensor:
    """Return (batch, key): which keys are real; those of another sequence are."""
    if variant.source is None:
        return real
    other = torch.ones(real.shape[0], SOURCE, dtype=torch.bool, device=real.device)
    return torch.cat([other, real] if variant.source.place == "before" else [real, other], dim=-1)


def beside_source(visible: Tensor, source: Source) -> Tensor:
    """Return what may be seen of both sequences: of the other all, but for the first position in
    the last of the batch; by padding nothing."""
    other = visible.any(-1, keepdim=True).repeat(1, 1, 1, SOURCE)
    other[-1, ..., 0] = False
    return torch.cat([other, visible] if source.place == "before" else [visible, other], dim=-1)


def own_keys(visible: Tensor, variant: Variant) -> Tensor:
    """Return the part of what may be seen, (..., key), that stands for the layer's own
    positions."""
    if variant.source is None:
        return visible
    return visible[..., SOURCE:] if variant.source.place == "before" else visible[..., :-SOURCE]
