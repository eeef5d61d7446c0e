"""Views of the weights of a wrapped module, head by head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ropebridge.dispatch import weight_of
from ropebridge.heads import split_fused, split_heads, split_query
from ropebridge_spec import SubmoduleError, Variant


class WeightViews:
    """Add W_Q to b_O: views of the wrapped module's weights, an axis of heads first."""

    name: str
    roles: Mapping[str, str]

    if TYPE_CHECKING:  # the bridge has them

        @property
        def variant(self) -> Variant: ...

        def submodule(self, role: str) -> nn.Module: ...

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
        if "o" not in self.roles:
            like = self._input_weight("v")
            width = self.variant.heads * self.variant.d_head_v
            identity: Tensor = torch.eye(width, dtype=like.dtype, device=like.device).unflatten(
                0, (self.variant.heads, -1)
            )
            return identity
        weight: Tensor = weight_of(self._linear("o", "W_O"), "weight")  # (d_model, z_head d_z)
        by_head: Tensor = weight.T.unflatten(0, (-1, self.variant.d_z))
        return by_head

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
        bias: Tensor | None = None
        if "o" in self.roles:
            bias = weight_of(self._linear("o", "b_O"), "bias")
        return bias

    def _input_weight(self, role: str) -> Tensor:
        """Return (head, d_model, width): the weight of query, key or value."""
        projection = self._projection(role, f"W_{role.upper()}")
        weight: Tensor = weight_of(projection, "weight")  # (rows, d_model)
        return self._split(role, weight.T).movedim(0, 1)

    def _bias(self, role: str) -> Tensor | None:
        """Return (head, width): the bias of query, key or value."""
        projection = self._projection(role, f"b_{role.upper()}")
        bias: Tensor | None = weight_of(projection, "bias")  # (rows,)
        return None if bias is None else self._split(role, bias)

    def _projection(self, role: str, what: str) -> nn.Linear:
        """Return the projection that gives query, key or value."""
        self._refuse_latent(role, what)
        self._refuse_adapted(role, what)
        return self._linear("qkv" if "qkv" in self.roles else role, what)

    def _split(self, role: str, rows: Tensor) -> Tensor:
        """Return (..., heads, width): what (..., rows) of a projection are of query, key or
        value."""
        if "qkv" in self.roles:
            return split_fused(rows, self.variant)["qkv".index(role)]
        return (
            split_query(rows, self.variant)[0]
            if role == "q"
            else split_heads(rows, role, self.variant)
        )

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
        whole = isinstance(projection, nn.Linear) and (
            what.startswith("b_") or has_own_weight(projection)
        )
        if isinstance(projection, nn.Linear) and whole:
            return projection
        raise SubmoduleError(
            f"{self.name!r} has no {what} to show: {self.roles[role]!r} is a"
            f" {type(projection).__name__}, and {what} is read off a torch.nn.Linear\n  merge or"
            " dequantise it first (peft: merge_and_unload(), transformers: dequantize()), or run"
            f" it as it is: bridge.submodule({role!r})(x)"
        )


def linear_in(projection: nn.Module, variant: Variant) -> nn.Module:
    """Return the linear map that a family's projection wraps; itself, where it wraps none."""
    within = variant.projections.within
    return projection if within is None else projection.get_submodule(within)


def is_sharded(weight: Any) -> bool:
    """Return whether each rank of a tensor-parallel model holds a part of a weight."""
    return hasattr(weight, "full_tensor")


def has_own_weight(projection: nn.Linear) -> bool:
    """Return whether the weight holds the numbers themselves: packed or rounded to a byte they mean
    nothing without their scales."""
    weight = projection.weight
    return (
        weight.shape == (projection.out_features, projection.in_features)
        and weight.is_floating_point()
        and weight.element_size() > 1
    )
