"""Proof, before a bridge goes into force, that it computes what the module it wraps computes.

Both run in float64, on a copy, where a missing softcap or a wrong pairing stands out by orders of
magnitude. Hugging Face's norms and softmax round to float32 whatever they are given, so the two are
held to bounds of float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ropebridge.dispatch import all_weights_in
from ropebridge.heads import Heads
from ropebridge.products import grouped_product
from ropebridge.proof import ProofCall, cached_tensors, kv_for_later_layers, proof_calls
from ropebridge.stages.differential import side_by_side, strengths, subtract
from ropebridge.stages.mix import mix_values
from ropebridge.stages.norm import affine
from ropebridge.switches import PLAIN_TYPES
from ropebridge.twin import float64_twin, linear_map
from ropebridge_spec import (
    HOOK_BY_NAME,
    AttachError,
    RopebridgeError,
    Variant,
    VerificationError,
    attention_inputs,
    bounds,
)

if TYPE_CHECKING:
    from ropebridge.bridge import PositionEmbeddingsAttentionBridge
    from ropebridge.calls import Call

NORM_ROUNDINGS = 64
"""Roundings to float32 that query and key may carry from the module's norms and tables."""


def verify_layers(bridges: Sequence[PositionEmbeddingsAttentionBridge]) -> None:
    """Verify one bridge of each kind: of one class, one variant, and one set of switches on the
    module.

    Raises:
        AttachError: a layer has no numbers to compute with: it is on the meta device.
        VerificationError: a bridge is further from its module than float32 rounding explains, or
            cannot be compared.
    """
    distinct = {kind_of(bridge): bridge for bridge in reversed(bridges)}
    for bridge in distinct.values():
        refuse_meta(bridge)
        verify_layer(bridge)


def refuse_meta(bridge: PositionEmbeddingsAttentionBridge) -> None:
    """Refuse to prove what holds no numbers."""
    parts = [
        module for module in (bridge.original_component, bridge.rotary_emb) if module is not None
    ]
    empty = []
    for part in parts:
        with all_weights_in(part):
            named = chain(part.named_parameters(), part.named_buffers())
            empty += [name for name, tensor in named if tensor.is_meta]
    if empty:
        raise AttachError(
            f"{bridge.name!r} is on the meta device (its {empty[0]} holds no numbers), and cannot"
            " be verified there\n  load the model's weights first, or pass verify=False to go on"
            " unproved"
        )


def kind_of(bridge: PositionEmbeddingsAttentionBridge) -> tuple[object, ...]:
    """Return the key under which layers share one verification: class, variant, plain attributes.

    The module's own plain attributes are part of it: a switch that the variant does not know may be
    the very fault.
    """
    module = bridge.original_component
    switches = tuple(
        (name, value)
        for name, value in sorted(vars(module).items())
        if isinstance(value, PLAIN_TYPES) and name != "layer_idx"
    )
    return (type(module), bridge.variant, switches)


@torch.no_grad()
def verify_layer(bridge: PositionEmbeddingsAttentionBridge) -> None:
    """Compare a bridge with its module's own forward, on rows that see a key: pattern, output, and
    what the cache then holds.

    Both are called as the model would call the class: all positions at once, and a prefill, one
    step and three steps with a cache (CACHE-1); at positions and after keys beyond every length
    that the module or its config knows; and by the implementation that the model attends by.
    """
    twin, module = proof_copy(bridge)
    for call in proof_calls(twin, getattr(bridge.config_in_force, "_attn_implementation", None)):
        if hasattr(module, "config"):
            module.config._attn_implementation = call.implementation
        try:
            returned = dict(
                zip(
                    twin.variant.calling.returns,
                    type(module).forward(module, **call.module_inputs),
                    strict=True,
                )
            )
        except RopebridgeError:
            raise
        except Exception as error:
            if call.optional:
                continue
            raise VerificationError(
                f"{bridge.name!r}: {type(module).__name__} failed on random inputs: {error}\n  pass"
                " verify=False to go on unproved"
            ) from error
        compare_outputs(bridge, twin, returned, call)
        compare_caches(bridge, twin, call)


def proof_copy(
    bridge: PositionEmbeddingsAttentionBridge,
) -> tuple[PositionEmbeddingsAttentionBridge, Any]:
    """Return the copies that a proof runs: the bridge's and the module's.

    Raises:
        VerificationError: the layer cannot be copied, or not into float64.
    """
    try:
        return float64_twin(bridge)
    except RopebridgeError:
        raise
    except Exception as error:
        raise VerificationError(
            f"{bridge.name!r}: {type(bridge.original_component).__name__} cannot be copied into"
            f" float64, in which it would be proved: {type(error).__name__}: {error}\n  pass"
            " verify=False to go on unproved"
        ) from error


def compare_outputs(
    bridge: PositionEmbeddingsAttentionBridge,
    twin: PositionEmbeddingsAttentionBridge,
    returned: Mapping[str, Any],
    call: ProofCall,
) -> None:
    """Refuse a bridge whose pattern or output, in one call of a proof, is not the module's."""
    kept, out = record(twin, call.bridge_inputs)
    wanted_pattern = pattern_of(returned)
    pattern_bound, out_bound = float32_bounds(twin, kept, call.last)
    live = kept["hook_attn_scores"].amax(-1) > -torch.inf
    got_pattern = kept["hook_pattern"]
    # some modules return the pattern before the sink took its share; z shows that share
    if twin.variant.sinks is not None and wanted_pattern is not None:
        got_pattern, wanted_pattern, pattern_bound = (
            without_sink(got_pattern),
            without_sink(wanted_pattern),
            2 * pattern_bound / row_sum(got_pattern),
        )
    where = "" if call.caches is None else " with a cache"
    if wanted_pattern is not None:
        refuse_mismatch(
            bridge, f"pattern{where}", (got_pattern - wanted_pattern)[live], pattern_bound[live]
        )
    rows = live.all(1)
    refuse_mismatch(bridge, f"output{where}", (out - returned["out"])[rows], out_bound[rows])


def pattern_of(returned: Mapping[str, Any]) -> Tensor | None:
    """Return the pattern (batch, head, query, key) that a module returned, its parts joined; None
    where its implementation makes none."""
    if "pattern" in returned:
        pattern: Tensor | None = returned["pattern"]
        return pattern
    parts = [returned["pattern_own"], returned["pattern_source"]]
    return None if parts[0] is None else torch.cat(parts, dim=-1)


def compare_caches(
    bridge: PositionEmbeddingsAttentionBridge,
    twin: PositionEmbeddingsAttentionBridge,
    call: ProofCall,
) -> None:
    """Refuse a bridge that leaves other keys and values than the module, in the cache (CACHE-1) or
    for later layers (KV-1).

    Where heads share a latent the module caches the latent, and the bridge each head's key and
    value (EDIT-4): there the lengths are compared.
    """
    left_by_module, left_by_bridge = (
        kv_for_later_layers(inputs, twin.wrapped, twin.variant)
        for inputs in (call.module_inputs, call.bridge_inputs)
    )
    compare_keys(bridge, "handed on", left_by_module, left_by_bridge)
    if call.caches is not None:
        theirs, ours, layer = call.caches
        compare_keys(bridge, "cached", cached_tensors(theirs, layer), cached_tensors(ours, layer))


def compare_keys(
    bridge: PositionEmbeddingsAttentionBridge,
    what: str,
    by_module: Mapping[str, Tensor],
    by_bridge: Mapping[str, Tensor],
) -> None:
    """Refuse keys and values (batch, head, key, width) that differ from the module's."""
    kind = type(bridge.original_component).__name__
    for name, example in {**by_bridge, **by_module}.items():
        nothing = example[:, :, :0]  # what a cache holds that was never updated
        wanted, got = by_module.get(name, nothing), by_bridge.get(name, nothing)
        if wanted.shape[2] != got.shape[2]:
            raise VerificationError(
                f"{bridge.name!r}: of the {what} {name} it leaves {got.shape[2]} positions, and the"
                f" {kind} it wraps {wanted.shape[2]}"
            )
        if bridge.variant.latent is None:
            # Falcon caches a key head for every query head
            got = got.repeat_interleave(wanted.shape[1] // got.shape[1], dim=1)
            bound = bounds.growth(NORM_ROUNDINGS, "float32") * wanted.abs().amax(
                -1, keepdim=True
            ).expand_as(wanted)
            refuse_mismatch(bridge, f"{what} {name}", got - wanted, bound)


def row_sum(pattern: Tensor) -> Tensor:
    """Return (batch, head, query, 1): what the keys of a row have in all."""
    return pattern.sum(-1, keepdim=True)


def without_sink(pattern: Tensor) -> Tensor:
    """Return (batch, head, query, key): a pattern with the share of the sink given back to the
    keys."""
    return pattern / row_sum(pattern)


def record(
    twin: PositionEmbeddingsAttentionBridge, inputs: dict[str, Any]
) -> tuple[dict[str, Tensor], Tensor]:
    """Run a bridge once and return what every hook point held, with the keys and values that were
    attended to as `keys` and `values`; and the output."""
    kept: dict[str, Tensor] = {}
    remember = type(twin)._remember

    def remember_and_keep(heads: Heads, call: Call) -> tuple[Tensor, Tensor]:
        kept["keys"], kept["values"] = remember(twin, heads, call)
        return kept["keys"], kept["values"]

    object.__setattr__(twin, "_remember", remember_and_keep)
    handles = [
        point.add_hook(lambda tensor, hook, name=name: kept.__setitem__(name, tensor))
        for name, point in twin.hook_points.items()
    ]
    returned = twin(**inputs)
    for handle in handles:
        handle.remove()
    return kept, returned[twin.variant.calling.returns.index("out")]


def float32_bounds(
    twin: PositionEmbeddingsAttentionBridge, kept: dict[str, Tensor], last: int
) -> tuple[Tensor, Tensor]:
    """Return how far pattern (batch, head, query, key) and output (batch, pos, d_model) may be off
    where scores, softmax and values round to float32, in a call up to the position `last`."""
    variant, dtype = twin.variant, "float32"
    q = by_head(kept, attention_inputs(variant)[0]).transpose(1, 2)
    k, v = kept["keys"], kept["values"]
    scores, pattern = kept["hook_attn_scores"], kept["hook_pattern"]
    magnitude = grouped_product(
        q.abs() * abs(variant.scale) * hottest(variant, last), k.abs().transpose(2, 3)
    )
    delta = (magnitude * bounds.growth(NORM_ROUNDINGS, dtype)).amax(-1, keepdim=True)
    below = (scores.amax(-1, keepdim=True) - scores).nan_to_num(nan=0.0, posinf=0.0)
    pattern_bound = (
        bounds.softmax(pattern, below, keys=k.shape[2] + 1, dtype=dtype)
        + pattern * (2 * delta).expm1()
    )
    v = v if variant.differential is None else side_by_side(v)
    z = mix_values(pattern, v)
    z_bound = bounds.fused(z, mix_values(pattern, v.abs()), delta, keys=k.shape[2] + 1, dtype=dtype)
    z_bound = error_after_mix(twin, z.transpose(1, 2), z_bound.transpose(1, 2), kept)
    out_bound = z_bound.flatten(-2) @ output_map(twin, kept).abs()
    return pattern_bound, out_bound + bounds.UNIT[dtype] * kept["hook_out"].abs()


def output_map(twin: PositionEmbeddingsAttentionBridge, kept: dict[str, Tensor]) -> Tensor:
    """Return (in, out): what z is multiplied by; the identity where the layer around projects."""
    z = kept["hook_z"].flatten(-2)
    return (
        linear_map(twin.submodule("o"), like=z)
        if twin.variant.projections.o
        else torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    )


def by_head(kept: dict[str, Tensor], name: str) -> Tensor:
    """Return (batch, pos, heads, width): what a hook point held; a flat norm shows all heads as one
    axis."""
    like = {"q": "hook_rot_q", "k": "hook_rot_k", "v": "hook_v"}[HOOK_BY_NAME[name].role or ""]
    return kept[name].reshape(kept[like].shape)


def hottest(variant: Variant, last: int) -> float:
    """Return the largest factor that the query's temperature takes up to a position."""
    temperature = variant.temperature
    if temperature is not None and temperature.factor_argument is not None:
        return 1.0 + 0.1 * last
    return (
        1.0
        if temperature is None
        else 1 + abs(temperature.beta) * math.log1p((last + temperature.shift) / temperature.length)
    )


def error_after_mix(
    twin: PositionEmbeddingsAttentionBridge, z: Tensor, error: Tensor, kept: dict[str, Tensor]
) -> Tensor:
    """Return (batch, pos, head, d_head_v): the error of z after its norm, which divides by its
    size, and after the gate."""
    norm, gate, kind = twin.variant.z_norm, kept.get("hook_gate"), twin.variant.differential
    if kind is not None:
        z, (first, second) = subtract(z, twin.wrapped, kind), error.chunk(2, dim=2)
        error = first + second * (float(sum(strengths(twin.wrapped, kind))) + abs(kind.init))
    if norm is not None:
        rows, off = (z.flatten(-2), error.flatten(-2)) if norm.over == "flat" else (z, error)
        size = (rows.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        unit = (rows / size).abs()
        weight, _ = affine(twin.submodule("z_norm"), norm)
        spread = off / size + unit * (unit * off / size).mean(-1, keepdim=True)
        error = (spread if weight is None else spread * weight.abs()).reshape(z.shape)
    if gate is not None:
        error = error * (gate if gate.ndim == z.ndim else gate.unsqueeze(-1)).abs()
    return error + bounds.growth(NORM_ROUNDINGS, "float32") * kept["hook_z"].abs()


def refuse_mismatch(
    bridge: PositionEmbeddingsAttentionBridge, what: str, difference: Tensor, bound: Tensor
) -> None:
    """Raise if any difference exceeds its bound; a NaN does."""
    # no difference is none, where the bound is 0 too
    worst = float((difference.abs() / bound).where(difference != 0, 0.0).max())
    if not worst <= 1.0:
        kind = type(bridge.original_component).__name__
        raise VerificationError(
            f"{bridge.name!r} does not reproduce the {kind} it wraps: its {what} is off by"
            f" {worst:.3g} times the bound\n  it was described as {bridge.variant}\n  the model was"
            f" left as it was; describe {kind} by its own entry: attach(model,"
            f" families={{**FAMILIES, {kind!r}: ...}})"
        )
