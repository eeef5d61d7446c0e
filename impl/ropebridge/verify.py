"""Proof, before a bridge goes into force, that it computes what the module it wraps computes.

Both run in float64, on a copy, where a missing softcap or a wrong pairing stands out by orders of magnitude. Hugging
Face's norms and softmax round to float32 whatever they are given, so the two are held to bounds of float32.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ropebridge import kernels
from ropebridge_spec import AttachError, RopebridgeError, VerificationError, bounds

if TYPE_CHECKING:
    from ropebridge.bridge import PositionEmbeddingsAttentionBridge

BATCH, POS, LEFT_PADDING = 2, 12, 2
PLAIN = (bool, int, float, str, type(None))
NORM_ROUNDINGS = 64
"""Roundings to float32 that query and key may carry from the module's norms and tables."""


def verify_layers(bridges: Sequence[PositionEmbeddingsAttentionBridge]) -> None:
    """Verify one bridge of each kind: of one class, one variant, and one set of switches on the module.

    Raises:
        AttachError: a layer has no numbers to compute with: it is on the meta device.
        VerificationError: a bridge is further from its module than float32 rounding explains, or cannot be compared.
    """
    distinct = {kind_of(bridge): bridge for bridge in reversed(bridges)}
    for bridge in distinct.values():
        refuse_meta(bridge)
        verify_layer(bridge)


def refuse_meta(bridge: PositionEmbeddingsAttentionBridge) -> None:
    """Refuse to prove what holds no numbers."""
    parts = [module for module in (bridge.original_component, bridge.rotary_emb) if module is not None]
    empty = [name for part in parts for name, tensor in chain(part.named_parameters(), part.named_buffers()) if tensor.is_meta]
    if empty:
        raise AttachError(
            f"{bridge.name!r} is on the meta device (its {empty[0]} holds no numbers), and cannot be verified there\n"
            f"  load the model's weights first, or pass verify=False to go on unproved"
        )


def kind_of(bridge: PositionEmbeddingsAttentionBridge) -> tuple[object, ...]:
    """What tells a layer from one whose proof would do for it.

    The module's own plain attributes are part of it: a switch that the variant does not know may be the very fault.
    """
    module = bridge.original_component
    switches = tuple((name, value) for name, value in sorted(vars(module).items()) if isinstance(value, PLAIN) and name != "layer_idx")
    return (type(module), bridge.variant, switches)


@torch.no_grad()
def verify_layer(bridge: PositionEmbeddingsAttentionBridge) -> None:
    """Compare pattern and output of a bridge with those of its module's own eager forward, on rows that see a key."""
    twin, module = float64_twin(bridge)
    inputs = twin.get_random_inputs(BATCH, POS, seed=0, left_padding=LEFT_PADDING)
    try:
        wanted_out, wanted_pattern = type(module).forward(module, **inputs, past_key_values=None)
    except RopebridgeError:
        raise
    except Exception as error:
        raise VerificationError(f"{bridge.name!r}: {type(module).__name__} failed on random inputs: {error}\n  pass verify=False to go on unproved") from error
    kept, out = record(twin, inputs)
    pattern_bound, out_bound = float32_bounds(twin, kept)
    live = kept["hook_attn_scores"].amax(-1) > -torch.inf
    refuse_mismatch(bridge, "pattern", (kept["hook_pattern"] - wanted_pattern)[live], pattern_bound[live])
    rows = live.all(1)
    refuse_mismatch(bridge, "output", (out - wanted_out)[rows], out_bound[rows])


def float64_twin(bridge: PositionEmbeddingsAttentionBridge) -> tuple[PositionEmbeddingsAttentionBridge, nn.Module]:
    """A bridge over a float64 copy of the module, which runs eager, in eval mode and without anyone's hooks; the original is not touched."""
    assert bridge.original_component is not None
    module: Any = copy_without_hooks(bridge.original_component).double().eval()
    if hasattr(module, "config"):
        module.config._attn_implementation = "eager"
    twin = type(bridge)(bridge.name, None, bridge.submodules, families=bridge.families)
    twin.set_original_component(module)
    if bridge.rotary_emb is not None:
        twin.set_rotary_emb(bridge.rotary_emb)
    return twin, module


def copy_without_hooks(module: nn.Module) -> nn.Module:
    """A deep copy in which no torch hook fires: what users hooked is not to see the inputs of a proof."""
    tables = (table for part in module.modules() for table in (part._forward_hooks, part._forward_pre_hooks))
    return copy.deepcopy(module, {id(table): OrderedDict() for table in tables})


def record(twin: PositionEmbeddingsAttentionBridge, inputs: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
    """Run a bridge once and keep what every hook point held."""
    kept: dict[str, Tensor] = {}
    for name, point in twin.hook_points.items():
        point.add_hook(lambda tensor, hook, name=name: kept.__setitem__(name, tensor))
    out, _ = twin(**inputs)
    return kept, out


def float32_bounds(twin: PositionEmbeddingsAttentionBridge, kept: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """How far pattern and output may be off where scores, softmax and values round to float32."""
    variant, dtype = twin.variant, "float32"
    q, k, v = (kept[name].abs().transpose(1, 2) for name in ("hook_rot_q", "hook_rot_k", "hook_v"))
    scores, pattern = kept["hook_attn_scores"], kept["hook_pattern"]
    magnitude = kernels.grouped_product(q * abs(variant.scale), k.transpose(2, 3))
    delta = (magnitude * bounds.growth(NORM_ROUNDINGS, dtype)).amax(-1, keepdim=True)
    below = (scores.amax(-1, keepdim=True) - scores).nan_to_num(nan=0.0, posinf=0.0)
    pattern_bound = bounds.softmax(pattern, below, keys=POS + 1, dtype=dtype) + pattern * (2 * delta).expm1()
    z_bound = bounds.fused(kept["hook_z"].transpose(1, 2), kernels.mix(pattern, v), delta, keys=POS + 1, dtype=dtype)
    out_bound = z_bound.transpose(1, 2).flatten(-2) @ linear_map(twin.submodule("o"), like=kept["hook_z"].flatten(-2)).abs()
    return pattern_bound, out_bound + bounds.UNIT[dtype] * kept["hook_out"].abs()


def linear_map(projection: nn.Module, *, like: Tensor) -> Tensor:
    """(in, out): what a projection multiplies by; read off its answers where something is wrapped around it (LoRA, quantisation)."""
    if type(projection) is nn.Linear:
        return projection.weight.T
    width = like.shape[-1]
    answers: Tensor = projection(torch.eye(width, dtype=like.dtype, device=like.device))
    bias: Tensor = projection(torch.zeros(1, width, dtype=like.dtype, device=like.device))
    return answers - bias


def refuse_mismatch(bridge: PositionEmbeddingsAttentionBridge, what: str, difference: Tensor, bound: Tensor) -> None:
    """Raise if any difference exceeds its bound; a NaN does."""
    worst = float((difference.abs() / bound).where(difference != 0, 0.0).max())  # no difference is none, where the bound is 0 too
    if not worst <= 1.0:
        kind = type(bridge.original_component).__name__
        raise VerificationError(
            f"{bridge.name!r} does not reproduce the {kind} it wraps: its {what} is off by {worst:.3g} times the bound\n"
            f"  it was described as {bridge.variant}\n"
            f"  the model was left as it was; describe {kind} by its own entry: attach(model, families={{**FAMILIES, {kind!r}: ...}})"
        )
