"""Module's learned tensors, as the reference wants them. Read anew each time: a weight that changes
is seen."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from operator import is_ as is_same
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ropebridge_reference import Affine, Weights
from ropebridge_spec import Gate, Latent, Norm, Variant

Linear = tuple[Tensor, Tensor | None]
"""Weight (rows, columns) and bias (rows,) of a projection."""
Named = dict[str, Tensor | None]
"""Tensors by their names in `Weights`."""


def read_weights(module: nn.Module, variant: Variant, dtype: torch.dtype | None = None) -> Weights:
    """Return the weights head by head, in the module's dtype or another."""
    source: Any = module if dtype is None else Cast(module, dtype)
    o, b_o = (
        (None, None)
        if variant.projections.o is None
        else linear_of(source, variant.projections.o, variant.projections.within)
    )
    norms: dict[str, Any] = {
        role: read_affine(getattr(source, name), variant.norm_in(role))
        for role, name in variant.norm_roles.items()
    }
    heads: dict[str, Any] = (
        read_heads(source, variant)
        if variant.latent is None
        else read_latents(source, variant, variant.latent)
    )
    bias: dict[str, Any] = read_key_bias(source, variant)
    gate: dict[str, Any] = (
        {}
        if variant.gate is None or variant.gate.in_query
        else read_gate(source, variant.gate, variant)
    )
    return Weights(
        W_O=rearrange(
            identity(source, variant) if o is None else o,
            "d_model (head d_head) -> head d_head d_model",
            head=variant.z_heads,
        ),
        b_O=b_o,
        lambdas=read_lambdas(source, variant),
        **bias,
        adapters=read_adapters(source, variant),
        alpha=attrgetter(variant.exclusive)(source) if variant.exclusive else None,
        sinks=getattr(source, variant.sinks) if variant.sinks else None,
        **heads,
        **norms,
        **gate,
    )


class WeightsOnce:
    """Read the weights of a module, and again only where one of its tensors is another, or was
    written to."""

    def __init__(self, module: nn.Module, variant: Variant) -> None:
        self.module, self.variant = module, variant
        self._read: Weights | None = None
        self._tensors: list[Tensor] = []
        self._versions: list[int] = []

    def read(self) -> Weights:
        """Return the weights as they are now, head by head, in the module's dtype."""
        tensors = [*self.module.parameters(), *self.module.buffers()]
        if any(tensor.requires_grad or tensor.is_inference() for tensor in tensors):
            return read_weights(self.module, self.variant)
        versions = [tensor._version for tensor in tensors]
        same = len(tensors) == len(self._tensors) and all(map(is_same, tensors, self._tensors))
        if self._read is None or not same or versions != self._versions:
            self._read = read_weights(self.module, self.variant)
            self._tensors, self._versions = tensors, versions
        return self._read


class Cast:
    """Hold a module whose tensors come in another dtype."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.module, self.dtype = module, dtype

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.module, name)
        if isinstance(value, Tensor):
            return value.to(self.dtype)
        return Cast(value, self.dtype) if isinstance(value, nn.Module) else value

    def __iter__(self) -> Iterator[Cast]:
        return (Cast(part, self.dtype) for part in self.module.children())


def linear_of(module: Any, name: str, within: str | None = None) -> Linear:
    """Return weight and bias of a projection, or of the linear map within it."""
    projection = attrgetter(name)(module)
    projection = projection if within is None else getattr(projection, within)
    return projection.weight, projection.bias


def identity(module: Any, variant: Variant) -> Tensor:
    """Return what stands for the output projection of a module that leaves it to the layer
    around."""
    like: Tensor = getattr(module, variant.projections.v).weight
    return torch.eye(variant.heads * variant.d_head_v, dtype=like.dtype, device=like.device)


def read_heads(module: Any, variant: Variant) -> Named:
    """Return W and b of query, key and value, and of a gate between the query's rows."""
    q, *others = read_projections(module, variant)
    found = query_and_gate(q, variant)
    for role, linear in zip("KV", others, strict=False):
        found |= by_head(role, linear, variant.kv_heads)
    return found


def query_and_gate(q: Linear, variant: Variant) -> Named:
    """Return W and b of the query, and of a gate between its rows."""
    if variant.gate is None or not variant.gate.in_query:
        return by_head("Q", q, variant.heads)
    q, gate = by_turns(q, variant.heads, [variant.d_head, variant.d_head_v])
    return by_head("G", gate, variant.heads) | by_head("Q", q, variant.heads)


def by_head(role: str, linear: Linear, heads: int) -> Named:
    """Return W_role and b_role of a projection, head by head."""
    weight, bias = linear
    return {
        f"W_{role}": rearrange(weight, "(head width) d_model -> head d_model width", head=heads),
        f"b_{role}": (
            None if bias is None else rearrange(bias, "(head width) -> head width", head=heads)
        ),
    }


def by_turns(linear: Linear, heads: int, widths: list[int]) -> list[Linear]:
    """Return a projection whose rows are, head by head, those of one thing and then of another."""
    weight, bias = linear
    weights = [
        rearrange(part, "head width ... -> (head width) ...")
        for part in weight.unflatten(0, (heads, -1)).split(widths, dim=1)
    ]
    biases = (
        [None, None]
        if bias is None
        else [part.flatten() for part in bias.unflatten(0, (heads, -1)).split(widths, dim=1)]
    )
    return list(zip(weights, biases, strict=True))


def read_projections(module: Any, variant: Variant) -> list[Linear]:
    """Return query, key and value as far as there are projections for them, of a fused projection
    each its own rows."""
    names = variant.projections
    if names.fused is None:
        return [
            linear_of(module, variant.roles[role], names.within)
            for role in "qkv"
            if role in variant.roles
        ]
    weight, bias = linear_of(module, names.fused)
    weights = own_rows(weight, variant)
    biases = [None] * 3 if bias is None else own_rows(bias, variant)
    return list(zip(weights, biases, strict=True))


def own_rows(fused: Tensor, variant: Variant) -> list[Tensor]:
    """Return the rows of query, key and value in a fused tensor."""
    if variant.projections.layout == "groups":
        parts = rearrange(
            fused,
            "(kv_head part d_head) ... -> kv_head part d_head ...",
            kv_head=variant.kv_heads,
            d_head=variant.d_head,
        )
        return [
            rearrange(part, "kv_head part d_head ... -> (kv_head part d_head) ...")
            for part in parts.split([variant.group, 1, 1], dim=1)
        ]
    if variant.projections.layout == "quarters":
        q, v, k = rearrange(
            fused, "(quarter role rows) ... -> role (quarter rows) ...", quarter=4, role=3
        )
        return [q, k, v]
    sizes = (
        variant.heads * variant.d_head,
        variant.kv_heads * variant.d_head,
        variant.kv_heads * variant.d_head_v,
    )
    return list(fused.split(sizes))


def read_latents(module: Any, variant: Variant, latent: Latent) -> Named:
    """Return the projections of multi-head latent attention, down and up."""
    q, q_down = (
        (variant.projections.q, None) if latent.q_rank is None else (latent.q_up, latent.q_down)
    )
    down = linear_of(module, latent.kv_down)
    shared = down_to("KR", down, slice(latent.kv_rank, None))
    return {
        **({} if q_down is None else down_to("DQ", linear_of(module, q_down), slice(None))),
        **down_to("DKV", down, slice(None, latent.kv_rank)),
        **query_and_gate(linear_of(module, q), variant),
        **up_to_keys_and_values(getattr(module, latent.kv_up), variant),
        **{
            name: None if rows is None else repeat(rows, "... -> head ...", head=variant.heads)
            for name, rows in shared.items()
        },
    }


def down_to(role: str, linear: Linear, rows: slice) -> Named:
    """Return W_role (d_model, rank) and b_role (rank,) of some rows of a projection down."""
    weight, bias = linear
    return {f"W_{role}": weight[rows].T, f"b_{role}": None if bias is None else bias[rows]}


def up_to_keys_and_values(up: Any, variant: Variant) -> Named:
    """Return W_K and W_V of the projection that gives, head by head, a key's part and then a
    value."""
    rows = rearrange(up.weight, "(head rows) rank -> head rank rows", head=variant.heads)
    return {"W_K": rows[..., : -variant.d_head_v], "W_V": rows[..., -variant.d_head_v :]}


def read_gate(module: Any, gate: Gate, variant: Variant) -> Named:
    """Return W_G and b_G of a gate that has a projection of its own."""
    found = by_head("G", linear_of(module, gate.module), variant.heads)
    if gate.bias is not None:
        beside = repeat(
            getattr(module, gate.bias),
            "head -> head width",
            width=variant.d_head_v if gate.per == "channel" else 1,
        )
        found["b_G"] = beside if found["b_G"] is None else found["b_G"] + beside
    return found


def adapted_layer(module: Any) -> tuple[int, int]:
    """Return which layer a module that layers share can be called for, and the number of that
    layer's adapters."""
    lists = getattr(module, "linear_q_adapter_list", [nn.Sequential()])
    return next(
        (layer, number)
        for layer, number in module.layer_dic.items()
        if isinstance(lists[number], nn.Sequential)
    )


def read_adapters(module: Any, variant: Variant) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the maps down and up beside each projection, of the layer that calls are for."""
    beside = variant.projections.beside
    if beside is None:
        return {}
    _, number = adapted_layer(module.module if isinstance(module, Cast) else module)
    found = {}
    for role, heads in (("q", variant.heads), ("k", variant.kv_heads), ("v", variant.kv_heads)):
        down, up = (
            part.weight for part in list(list(getattr(module, beside.format(role)))[number])
        )
        found[role.upper()] = (
            down.T,
            rearrange(up, "(head width) adapter -> head adapter width", head=heads),
        )
    return found


def read_lambdas(module: Any, variant: Variant) -> Tensor | None:
    """Return q1, k1, q2 and k2 of differential attention."""
    kind = variant.differential
    return (
        None
        if kind is None
        else torch.stack([getattr(module, name) for name in (kind.q1, kind.k1, kind.q2, kind.k2)])
    )


def read_key_bias(module: Any, variant: Variant) -> Named:
    """Return W_dt, b_dt and A of a key's bias."""
    if variant.key_bias is None:
        return {}
    weight, bias = linear_of(module, variant.key_bias.projection)
    rows = rearrange(
        weight,
        "kv_head (from_kv_head d_head) -> kv_head from_kv_head d_head",
        from_kv_head=variant.kv_heads,
    )
    return {"W_dt": rows, "b_dt": bias, "A": getattr(module, variant.key_bias.factor)}


def read_affine(module: Any, norm: Norm) -> Affine:
    """Return weight and bias of a norm; one row per head, where each head has a module of its
    own."""
    if norm.module_per_head:
        parts = list(module.norms)
        return Affine(
            torch.stack([part.weight for part in parts]),
            torch.stack([part.bias for part in parts]) if norm.bias else None,
        )
    return Affine(
        None if norm.weight == "none" else module.weight, module.bias if norm.bias else None
    )
