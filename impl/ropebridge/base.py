"""What every attention bridge has: a wrapped module, its description, hook points, and views of its weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ropebridge.checkpointing import Edits
from ropebridge.hooks import HookPoint, ScorePoint
from ropebridge_spec import (
    FAMILIES,
    HOOKS,
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
    """An attention module with hooks, around one of Hugging Face that keeps its weights.

    Args:
        name: full name in the model, `blocks.{layer}.attn`; hook points are `{name}.hook_q` and so on.
        config: the model's config, checked against the module; None to take the module as it is.
        submodules: role (q k v o q_norm k_norm) -> attribute name on the module, as an adapter declares it; a value
            may be any object with a `name`. None takes the names of the module's family (CFG-4).
        optional: the model may have no such component (CFG-1).
        requires_attention_mask: `get_random_inputs` gives an explicit mask (CFG-2).
        requires_position_embeddings: a rotating layer refuses to run without tables (CFG-3).
        use_attn_in, use_split_qkv_input, use_attn_result: opt in to the hook points of clauses SPLIT-1 and RES-1.
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
        self.submodules = None if submodules is None else {role: str(getattr(entry, "name", entry)) for role, entry in submodules.items()}
        self.optional = optional
        self.requires_attention_mask = requires_attention_mask
        self.requires_position_embeddings = requires_position_embeddings
        self.opted_in = opted_in(name, use_attn_in, use_split_qkv_input, use_attn_result)
        self.families = families
        self.original_component: nn.Module | None = None
        self._variant: Variant | None = None
        self._positional: tuple[str, ...] = ()
        self._roles: dict[str, str] = {}
        self._edits = Edits()

    @property
    def variant(self) -> Variant:
        """What the wrapped module computes."""
        if self._variant is None:
            raise NotBound(f"{type(self).__name__} {self.name!r} has no attention module yet; call set_original_component(module) first")
        return self._variant

    @property
    def hook_points(self) -> dict[str, HookPoint]:
        """Short name -> hook point, in firing order; empty before a module is set."""
        return {name: child for name, child in self.named_children() if isinstance(child, HookPoint)}

    def set_original_component(self, component: nn.Module | None) -> None:
        """Wire the Hugging Face module, validate what the adapter declared, and make the hook points its variant has.

        Raises:
            SubmoduleError: the component, a declared submodule or a config value does not fit (CFG-1, CFG-4).
            UnsupportedAttention: the class, or what is opted in to, is not served.
        """
        if component is None:
            self._refuse_missing_component()
            return
        variant = describe(component, self.families)
        validate_submodules(self.name, self.submodules, component, variant)
        validate_config(self.name, self.config, variant)
        self._roles = role_names(variant, self.submodules)
        validate_opt_ins(self.name, self.opted_in, component, variant, self._roles)
        self._drop_hook_points()
        self.original_component, self._variant = component, variant
        self._positional = tuple(inspect.signature(type(component).forward).parameters)[1:]
        for spec in hook_order(variant, self.opted_in):
            kind = ScorePoint if spec.name == "hook_attn_scores" else HookPoint
            self.add_module(spec.name, kind(spec, f"{self.name}.{spec.name}", self._edits))

    def _refuse_missing_component(self) -> None:
        if not self.optional:
            raise SubmoduleError(
                f"{type(self).__name__} {self.name!r} was given None to wrap, and is not optional\n"
                f"  give it the model's attention module, or declare the bridge with optional=True"
            )

    def _drop_hook_points(self) -> None:
        for spec in HOOKS:
            self._modules.pop(spec.name, None)

    def hook(self, name: str) -> HookPoint:
        """The hook point of this short name."""
        point = self._modules[name]
        assert isinstance(point, HookPoint)
        return point

    @property
    def effective(self) -> Variant:
        """The variant with one key a query head where `attn_in` is opted in to (SPLIT-3)."""
        return ungrouped(self.variant, self.opted_in)

    def submodule(self, role: str) -> nn.Module:
        """The wrapped module's submodule in a role: q, k, v, o, q_norm, k_norm."""
        module = getattr(self.original_component, self._roles[role])
        assert isinstance(module, nn.Module)
        return module

    @property
    def W_Q(self) -> Tensor:
        """(head, d_model, d_head): a view of the query projection's weight."""
        return self._input_weight("q")

    @property
    def W_K(self) -> Tensor:
        """(kv_head, d_model, d_head): a view of the key projection's weight."""
        return self._input_weight("k")

    @property
    def W_V(self) -> Tensor:
        """(kv_head, d_model, d_head_v): a view of the value projection's weight."""
        return self._input_weight("v")

    @property
    def W_O(self) -> Tensor:
        """(head, d_head_v, d_model): a view of the output projection's weight."""
        return self._linear("o", "W_O").weight.T.unflatten(0, (self.variant.heads, -1))  # type: ignore[no-any-return]

    @property
    def b_Q(self) -> Tensor | None:
        """(head, d_head): a view of the query projection's bias, None where it has none."""
        return self._bias("q")

    @property
    def b_K(self) -> Tensor | None:
        """(kv_head, d_head): a view of the key projection's bias, None where it has none."""
        return self._bias("k")

    @property
    def b_V(self) -> Tensor | None:
        """(kv_head, d_head_v): a view of the value projection's bias, None where it has none."""
        return self._bias("v")

    @property
    def b_O(self) -> Tensor | None:
        """(d_model,): the output projection's bias, None where it has none."""
        return self._linear("o", "b_O").bias

    def _input_weight(self, role: str) -> Tensor:
        """(head, d_model, width): the weight of query, key or value."""
        if "qkv" in self._roles:
            return split_heads(self._linear("qkv", f"W_{role.upper()}").weight.T, self.variant)[role].transpose(0, 1)
        return self._linear(role, f"W_{role.upper()}").weight.unflatten(0, (self.heads_of(role), -1)).transpose(1, 2)  # type: ignore[no-any-return]

    def _bias(self, role: str) -> Tensor | None:
        """(head, width): the bias of query, key or value."""
        bias: Tensor | None = self._linear("qkv" if "qkv" in self._roles else role, f"b_{role.upper()}").bias
        if bias is None:
            return None
        return split_heads(bias, self.variant)[role] if "qkv" in self._roles else bias.unflatten(0, (self.heads_of(role), -1))

    def _linear(self, role: str, what: str) -> nn.Linear:
        """The projection in a role, whose weight is asked for.

        Raises:
            SubmoduleError: it is no plain linear map with its weight in full, and `what` would be half the truth.
        """
        projection = self.submodule(role)
        if isinstance(projection, nn.Linear) and (what.startswith("b_") or in_full(projection)):
            return projection
        raise SubmoduleError(
            f"{self.name!r} has no {what} to show: {self._roles[role]!r} is a {type(projection).__name__}, and {what} is read off a torch.nn.Linear\n"
            f"  merge or dequantise it first (peft: merge_and_unload(), transformers: dequantize()), or run it as it is: bridge.submodule({role!r})(x)"
        )

    def heads_of(self, role: str) -> int:
        """How many heads a role (q, k, v) has."""
        return self.variant.heads if role == "q" else self.variant.kv_heads


def in_full(projection: nn.Linear) -> bool:
    """Whether the weight holds the numbers themselves: packed or rounded to a byte they mean nothing without their scales."""
    weight = projection.weight
    return weight.shape == (projection.out_features, projection.in_features) and weight.is_floating_point() and weight.element_size() > 1


def split_heads(fused: Tensor, variant: Variant) -> dict[str, Tensor]:
    """What a fused projection gave, (..., rows), as query, key and value, each (..., head, width); nothing is copied."""
    widths = {"q": variant.d_head, "k": variant.d_head, "v": variant.d_head_v}
    if variant.projections.layout == "heads":
        parts = fused.unflatten(-1, (variant.heads, -1)).split(list(widths.values()), dim=-1)
        return dict(zip("qkv", parts, strict=True))
    heads = {"q": variant.heads, "k": variant.kv_heads, "v": variant.kv_heads}
    blocks = fused.split([heads[role] * widths[role] for role in "qkv"], dim=-1)
    return {role: block.unflatten(-1, (heads[role], widths[role])) for role, block in zip("qkv", blocks, strict=True)}


def opted_in(name: str, use_attn_in: bool, use_split_qkv_input: bool, use_attn_result: bool) -> tuple[OptIn, ...]:
    """The opt-ins as the contract names them."""
    if use_attn_in and use_split_qkv_input:
        raise SubmoduleError(f"{name!r} was given use_attn_in and use_split_qkv_input; clause SPLIT-1 allows one of them")
    asked: dict[OptIn, bool] = {"attn_in": use_attn_in, "split_qkv_input": use_split_qkv_input, "attn_result": use_attn_result}
    return tuple(opt_in for opt_in, wanted in asked.items() if wanted)


def role_names(variant: Variant, declared: Mapping[str, str] | None) -> dict[str, str]:
    """Role -> attribute name: as the family has it, or as the adapter declared it."""
    p, norm = variant.projections, variant.norm
    names = p.roles | ({"q_norm": norm.q, "k_norm": norm.k} if norm else {})
    return {**names, **(declared or {})}


def validate_submodules(name: str, declared: Mapping[str, str] | None, component: nn.Module, variant: Variant) -> None:
    """Refuse a declaration that leaves out a role, names an unknown one, or points nowhere (CFG-4)."""
    needed = role_names(variant, None)
    if declared is not None:
        missing = {role: attribute for role, attribute in needed.items() if role not in declared}
        if missing:
            raise SubmoduleError(
                f"{name!r} declares submodules {sorted(declared)} and lacks {sorted(missing)}, which {type(component).__name__} has\n"
                f"  without them the forward pass would leave a stage out; declare submodules={ {**declared, **missing} }"
            )
        unknown = sorted(set(declared) - set(needed))
        if unknown:
            raise SubmoduleError(f"{name!r} declares submodules {unknown}, which {type(component).__name__} does not have; its roles are {sorted(needed)}")
    for role, attribute in role_names(variant, declared).items():
        if not isinstance(getattr(component, attribute, None), nn.Module):
            raise SubmoduleError(
                f"{name!r} declares {role}={attribute!r}, and {type(component).__name__} has no module {attribute!r}\n"
                f"  its modules are {sorted(n for n, _ in component.named_children())}"
            )


def validate_config(name: str, config: Any, variant: Variant) -> None:
    """Refuse a config that speaks of another model than the module."""
    for key, value in (("hidden_size", variant.d_model), ("num_attention_heads", variant.heads), ("num_key_value_heads", variant.kv_heads)):
        given = getattr(config, key, None)
        if given is not None and given != value:
            raise SubmoduleError(f"{name!r} was given a config with {key}={given}, and the module has {value}; give it the module's own config")


def validate_opt_ins(name: str, chosen: tuple[OptIn, ...], component: nn.Module, variant: Variant, roles: Mapping[str, str]) -> None:
    """Refuse per-head stages where no per-head weights can be read."""
    for role in variant.projections.roles if chosen else ():
        attribute, module = roles[role], getattr(component, roles[role])
        if type(module) is not nn.Linear:
            raise UnsupportedAttention(
                f"{name!r}: {', '.join(f'use_{c}' for c in chosen)} needs the weight of {attribute!r}, which is a {type(module).__name__}\n"
                f"  merge or dequantise it into torch.nn.Linear first, or leave the opt-in off"
            )
