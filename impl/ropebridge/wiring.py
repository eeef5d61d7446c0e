"""Wiring of a bridge: what an adapter declares is checked against the module and its config
(clauses CFG-4, SPLIT-1, RES-1)."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from torch import nn

from ropebridge.weights import has_own_weight, is_sharded, linear_in
from ropebridge_spec import OptIn, SubmoduleError, UnsupportedAttention, Variant


def per_head_roles(variant: Variant, chosen: tuple[OptIn, ...]) -> list[str]:
    """Return the roles whose weights an opt-in reads head by head."""
    inputs = (
        [role for role in variant.roles if role in ("q", "k", "v", "qkv")]
        if set(chosen) - {"attn_result"}
        else []
    )
    return [*inputs, *(["o"] if chosen and "o" in variant.roles else [])]


def opted_in(
    name: str, use_attn_in: bool, use_split_qkv_input: bool, use_attn_result: bool
) -> tuple[OptIn, ...]:
    """Return the opt-ins as the contract names them."""
    if use_attn_in and use_split_qkv_input:
        raise SubmoduleError(
            f"{name!r} was given use_attn_in and use_split_qkv_input; clause SPLIT-1 allows one of"
            " them"
        )
    asked: dict[OptIn, bool] = {
        "attn_in": use_attn_in,
        "split_qkv_input": use_split_qkv_input,
        "attn_result": use_attn_result,
    }
    return tuple(opt_in for opt_in, wanted in asked.items() if wanted)


def role_names(variant: Variant, declared: Mapping[str, str] | None) -> dict[str, str]:
    """Return role -> attribute name: as the family has it, or as the adapter declared it."""
    return {**variant.roles, **variant.norm_roles, **(declared or {})}


def validate_submodules(
    name: str, declared: Mapping[str, str] | None, component: nn.Module, variant: Variant
) -> None:
    """Refuse a declaration that leaves out a role, names an unknown one, or points nowhere
    (CFG-4)."""
    needed = role_names(variant, None)
    if declared is not None:
        missing = {role: attribute for role, attribute in needed.items() if role not in declared}
        if missing:
            raise SubmoduleError(
                f"{name!r} declares submodules {sorted(declared)} and lacks {sorted(missing)},"
                f" which {type(component).__name__} has\n  without them the forward pass would"
                f" leave a stage out; declare submodules={ {**declared, **missing} }"
            )
        unknown = sorted(set(declared) - set(needed))
        if unknown:
            raise SubmoduleError(
                f"{name!r} declares submodules {unknown}, which {type(component).__name__} does not"
                f" have; its roles are {sorted(needed)}"
            )
    for role, attribute in role_names(variant, declared).items():
        if not isinstance(part_of(component, attribute), nn.Module):
            raise SubmoduleError(
                f"{name!r} declares {role}={attribute!r}, and {type(component).__name__} has no"
                f" module {attribute!r}\n  its modules are"
                f" {sorted(n for n, _ in component.named_children())}"
            )


def validate_config(name: str, config: Any, variant: Variant) -> None:
    """Refuse a config that speaks of another model than the module."""
    for key, value in (
        ("hidden_size", variant.d_model),
        ("num_attention_heads", variant.heads),
        ("num_key_value_heads", variant.kv_heads),
    ):
        given = getattr(config, key, None)
        if given is not None and given != value:
            raise SubmoduleError(
                f"{name!r} was given a config with {key}={given}, and the module has {value}; give"
                " it the module's own config"
            )


def validate_opt_ins(
    name: str,
    chosen: tuple[OptIn, ...],
    component: nn.Module,
    variant: Variant,
    roles: Mapping[str, str],
) -> None:
    """Refuse per-head stages where no per-head weights can be read, and split inputs where heads
    share a latent."""
    split = [choice for choice in chosen if choice != "attn_result"]
    if split and not variant.splits:
        raise UnsupportedAttention(
            f"{name!r}: use_{split[0]} gives each head an input of its own, and the heads of"
            f" {type(component).__name__} {what_heads_share(variant)}\n  leave the opt-in off, and"
            " edit hook_q, hook_k or hook_v instead"
        )
    for role in per_head_roles(variant, chosen):
        attribute, module = roles[role], linear_in(component.get_submodule(roles[role]), variant)
        if not isinstance(module, nn.Linear) or not has_own_weight(module):
            kind = type(module)
            raise UnsupportedAttention(
                f"{name!r}: {', '.join(f'use_{c}' for c in chosen)} needs the weight of"
                f" {attribute!r}, which is a {kind.__module__}.{kind.__qualname__} and does not"
                " hold it in one\n  merge it (peft: model.merge_and_unload()) or dequantise it"
                " (transformers: model.dequantize()) into torch.nn.Linear first, or leave the"
                " opt-in off"
            )
        if is_sharded(module.weight):
            raise UnsupportedAttention(
                f"{name!r}: {', '.join(f'use_{c}' for c in chosen)} needs the weight of"
                f" {attribute!r}, of which each rank of a tensor-parallel model holds a part\n "
                " load the model without tp_plan, or leave the opt-in off"
            )


def what_heads_share(variant: Variant) -> str:
    """Return why a layer's inputs cannot be split by head."""
    if variant.projections.beside:
        return "share an adapter beside their projection (clause PROJ-1)"
    if variant.latent:
        return "share a latent (clause LAT-1)"
    if variant.key_bias:
        return "share a bias of their values (clause SCORE-5)"
    return "have a key or value of another's (clause KV-1)"


def part_of(component: nn.Module, attribute: str) -> object:
    """Return the attribute at a path of names joined by dots, or None."""
    try:
        return attrgetter(attribute)(component)
    except AttributeError:
        return None
