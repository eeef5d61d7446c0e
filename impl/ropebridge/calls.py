"""Define what the surrounding Hugging Face layer hands to one call: sorted by the contract's names,
checked, and nothing yet computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ropebridge.position import positions
from ropebridge.switches import implementation_of, own_attributes, returns_pattern
from ropebridge_spec import (
    Argument,
    ContractError,
    Source,
    UnsupportedAttention,
    Variant,
    arguments_of,
    cache_layer,
    cache_update_keywords,
    meaning_of,
    parameter_in_role,
    parameters_of,
    refuse_other_causality,
    refuse_unknown_parameters,
)

UPDATED_WITH = ("kwargs",)
"""The keyword arguments of `cache.update` that a bridge can pass on: transformers 5.24 hands it the
call's other arguments as a dict."""


@dataclass(frozen=True)
class Signature:
    """Hold how the wrapped class is called.

    parameters: the names that its forward has, in order. meanings: name -> what it means, whether
        forward names it or not (ARG-1). roles: name -> role of those that are read, "" of those
        that change nothing.
    takes_cache: whether it takes a cache. update_keywords: the keyword arguments with which it
        calls `cache.update`.
    """

    parameters: tuple[str, ...]
    meanings: Mapping[str, Argument]
    roles: Mapping[str, str]
    takes_cache: bool
    update_keywords: tuple[str, ...]


def signature_of(kind: type, variant: Variant) -> Signature:
    """Return how a class is called.

    Raises:
        UnsupportedAttention: its forward has a parameter, or passes its cache a keyword argument,
            whose meaning is not known (ARG-1).
    """
    refuse_unknown_parameters(kind, variant)
    passed_on = cache_update_keywords(kind)
    unknown = [name for name in passed_on if name not in UPDATED_WITH]
    if unknown:
        raise UnsupportedAttention(
            f"{kind.__name__}.forward updates its cache with the keyword arguments"
            f" {', '.join(map(repr, unknown))}; clause ARG-1 requires that each is known:"
            f" {', '.join(UPDATED_WITH)}"
        )
    takes_cache = parameter_in_role(kind, variant, "cache") is not None
    meanings = arguments_of(variant)
    roles = {name: one.role for name, one in meanings.items() if one.use != "refused"}
    return Signature(parameters_of(kind), meanings, roles, takes_cache, passed_on)


class Call(NamedTuple):
    """Hold one call of a layer.

    hidden_states: (batch, pos, d_model). cache_layer: which layer of the cache is this one's.
    update_with: the keyword arguments with which the wrapped class would update the cache. source:
    states of another sequence, None where their keys lie in the cache.
    seen_before, first_key: how many positions the cache has seen, and the position of the first key
        it gives back.
    """

    hidden_states: Tensor
    position_embeddings: Any
    attention_mask: Any
    cache: Any
    cache_layer: int
    update_with: Mapping[str, Any]
    position_ids: Tensor | None
    temperature: Tensor | None
    shared_kv: Any
    picks: Tensor | None
    added_value: Tensor | None
    source: Tensor | None
    wants_pattern: bool
    seen_before: int
    first_key: int

    def ids(self) -> Tensor:
        """Return (batch or 1, pos): the positions of this call, as given, or going on where the
        cache ends, whatever the mask says."""
        return self.counted() if self.position_ids is None else self.position_ids

    def counted(self) -> Tensor:
        """Return (1, pos): the positions that go on where the cache ends."""
        seen_before = 0 if self.cache is None else int(self.cache.get_seq_length(self.cache_layer))
        return positions(seen_before, self.hidden_states.shape[1], self.hidden_states.device)


def read_call(
    name: str,
    module: nn.Module,
    variant: Variant,
    signature: Signature,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Call:
    """Sort what was passed, in the wrapped class's own positional order.

    Raises:
        ContractError: no hidden states, or of another shape; or an argument that is not understood,
            or asks for what the layer does not do (ARG-1).
    """
    # a name that is read would make a compiled graph for each layer
    said = "the layer" if torch.compiler.is_compiling() else repr(name)
    by_role = sort_by_role(said, signature, args, kwargs)
    hidden_states = check_hidden_states(name, by_role.get("hidden_states"), variant.d_model)
    refuse_other_causality(said, variant, by_role.get("is_causal"))
    cache = by_role.get("cache")
    layer = 0  # where nobody asks: its number would make a compiled graph for each layer
    if cache is not None or variant.projections.beside is not None:
        layer = cache_layer(module, by_role.get("layer"), by_role.get("cache_offset"))
    refuse_other_cache(name, cache, signature)
    mask = by_role.get("attention_mask")
    refuse_half_an_encoder(name, module, mask, by_role.get("is_causal"))
    asked = bool(by_role.get("output_attentions")) or returns_pattern(
        getattr(module, "config", None)
    )
    return Call(
        hidden_states=hidden_states,
        position_embeddings=by_role.get("position_embeddings"),
        attention_mask=mask,
        cache=cache,
        cache_layer=layer,
        update_with={
            keyword: unnamed_arguments(signature, kwargs) for keyword in signature.update_keywords
        },
        position_ids=by_role.get("position_ids"),
        temperature=by_role.get("temperature"),
        shared_kv=by_role.get("shared_kv"),
        picks=by_role.get("picks"),
        added_value=by_role.get("added_value"),
        source=read_source(by_role, variant.source, cache, layer),
        wants_pattern=asked,
        **offsets(cache, layer, hidden_states.shape[1], mask, variant),
    )


def sort_by_role(
    said: str, signature: Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return role -> value of the arguments that the layer reads and that are not None (ARG-1)."""
    if len(args) > len(signature.parameters):
        raise ContractError(
            f"{said} was called with {len(args)} positional arguments, and its class takes"
            f" {len(signature.parameters)}: {', '.join(signature.parameters)}"
        )
    by_position = dict(zip(signature.parameters, args, strict=False))
    by_role: dict[str, Any] = {}
    for argument, value in (*by_position.items(), *kwargs.items()):
        if value is None:
            continue
        role = signature.roles.get(argument)
        if role is None:
            role = meaning_of(said, argument, signature.meanings).role  # it refuses
        if role and by_role.setdefault(role, value) is not value:
            raise ContractError(
                f"{said} was called with two values for {role}, one of them as {argument}; pass one"
            )
    return by_role


def unnamed_arguments(signature: Signature, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a call that the class's forward does not name: what it passes
    on."""
    return {
        argument: value
        for argument, value in kwargs.items()
        if argument not in signature.parameters
    }


def refuse_other_cache(name: str, cache: Any, signature: Signature) -> None:
    """Refuse a cache that the wrapped class does not take, or that cannot say how many positions it
    holds: a paged one."""
    if cache is None:
        return
    if not signature.takes_cache:
        raise ContractError(
            f"{name!r} was called with a cache, and its class takes none; clause ARG-1 refuses it:"
            " call the model with use_cache=False"
        )
    if not hasattr(cache, "get_seq_length"):
        raise ContractError(
            f"{name!r} was called with a {type(cache).__name__}, which has no get_seq_length();"
            " clause ARG-1 refuses paged caches: generate with a DynamicCache or a StaticCache"
        )


def refuse_half_an_encoder(name: str, module: Any, mask: Any, is_causal: Any) -> None:
    """Refuse a call in which the model around says nothing of what its config asks for: sdpa is
    then causal all the same, and the layer is not."""
    if mask is not None or is_causal is not None:
        return
    config = getattr(module, "config", None)
    if own_attributes(config).get("is_causal") is not False:
        return
    by_sdpa = implementation_of(config) == "sdpa"
    if by_sdpa and getattr(module, "is_causal", True):
        raise ContractError(
            f"{name!r} was called without a mask and without is_causal, and its config asks for"
            " attention to later positions (is_causal=False); transformers' sdpa would be causal"
            " here (MASK-2)\n  call model.set_attn_implementation('eager'), or pass a four-axis"
            " attention_mask"
        )


def check_hidden_states(name: str, hidden_states: Any, d_model: int) -> Tensor:
    """Return the hidden states, of the shape clause IN-2 requires."""
    if not isinstance(hidden_states, Tensor):
        raise ContractError(
            f"{name!r} was given no hidden_states; clause IN-1 requires a tensor (batch, pos,"
            f" {d_model})"
        )
    if hidden_states.ndim != 3 or hidden_states.shape[-1] != d_model:
        raise ContractError(
            f"{name!r} was given hidden_states of shape {tuple(hidden_states.shape)}; clause IN-2"
            f" requires (batch, pos, {d_model})\n  axes: batch pos d_model\n  with:"
            f" d_model={d_model}"
        )
    return hidden_states


def offsets(cache: Any, layer: int, pos: int, mask: Any, variant: Variant) -> dict[str, int]:
    """Return how many positions the cache has seen, and the position of the first key it will give
    back.

    A mask that has queries says all of that itself (MASK-1), and in a layer that sees everything
    there is nothing to say; then the cache is not asked, and a compiled graph not broken.
    """
    says_all = mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2)
    sees_all = not variant.causal and variant.window is None and variant.chunk is None
    if cache is None or says_all or sees_all:
        return {"seen_before": 0, "first_key": 0}
    _, first_key = cache.get_mask_sizes(pos, layer)
    return {"seen_before": int(cache.get_seq_length(layer)), "first_key": int(first_key)}


def read_source(
    by_role: Mapping[str, Any], source: Source | None, cache: Any, layer: int
) -> Tensor | None:
    """Return (batch, source, d_model): the states of another sequence; None where keys of it were
    made before, and lie in the cache (KV-2)."""
    if source is None or (
        source.place == "after" and cache is not None and cache.is_updated.get(layer)
    ):
        return None
    states: Tensor | None = by_role.get("source")
    return states


def return_values(
    names: Sequence[str],
    module: nn.Module,
    call: Call,
    out: Tensor,
    pattern: Tensor | None,
    picks: Tensor | None,
) -> tuple[Any, ...]:
    """Return what the wrapped class returns, in its order; the pattern whole, or in its parts over
    own keys and those of a sequence after them."""
    made = {
        "out": out,
        "pattern": pattern,
        "pattern_own": pattern,
        "pattern_source": None,
        "picks": picks,
    }
    if pattern is not None and call.source is not None:
        own = pattern.shape[-1] - call.source.shape[1]
        made |= {"pattern_own": pattern[..., :own], "pattern_source": pattern[..., own:]}
    return tuple(made[name] if name in made else getattr(module, name) for name in names)
