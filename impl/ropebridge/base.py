"""Define what every attention bridge has: a wrapped module, its description, hook points, and views
of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from ropebridge.calls import Signature, signature_of
from ropebridge.checkpointing import Edits
from ropebridge.hooks import HookPoint
from ropebridge.versions import sdpa_refuses_softcaps
from ropebridge_spec import (
    FAMILIES,
    HOOKS,
    ContractError,
    Family,
    NotBound,
    OptIn,
    SubmoduleError,
    UnsupportedAttention,
    Variant,
    describe,
    hook_order,
    ungrouped,
)


class AttentionBridge(nn.Module):
    """Wrap an attention module of Hugging Face, which keeps its weights, with hooks.

    Args:
        name: full name in the model, `blocks.{layer}.attn`; hook points are `{name}.hook_q` and so
            on.
        config: the model's config, checked against the module; None to take the module as it is.
        submodules: role (`Variant.roles`, `Variant.norm_roles`) -> attribute name on the module, as
            an adapter declares it; a value may be any object with a `name`. None takes the names of
            the module's family (CFG-4).
        optional: the model may have no such component (CFG-1).
        requires_attention_mask: `get_random_inputs` gives an explicit mask (CFG-2).
        requires_position_embeddings: a rotating layer refuses to run without tables (CFG-3).
        use_attn_in, use_split_qkv_input, use_attn_result: opt in to the hook points of clauses
        SPLIT-1 and RES-1.
        families: class name -> `Family` or `Variant`: what the wrapped class computes.
    """

    def __init__(
        self,
        name: str,
        config: Any,
        submodules: Mapping[str, Any] | None = None,
        optional: bool = False,
        requires_attention_mask: bool = True,
        requires_position_embeddings: bool = True,
        *,
        use_attn_in: bool = False,
        use_split_qkv_input: bool = False,
        use_attn_result: bool = False,
        families: Mapping[str, Family | Variant] = FAMILIES,
    ) -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.submodules = (
            None
            if submodules is None
            else {role: str(getattr(entry, "name", entry)) for role, entry in submodules.items()}
        )
        self.optional = optional
        self.requires_attention_mask = requires_attention_mask
        self.requires_position_embeddings = requires_position_embeddings
        self.opted_in = opted_in(name, use_attn_in, use_split_qkv_input, use_attn_result)
        self.families = families
        self.original_component: nn.Module | None = None
        self._variant: Variant | None = None
        self._signature: Signature | None = None
        self._roles: dict[str, str] = {}
        self._edits = Edits()

    @property
    def variant(self) -> Variant:
        """Return what the wrapped module computes."""
        if self._variant is None:
            raise NotBound(
                f"{type(self).__name__} {self.name!r} has no attention module yet; call"
                " set_original_component(module) first"
            )
        return self._variant

    @property
    def signature(self) -> Signature:
        """Return how the wrapped class is called."""
        if self._signature is None:
            raise NotBound(
                f"{type(self).__name__} {self.name!r} has no attention module yet; call"
                " set_original_component(module) first"
            )
        return self._signature

    @property
    def hook_points(self) -> dict[str, HookPoint]:
        """Return short name -> hook point, in firing order; empty before a module is set."""
        return {
            name: child for name, child in self.named_children() if isinstance(child, HookPoint)
        }

    def set_original_component(self, component: nn.Module | None) -> None:
        """Wire the Hugging Face module, validate what the adapter declared, and make the hook
        points its variant has.

        Raises:
            SubmoduleError: the component, a declared submodule or a config value does not fit
                (CFG-1, CFG-4).
            UnsupportedAttention: the class, or what is opted in to, is not served.
        """
        if component is None:
            self._refuse_missing_component()
            return
        variant = describe(component, self.families)
        signature = signature_of(type(component), variant)
        validate_submodules(self.name, self.submodules, component, variant)
        # its own speaks of it, perhaps of each layer apart
        if self.config is not getattr(component, "config", None):
            validate_config(self.name, self.config, variant)
        self._roles = role_names(variant, self.submodules)
        validate_opt_ins(self.name, self.opted_in, component, variant, self._roles)
        self._drop_hook_points()
        self.original_component, self._variant = component, variant
        self._signature = signature
        for spec in hook_order(variant, self.opted_in):
            self.add_module(spec.name, HookPoint(spec, f"{self.name}.{spec.name}", self._edits))

    def _refuse_missing_component(self) -> None:
        if not self.optional:
            raise SubmoduleError(
                f"{type(self).__name__} {self.name!r} was given None to wrap, and is not optional\n"
                "  give it the model's attention module, or declare the bridge with optional=True"
            )

    def _drop_hook_points(self) -> None:
        for spec in HOOKS:
            self._modules.pop(spec.name, None)

    def hook(self, name: str) -> HookPoint:
        """Return the hook point of this short name."""
        point = self._modules[name]
        assert isinstance(point, HookPoint)
        return point

    @property
    def effective(self) -> Variant:
        """Return what this call computes: one key for every query head where `attn_in` is opted in
        to (SPLIT-3), and no softcap where the model has none.

        Until transformers 5.20 sdpa attention leaves a softcap out, and Gemma 2 and its kin could
        be run so; since then it raises. A bridge does the same.

        Raises:
            ContractError: the layer is capped, and its model attends by an sdpa that refuses that.
        """
        variant = ungrouped(self.variant, self.opted_in)
        if (
            variant.softcap is None
            or getattr(self.config_in_force, "_attn_implementation", None) != "sdpa"
        ):
            return variant
        if sdpa_refuses_softcaps():
            raise ContractError(
                f"{self.name!r} caps its scores (SCORE-1), and its model attends by sdpa, which"
                " refuses that; call model.set_attn_implementation('eager')"
            )
        return replace(variant, softcap=None)

    @property
    def config_in_force(self) -> Any:
        """Return the wrapped module's own config; None where it has none."""
        return getattr(self.original_component, "config", None)

    def submodule(self, role: str) -> nn.Module:
        """Return the wrapped module's submodule in a role of `Variant.roles` or
        `Variant.norm_roles`."""
        module = attrgetter(self._roles[role])(self.original_component)
        assert isinstance(module, nn.Module)
        return module

    @property
    def W_Q(self) -> Tensor:
        """Return (head, d_model, d_head): a view of the query projection's weight."""
        return self._input_weight("q")

    @property
    def W_K(self) -> Tensor:
        """Return (kv_head, d_model, d_head): a view of the key projection's weight."""
        return self._input_weight("k")

    @property
    def W_V(self) -> Tensor:
        """Return (kv_head, d_model, d_head_v): a view of the value projection's weight."""
        return self._input_weight("v")

    @property
    def W_O(self) -> Tensor:
        """Return (head, d_head_v, d_model), of pairs (pair, d_pair, d_model): a view of the output
        projection's weight; the identity where there is none."""
        if "o" not in self._roles:
            like = self._input_weight("v")
            width = self.variant.heads * self.variant.d_head_v
            identity: Tensor = torch.eye(width, dtype=like.dtype, device=like.device).unflatten(
                0, (self.variant.heads, -1)
            )
            return identity
        return self._linear("o", "W_O").weight.T.unflatten(0, (self.variant.z_heads, -1))  # type: ignore[no-any-return]

    @property
    def b_Q(self) -> Tensor | None:
        """Return (head, d_head): a view of the query projection's bias, None where it has none."""
        return self._bias("q")

    @property
    def b_K(self) -> Tensor | None:
        """Return (kv_head, d_head): a view of the key projection's bias, None where it has none."""
        return self._bias("k")

    @property
    def b_V(self) -> Tensor | None:
        """Return (kv_head, d_head_v): a view of the value projection's bias, None where it has
        none."""
        return self._bias("v")

    @property
    def b_O(self) -> Tensor | None:
        """Return (d_model,): the output projection's bias, None where it has none."""
        return self._linear("o", "b_O").bias if "o" in self._roles else None

    def _input_weight(self, role: str) -> Tensor:
        """Return (head, d_model, width): the weight of query, key or value."""
        return self._parts_of_weight(role, f"W_{role.upper()}", "weight")[role].movedim(0, 1)

    def _bias(self, role: str) -> Tensor | None:
        """Return (head, width): the bias of query, key or value."""
        parts = self._parts_of_weight(role, f"b_{role.upper()}", "bias")
        return parts[role] if parts else None

    def _parts_of_weight(self, role: str, what: str, tensor: str) -> dict[str, Tensor]:
        """Return the weight (d_model, rows) or bias (rows,) that holds a role's rows, split as the
        projection's output is; nothing where it has none."""
        self._refuse_latent(role, what)
        self._refuse_adapted(role, what)
        held: Tensor | None = getattr(
            self._linear("qkv" if "qkv" in self._roles else role, what), tensor
        )
        return {} if held is None else self.split(role, held.movedim(0, -1))

    def split(self, role: str, rows: Tensor) -> dict[str, Tensor]:
        """Return role -> heads (..., head, width), of what the projection in this role gives, or of
        the one that all roles share."""
        if "qkv" in self._roles:
            return split_heads(rows, self.variant)
        heads = rows.unflatten(-1, (self.heads_of(role), -1))
        if role == "q" and self.variant.gate is not None and self.variant.gate.in_query:
            query, gate = heads.split([self.variant.d_head, self.variant.d_head_v], dim=-1)
            return {"q": query, "q_gate": gate.contiguous()}
        return {role: heads}

    def _refuse_latent(self, role: str, what: str) -> None:
        """Refuse to show as one map of hook_in what goes through a latent that is normed on the
        way."""
        if self.variant.latent is not None and (
            role != "q" or self.variant.latent.q_rank is not None
        ):
            raise SubmoduleError(
                f"{self.name!r} has no {what} to show: its heads come up from a latent that is"
                " normed (clause LAT-1), and no one matrix gives them\n  read the projections"
                f" themselves: bridge.submodule(role), with a role of {sorted(self.variant.roles)}"
            )

    def _refuse_adapted(self, role: str, what: str) -> None:
        """Refuse to show a projection as one map where an adapter, another for each layer that
        shares it, is added to it."""
        if self.variant.projections.beside is not None:
            raise SubmoduleError(
                f"{self.name!r} has no {what} to show: each layer that shares its projection adds"
                f" an adapter of its own\n  read the parts themselves: bridge.submodule({role!r})"
                f" and {self.variant.projections.beside.format(role)!r} of the module"
            )

    def _linear(self, role: str, what: str) -> nn.Linear:
        """Return the projection in a role, whose weight is asked for.

        Raises:
            SubmoduleError: it is no plain linear map with its weight in full, and `what` would be
                half the truth.
        """
        projection = linear_in(self.submodule(role), self.variant)
        if isinstance(projection, nn.Linear) and (what.startswith("b_") or in_full(projection)):
            return projection
        raise SubmoduleError(
            f"{self.name!r} has no {what} to show: {self._roles[role]!r} is a"
            f" {type(projection).__name__}, and {what} is read off a torch.nn.Linear\n  merge or"
            " dequantise it first (peft: merge_and_unload(), transformers: dequantize()), or run"
            f" it as it is: bridge.submodule({role!r})(x)"
        )

    def heads_of(self, role: str) -> int:
        """Return how many heads a role (q, k, v) has."""
        return self.variant.heads if role == "q" else self.variant.kv_heads


def per_head_roles(variant: Variant, chosen: tuple[OptIn, ...]) -> list[str]:
    """Return the roles whose weights an opt-in reads head by head."""
    inputs = (
        [role for role in variant.roles if role in ("q", "k", "v", "qkv")]
        if set(chosen) - {"attn_result"}
        else []
    )
    return [*inputs, *(["o"] if chosen and "o" in variant.roles else [])]


def part_of(component: nn.Module, attribute: str) -> object:
    """Return the attribute at a path of names joined by dots, or None."""
    try:
        return attrgetter(attribute)(component)
    except AttributeError:
        return None


def linear_in(projection: nn.Module, variant: Variant) -> nn.Module:
    """Return the linear map that a family's projection wraps; itself, where it wraps none."""
    within = variant.projections.within
    return projection if within is None else projection.get_submodule(within)


def in_full(projection: nn.Linear) -> bool:
    """Return whether the weight holds the numbers themselves: packed or rounded to a byte they mean
    nothing without their scales."""
    weight = projection.weight
    return (
        weight.shape == (projection.out_features, projection.in_features)
        and weight.is_floating_point()
        and weight.element_size() > 1
    )


def split_heads(fused: Tensor, variant: Variant) -> dict[str, Tensor]:
    """Return what a fused projection gave, (..., rows), as query, key and value, each (..., head,
    width); nothing is copied."""
    widths = {"q": variant.d_head, "k": variant.d_head, "v": variant.d_head_v}
    if variant.projections.layout == "groups":
        groups = fused.unflatten(-1, (variant.kv_heads, -1, variant.d_head))
        q, k, v = groups.split([variant.group, 1, 1], dim=-2)
        return {"q": q.flatten(-3, -2), "k": k.squeeze(-2), "v": v.squeeze(-2)}
    if variant.projections.layout == "quarters":
        parts = fused.unflatten(-1, (4, 3, -1, variant.d_head)).unbind(-3)
        return {
            role: parts[place].flatten(-3, -2) for role, place in (("q", 0), ("v", 1), ("k", 2))
        }
    heads = {"q": variant.heads, "k": variant.kv_heads, "v": variant.kv_heads}
    blocks = fused.split([heads[role] * widths[role] for role in "qkv"], dim=-1)
    return {
        role: block.unflatten(-1, (heads[role], widths[role]))
        for role, block in zip("qkv", blocks, strict=True)
    }


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
        adapted = (
            "share an adapter beside their projection (clause PROJ-1)"
            if variant.projections.beside
            else ""
        )
        shares = (
            adapted or "share a latent (clause LAT-1)"
            if variant.latent
            else "share a bias of their values (clause SCORE-5)"
            if variant.key_bias
            else ""
        )
        why = shares or "have a key or value of another's (clause KV-1)"
        raise UnsupportedAttention(
            f"{name!r}: use_{split[0]} gives each head an input of its own, and the heads of"
            f" {type(component).__name__} {why}\n  leave the opt-in off, and edit hook_q, hook_k or"
            " hook_v instead"
        )
    for role in per_head_roles(variant, chosen):
        attribute, module = roles[role], linear_in(component.get_submodule(roles[role]), variant)
        if not isinstance(module, nn.Linear) or not in_full(module):
            raise UnsupportedAttention(
                f"{name!r}: {', '.join(f'use_{c}' for c in chosen)} needs the weight of"
                f" {attribute!r}, which is a {type(module).__name__}\n  merge or dequantise it into"
                " torch.nn.Linear first, or leave the opt-in off"
            )
