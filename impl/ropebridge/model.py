"""`attach(model)`: a bridge over every attention layer of a live model; `detach()` leaves it
exactly as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ropebridge.bridge import PositionEmbeddingsAttentionBridge
from ropebridge.bridged import BridgedModel
from ropebridge.finding import hook_names, layer_number, nearest_rotary, rotary_attention
from ropebridge.switches import refuse_other_attention
from ropebridge.takeover import bridge_in_force, take_over
from ropebridge.verify import verify_layers
from ropebridge.versions import warn_if_untested
from ropebridge_spec import FAMILIES, AttachError, Family, UnsupportedAttention, Variant


def attach(
    model: nn.Module,
    *,
    verify: bool = True,
    use_attn_in: bool = False,
    use_split_qkv_input: bool = False,
    use_attn_result: bool = False,
    families: Mapping[str, Family | Variant] = FAMILIES,
) -> BridgedModel:
    """Put a bridge over every attention layer of a Hugging Face model that is given position
    embeddings.

    The attention modules stay where they are, with their class, weights and hooks; only their
    `forward` is taken over, each on its own instance, so that `state_dict` keys, `save_pretrained`
    and recorded outputs do not change.

    Args:
        model: a model, or any module that holds rotary attention layers.
        verify: prove each distinct layer against the module it wraps, in float64, before going on.
        use_attn_in, use_split_qkv_input, use_attn_result: opt in to the hook points of clauses
        SPLIT-1 and RES-1.
        families: class name -> `Family` or `Variant`; add to it to serve a class this version does
            not know.

    Returns: The bridged model. `detach()` it, or use it as a context manager. Warns
        (UntestedTransformers) under a transformers newer than was tested.

    Raises:
        UnsupportedAttention: a rotary attention class that no family serves, or whose forward has a
            parameter that is not known.
        AttachError: the model is attached to already, holds no rotary attention, or no numbers to
            verify with (the meta device).
        VerificationError: a layer did not reproduce the module it wraps; the model is left as it
            was.
    """
    warn_if_untested()
    options = {
        "use_attn_in": use_attn_in,
        "use_split_qkv_input": use_split_qkv_input,
        "use_attn_result": use_attn_result,
    }
    found = list(rotary_attention(model, families))
    names = hook_names([(path, layer_number(path, module)) for path, module in found])
    bridges = [
        build(module, path, name, model, options, families)
        for (path, module), name in zip(found, names, strict=True)
    ]
    if not bridges:
        raise AttachError(
            f"{type(model).__name__} holds no attention layer whose forward takes"
            " position_embeddings\n  attach() serves rotary attention: pass the language model, or"
            " the module that holds its layers"
        )
    if verify:
        verify_layers(bridges)
    for bridge in bridges:
        take_over(bridge)
    return BridgedModel(model, bridges)


def get_bridged_model(model: nn.Module) -> BridgedModel:
    """Return the bridges that a model has already: a deep copy of a bridged model, or one out of a
    pickle, brings its own along.

    Raises:
        AttachError: no layer is bridged.
    """
    bridges = [
        bridge for module in model.modules() if (bridge := bridge_in_force(module)) is not None
    ]
    if not bridges:
        raise AttachError(
            f"{type(model).__name__} holds no layer that is attached to; call attach(model)"
        )
    return BridgedModel(model, bridges)


def build(
    module: nn.Module,
    path: str,
    name: str,
    model: nn.Module,
    options: Mapping[str, Any],
    families: Mapping[str, Family | Variant],
) -> PositionEmbeddingsAttentionBridge:
    """Return a bridge around one attention module, not yet in force."""
    if bridge_in_force(module) is not None:
        raise AttachError(
            f"{path!r} is attached to already; call detach() on the earlier bridge first\n  a deep"
            " copy, or a model out of a pickle, brought bridges of its own along:"
            " ropebridge.get_bridged_model(model).detach()"
        )
    if "forward" in module.__dict__:
        raise AttachError(
            f"the forward of {path!r} was replaced on the instance (accelerate's dispatch hooks do"
            " that)\n  attach before dispatching, or load the model on one device without"
            " device_map"
        )
    refuse_other_attention(path, module)
    refuse_unknown_causality(path, module, model)
    bridge = PositionEmbeddingsAttentionBridge(
        name, getattr(module, "config", None), families=families, **options
    )
    bridge.set_original_component(module)
    rotary = nearest_rotary(model, path)
    if rotary is not None:
        bridge.set_rotary_emb(rotary)
    return bridge


def refuse_unknown_causality(path: str, module: nn.Module, model: nn.Module) -> None:
    """Refuse a layer that cannot say whether the model makes an encoder of it: it holds no config,
    and that of the module around it asks for bidirectional masks."""
    config = config_around(model, path)
    if not hasattr(module, "config") and getattr(config, "is_causal", None) is False:
        raise UnsupportedAttention(
            f"{path!r} is causal and holds no config, and the {type(config).__name__} around it"
            " asks for bidirectional masks (is_causal=False): without a mask the two would part\n"
            "  to go on: use a config that leaves is_causal as it was"
        )


def config_around(model: nn.Module, path: str) -> object:
    """Return the config of the closest module around a layer that has one; None where none has."""
    parts = path.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        config = getattr(model.get_submodule(".".join(parts[:depth])), "config", None)
        if config is not None:
            return config
    return None
