"""Copies of layers to prove them with: in float64, whole, on one device, where nothing fires."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ropebridge.dispatch import PUT_THERE, all_weights_in, is_dispatched
from ropebridge.weights import has_own_weight, is_sharded

if TYPE_CHECKING:
    from ropebridge.bridge import PositionEmbeddingsAttentionBridge


def float64_twin(
    bridge: PositionEmbeddingsAttentionBridge,
) -> tuple[PositionEmbeddingsAttentionBridge, Any]:
    """Return a bridge over a float64 copy of the module, which runs eager, in eval mode and without
    anyone's hooks; the original is not touched."""
    assert bridge.original_component is not None
    module: Any = whole_copy(bridge.original_component).double().eval()
    if hasattr(module, "config"):
        module.config._attn_implementation = "eager"
    twin = type(bridge)(bridge.name, None, bridge.submodules, families=bridge.families)
    twin.set_original_component(module)
    if bridge.rotary_emb is not None and twin.rotary_emb is None:
        # what rotary modules remember of the lengths they were asked for is the model's own
        twin.set_rotary_emb(whole_copy(bridge.rotary_emb))
    return twin, module


def whole_copy(module: nn.Module) -> nn.Module:
    """Return a deep copy in which no torch hook fires: what users hooked is not to see the inputs
    of a proof. It holds on one device what a tensor-parallel model shares out among several:
    weights are gathered, so each rank must ask for it; and what accelerate offloaded is brought in.

    Tensor parallelism and accelerate replace the forward of a submodule on its instance, and a copy
    of that would run the original.
    """
    hooks = (
        table
        for part in module.modules()
        for table in (part._forward_hooks, part._forward_pre_hooks)
    )
    copied: dict[int, Any] = {id(table): OrderedDict() for table in hooks}
    for part in module.modules():
        if is_dispatched(part):
            copied[id(part._hf_hook)] = None  # it may hold the weights of the whole model
    for weight in module.parameters():
        if is_sharded(weight):
            copied[id(weight)] = nn.Parameter(weight.full_tensor())  # type: ignore[attr-defined]
    with all_weights_in(module):
        for part in module.modules():
            if is_quantised(part):
                copied[id(part)] = linear_of_answers(part, like=called_with(part))
        twin = copy.deepcopy(module, copied)
    for part, own in zip(module.modules(), twin.modules(), strict=True):
        if is_quantised(part):
            continue
        sharded = any(is_sharded(weight) for weight in part.parameters(recurse=False))
        for name in PUT_THERE if is_dispatched(part) else ("forward",) if sharded else ():
            vars(own).pop(name, None)
    return twin


def called_with(part: Any) -> Tensor:
    """Return an empty tensor of the dtype and on the device that a quantised map is called with."""
    held = [*part.parameters(), *part.buffers()]
    floating = [tensor for tensor in held if tensor.is_floating_point() and tensor.itemsize > 1]
    dtype = floating[0].dtype if floating else torch.get_default_dtype()
    return torch.empty(0, dtype=dtype, device=held[0].device if held else None)


def is_quantised(part: Any) -> bool:
    """Return whether a module is a linear map that keeps its weight in other numbers than a
    tensor's own, and cannot be made float64."""
    if not (hasattr(part, "in_features") and hasattr(part, "out_features")):
        return False
    if list(part.children()):  # an adapter around a linear map
        return False
    if not isinstance(part, nn.Linear):
        return True
    plain = type(part.weight) in (Tensor, nn.Parameter)
    return not is_sharded(part.weight) and not (plain and has_own_weight(part))


def linear_of_answers(part: Any, like: Tensor) -> nn.Linear:
    """Return a torch.nn.Linear in float64 that gives what a quantised linear map answers.

    Args:
        like: a tensor of the dtype and on the device that the map is called with.
    """
    example = torch.empty(1, part.in_features, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        weight = linear_map(part, like=example).double()  # (in, out)
        bias = part(torch.zeros_like(example)).double()[0]
    linear = nn.Linear(part.in_features, part.out_features, device="meta")
    linear.weight, linear.bias = nn.Parameter(weight.T.contiguous()), nn.Parameter(bias)
    return linear


def linear_map(projection: nn.Module, *, like: Tensor) -> Tensor:
    """Return (in, out): what a projection multiplies by; read off its answers where something is
    wrapped around it (LoRA, quantisation)."""
    if type(projection) is nn.Linear and not is_quantised(projection):
        return projection.weight.T
    width = like.shape[-1]
    answers: Tensor = projection(torch.eye(width, dtype=like.dtype, device=like.device))
    bias: Tensor = projection(torch.zeros(1, width, dtype=like.dtype, device=like.device))
    return answers - bias
