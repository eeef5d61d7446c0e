"""Define what every attention bridge has: a wrapped module, its description, and hook points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks

from ropebridge.calls import Signature, signature_of
from ropebridge.checkpointing import Edits
from ropebridge.hooks import HookPoint
from ropebridge.kernels.buffers import Buffers
from ropebridge.kernels.demand import KernelSettings
from ropebridge.once import Once
from ropebridge.switches import Switches, implementation_of, read_switches, refuse_changes
from ropebridge.versions import sdpa_refuses_softcaps
from ropebridge.weights import WeightViews
from ropebridge.wiring import (
    opted_in,
    role_names,
    validate_config,
    validate_opt_ins,
    validate_submodules,
)
from ropebridge_spec import (
    FAMILIES,
    HOOKS,
    ContractError,
    Family,
    NotBound,
    SubmoduleError,
    Variant,
    describe,
    hook_order,
)


class AttentionBridge(WeightViews, nn.Module):
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
        self._switches: Switches | None = None
        self.roles: Mapping[str, str] = {}
        self.kernels = KernelSettings()
        self.memory, self.once = Buffers(), Once()
        self._edits = Edits()

    variant: Variant
    signature: Signature

    def __getattr__(self, name: str) -> Any:
        if name in ("variant", "signature"):
            raise self._not_bound()
        return super().__getattr__(name)

    def _not_bound(self) -> NotBound:
        """Return the error of a bridge that wraps nothing yet."""
        return NotBound(
            f"{type(self).__name__} {self.name!r} has no attention module yet; call"
            " set_original_component(module) first"
        )

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
        self.roles = role_names(variant, self.submodules)
        validate_opt_ins(self.name, self.opted_in, component, variant, self.roles)
        self._drop_hook_points()
        self.original_component, self.variant = component, variant
        self.signature, self._switches = signature, read_switches(component)
        for spec in hook_order(variant, self.opted_in):
            self.add_module(spec.name, HookPoint(spec, f"{self.name}.{spec.name}", self._edits))

    def refuse_changes(self) -> None:
        """Refuse to run for a module that is no longer what it was when it was wired.

        Raises:
            AttachError: one of its switches has another value, or it attends by another function.
        """
        if self._switches is None:
            raise self._not_bound()
        refuse_changes(self.name, self.wrapped, self._switches)

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

    def show(
        self, name: str, tensor: Tensor, *, fresh: bool = False, made_by: str | None = None
    ) -> Tensor:
        """Return what the hooks of a point leave of a tensor of any shape; the tensor itself where
        there are none.

        Args:
            fresh: as in `HookPoint.forward`.
            made_by: the role of the projection that made it; where nobody else can hold that
                projection's output, hooks are shown it and no copy (EDIT-2).
        """
        point: Any = self._modules[name]
        if point.idle:
            return tensor
        fresh = fresh or (made_by in self.roles and self._owns_output(str(made_by)))
        left: Tensor = point(tensor, fresh=fresh)
        return left

    def _owns_output(self, role: str) -> bool:
        """Return whether nobody else holds what a projection makes: it is torch's own linear layer,
        no hook of torch is handed its output, and autograd is off (EDIT-2)."""
        module = self.submodule(role)
        hooked = module._forward_hooks or _global_forward_hooks or "forward" in vars(module)
        return type(module) is nn.Linear and not hooked and not torch.is_grad_enabled()

    @property
    def effective(self) -> Variant:
        """Return what this call computes: the variant, without its softcap where the model leaves
        that out.

        Until transformers 5.20 sdpa attention leaves a softcap out, and Gemma 2 and its kin could
        be run so; since then it raises. A bridge does the same.

        Raises:
            ContractError: the layer is capped, and its model attends by an sdpa that refuses that.
        """
        if self.variant.softcap is None or self.attends_by != "sdpa":
            return self.variant
        if sdpa_refuses_softcaps():
            raise ContractError(
                f"{self.name!r} caps its scores (SCORE-1), and its model attends by sdpa, which"
                " refuses that; call model.set_attn_implementation('eager')"
            )
        return replace(self.variant, softcap=None)

    @property
    def wrapped(self) -> Any:
        """Return the Hugging Face module that the bridge stands for.

        Raises:
            NotBound: there is none yet.
        """
        component = self._modules.get("original_component")
        if component is None:
            raise self._not_bound()
        return component

    @property
    def dropout(self) -> float:
        """Return the rate of dropout in this call (DROP-1): the wrapped module says whether it
        trains."""
        return self.variant.dropout if self.wrapped.training else 0.0

    @property
    def sinks(self) -> Tensor | None:
        """Return the extra logits (head,), or None (PAT-1)."""
        name = self.variant.sinks
        return None if name is None else getattr(self.wrapped, name)

    @property
    def config_in_force(self) -> Any:
        """Return the wrapped module's own config; None where it has none."""
        return getattr(self._modules.get("original_component"), "config", None)

    @property
    def attends_by(self) -> str | None:
        """Return the name of the implementation by which the model attends, or None."""
        return implementation_of(self.config_in_force)

    def submodule(self, role: str) -> nn.Module:
        """Return the wrapped module's submodule in a role of `Variant.roles` or
        `Variant.norm_roles`."""
        name, wrapped = self.roles[role], self.wrapped
        # where torch keeps it: its own look-up of attributes takes several times as long
        module = wrapped._modules.get(name) or attrgetter(name)(wrapped)
        assert isinstance(module, nn.Module)
        return module
