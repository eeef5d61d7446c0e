"""`attach(model)`: a bridge over every attention layer of a live model; `detach()` leaves it
exactly as it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from ropebridge.batching import forbid_batching
from ropebridge.bridge import PositionEmbeddingsAttentionBridge
from ropebridge.bridged import BridgedModel
from ropebridge.finding import (
    hook_names,
    innermost_around,
    last_number,
    layer_number,
    nearest_rotary,
    rotary_attention,
)
from ropebridge.switches import refuse_other_attention
from ropebridge.takeover import bridge_in_force, origin_of, replacement, take_over
from ropebridge.verify import verify_layers
from ropebridge.versions import warn_if_untested
from ropebridge_spec import FAMILIES, AttachError, Family, UnsupportedAttention, Variant


def attach(
    model: nn.Module,
    *,
    layers: Iterable[int] | int | None = None,
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
        layers: the numbers of the layers to attach to, or one number, as in the names of their
            hooks; None for all. The others stay as they are.
        verify: prove each distinct layer against the module it wraps, in float64, before going on.
        use_attn_in, use_split_qkv_input, use_attn_result: opt in to the hook points of clauses
        SPLIT-1 and RES-1.
        families: class name -> `Family` or `Variant`; add to it to serve a class this version does
            not know.

    Returns: The bridged model. `detach()` it, or use it as a context manager. Warns
        (UntestedTransformers) under a transformers newer than was tested.

    Raises:
        UnsupportedAttention: a rotary attention class that no family serves, that only bears the
            name of one that is, or whose forward has a parameter that is not known.
        AttachError: what was given is no model, is attached to already, has not such a layer, holds
            no rotary attention, attends by another function than transformers' own, has a forward
            that somebody replaced, or no numbers to verify with (the meta device).
        VerificationError: a layer did not reproduce the module it wraps, or cannot be copied to be
            proved; the model is left as it was.
    """
    refuse_no_model(model)
    warn_if_untested()
    options = {
        "use_attn_in": use_attn_in,
        "use_split_qkv_input": use_split_qkv_input,
        "use_attn_result": use_attn_result,
    }
    found = list(rotary_attention(model, families))
    names = hook_names([(path, layer_number(path, module)) for path, module in found])
    if not found:
        raise AttachError(
            f"{type(model).__name__} holds no attention layer whose forward takes"
            " position_embeddings\n  attach() serves rotary attention: pass the language model, or"
            " the module that holds its layers"
        )
    if layers is not None:
        chosen = list(layers) if isinstance(layers, Iterable) else [layers]
        found, names = pick_layers(found, names, chosen)
    bridges = build_all(found, names, model, options, families)
    if verify:
        verify_layers(bridges)
    for bridge in bridges:
        take_over(bridge)
    forbid_batching(model)
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


def refuse_no_model(model: object) -> None:
    """Refuse what is no module of torch: a name, a class, or what attach returned."""
    if isinstance(model, BridgedModel):
        raise AttachError(
            "attach was given what it returned; the model is bridged.model, and it is attached to"
        )
    if not isinstance(model, nn.Module):
        raise AttachError(
            f"attach was given {model!r}, and takes a model in memory\n  load it first:"
            " AutoModelForCausalLM.from_pretrained(name)"
        )


def pick_layers(
    found: list[tuple[str, nn.Module]], names: list[str], layers: Sequence[int]
) -> tuple[list[tuple[str, nn.Module]], list[str]]:
    """Return the attention modules of some layers, with their paths; and their names.

    Raises:
        AttachError: a layer that the model does not have, or none.
    """
    numbers = [layer_number(path, module) for path, module in found]
    unknown = [layer for layer in layers if layer not in numbers]
    if unknown or not layers:
        raise AttachError(
            f"layers={list(layers)!r} names"
            f" {'layer ' + repr(unknown[0]) if unknown else 'no layer'}; the attention layers of"
            f" this model are {sorted(set(numbers))}"
        )
    kept = [place for place, number in enumerate(numbers) if number in layers]
    return [found[place] for place in kept], [names[place] for place in kept]


def build_all(
    found: Sequence[tuple[str, nn.Module]],
    names: Sequence[str],
    model: nn.Module,
    options: Mapping[str, Any],
    families: Mapping[str, Family | Variant],
) -> list[PositionEmbeddingsAttentionBridge]:
    """Return a bridge for each attention module, none of them in force.

    Raises:
        UnsupportedAttention: a layer is not served; the message names the part of the model whose
            layers are.
    """
    bridges, served, refused = [], [], {}
    for (path, module), name in zip(found, names, strict=True):
        try:
            bridges.append(build(module, path, name, model, options, families))
            served.append(path)
        except UnsupportedAttention as error:
            refused[path] = error
    if not refused:
        return bridges
    first = next(iter(refused))
    part = part_of_its_own(model, served, list(refused))
    if part is None:
        raise refused[first]
    raise UnsupportedAttention(
        f"{refused[first]}\n  it is {first!r}; the layers of {part!r} are served:"
        f" attach(model.{part})"
    ) from refused[first]


def part_of_its_own(model: nn.Module, served: Sequence[str], refused: Sequence[str]) -> str | None:
    """Return the path of the part of a model that holds the layers that are served and none that is
    refused; None where there is no such part."""
    if not served:
        return None
    part, _ = innermost_around(model, served)
    mixed = not part or any(path.startswith(f"{part}.") for path in refused)
    return None if mixed or last_number(part) < len(part.split(".")) else part


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
    if replacement(module) is not None:
        raise AttachError(
            f"the forward of {path!r} was replaced on the instance, by"
            f" {origin_of(replacement(module))}, and the bridge stands for the class's own\n "
            " attach first and wrap the model afterwards, or take the wrapper away"
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
