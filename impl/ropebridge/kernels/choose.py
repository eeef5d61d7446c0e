"""From rotated query and key to each head's mix of values, by the kernel that the call's demand
chooses."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ropebridge.base import AttentionBridge
from ropebridge.kernels.composite import attend_shown, attend_unseen
from ropebridge.kernels.demand import Demand, Kernel, choose
from ropebridge.kernels.fused import attend_fused
from ropebridge.kernels.parts import attend_by_parts
from ropebridge.kernels.row_blocks import RowBlocks
from ropebridge.kernels.shown import attend_by_blocks, differentiate_by_blocks
from ropebridge.masks import Visibility
from ropebridge.readable import under_transform
from ropebridge.stages.differential import side_by_side


def attend(
    q: Tensor, k: Tensor, v: Tensor, seen: Visibility, wants_pattern: bool, layer: AttentionBridge
) -> tuple[Tensor, Tensor | None]:
    """Return z (batch, pos, head, width), and the pattern (batch, head, query, key) if the call
    wants it or a hook watches it or the scores, else None.

    Args:
        q: (batch, pos, head, d_head). k, v: (batch, kv_head, key, width).
    """
    q = q.transpose(1, 2)  # (batch, head, pos, d_head)
    v = v if layer.variant.differential is None else side_by_side(v)
    demand = demand_of(q, k, v, seen, wants_pattern, layer)
    kernel = choose(demand, layer.kernels).kernel
    if kernel == "parts":
        beside = choose(demand.unshown, layer.kernels).kernel
        make = partial(attend_unshown, beside, q, k, v, seen, layer)
        return attend_by_parts(make, q, k, v, seen, layer), None
    if not demand.shown:
        return attend_unshown(kernel, q, k, v, seen, layer), None
    if kernel == "row_blocks":
        z, pattern = attend_by_blocks(q, k, v, seen, layer)
    elif kernel == "gradients":
        z, pattern = differentiate_by_blocks(q, k, v, seen, layer)
    else:
        z, pattern = attend_shown(q, k, v, seen, layer)
        z = z.transpose(1, 2)
    # what hooks were shown is nobody else's (EDIT-2)
    shown = wants_pattern and layer.hook("hook_pattern").watched
    return z, pattern.clone() if shown else pattern


def attend_unshown(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, seen: Visibility, layer: AttentionBridge
) -> Tensor:
    """Return z (batch, pos, head, width), where nobody wants scores or pattern."""
    if kernel == "fused":
        return attend_fused(q, k, v, seen, layer.variant.scale).transpose(1, 2)
    if kernel == "row_blocks":
        rows = layer.kernels.rows
        return RowBlocks(q, k, seen, layer.effective, layer.sinks, rows).attend(v)
    z = attend_unseen(q, k, v, seen, layer.effective, layer.sinks, layer.dropout)
    return z.transpose(1, 2)


def demand_of(
    q: Tensor, k: Tensor, v: Tensor, seen: Visibility, wants_pattern: bool, layer: AttentionBridge
) -> Demand:
    """Return what a call asks for: query, key and value as the kernels take them."""
    transform = under_transform()
    return demand_of_layer(
        layer,
        seen,
        device=q.device,
        wants_pattern=wants_pattern,
        other_width=v.shape[-1] != layer.variant.d_head,
        derivatives=transform or differentiated(q, k, v, layer.sinks, seen.mask, seen.key_bias),
        transformed=transform or q.is_meta or torch.compiler.is_compiling(),
    )


def demand_of_layer(
    layer: AttentionBridge,
    seen: Visibility,
    *,
    device: torch.device,
    wants_pattern: bool,
    other_width: bool,
    derivatives: bool,
    transformed: bool = False,
) -> Demand:
    """Return what a call of a layer asks for, with the hooks that are in it now; the arguments as
    in `Demand`."""
    points = [layer.hook("hook_attn_scores"), layer.hook("hook_pattern")]
    whole = wants_pattern or any(point.watched_whole for point in points)
    scores, pattern = (point.watched for point in points)
    return Demand(
        shown=whole or scores or pattern,
        scores=scores,
        parts=not whole and (scores or pattern),
        dropout=bool(layer.dropout),
        softcap=layer.effective.softcap is not None,
        sinks=layer.variant.sinks is not None,
        other_width=other_width,
        derivatives=derivatives,
        of_mask=derivatives and differentiated(seen.mask, seen.key_bias),
        of_any_order=derivatives and layer.attends_by == "eager",
        transformed=transformed,
        on_cpu=device.type == "cpu",
        rows=seen.query,
        causal=seen.plain_causal,
    )


def differentiated(*inputs: object) -> bool:
    """Return whether autograd will be asked for the gradient of any of these."""
    return torch.is_grad_enabled() and any(
        isinstance(part, Tensor) and part.requires_grad for part in inputs
    )
