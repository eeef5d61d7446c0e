"""What the surrounding Hugging Face layer hands to one call: sorted, checked, and nothing yet computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ropebridge.position import positions
from ropebridge_spec import ContractError, Source, Variant

CACHES = ("past_key_values", "layer_past")
"""Names under which transformers hands a layer its cache."""
CROSSING = ("key_value_states", "encoder_hidden_states")
"""Names under which transformers hands a layer another sequence to attend to."""


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    hidden_states: (batch, pos, d_model). cache_layer: which layer of the cache is this one's. source: states of another sequence, None where
    their keys lie in the cache. seen_before, first_key: how many positions the cache has seen, and the position of the first key it gives back.
    """

    hidden_states: Tensor
    position_embeddings: Any
    attention_mask: Any
    cache: Any
    cache_layer: int
    position_ids: Tensor | None
    temperature: Tensor | None
    shared_kv: Any
    picks: Tensor | None
    value_added: Tensor | None
    source: Tensor | None
    wants_pattern: bool
    seen_before: int
    first_key: int

    def ids(self) -> Tensor:
        """(batch or 1, pos): the positions of this call, as given, or going on where the cache ends, whatever the mask says."""
        return self.counted() if self.position_ids is None else self.position_ids

    def counted(self) -> Tensor:
        """(1, pos): the positions that go on where the cache ends."""
        seen_before = 0 if self.cache is None else int(self.cache.get_seq_length(self.cache_layer))
        return positions(seen_before, self.hidden_states.shape[1], self.hidden_states.device)


def read_call(name: str, module: nn.Module, variant: Variant, positional: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """Sort what was passed, in the wrapped class's own positional order.

    Raises:
        ContractError: no hidden states, or of another shape; or something is asked for that the layer does not do.
    """
    given = {**dict(zip(positional, args, strict=False)), **kwargs}
    hidden_states = checked(name, given.get("hidden_states"), variant.d_model)
    refuse_crossing(name, given, positional, variant.source)
    if variant.causal:
        refuse_bidirectional(name, given.get("is_causal"))
    calling, config = variant.calling, getattr(module, "config", None)
    cache, layer = next((given[entry] for entry in CACHES if given.get(entry) is not None), None), layer_of(given, module, variant)
    mask = given.get("attention_mask", given.get(calling.mask_in))
    return Call(
        hidden_states=hidden_states,
        position_embeddings=given.get("position_embeddings", given.get(calling.tables_in)),
        attention_mask=mask,
        cache=cache,
        cache_layer=layer,
        position_ids=given.get("position_ids"),
        temperature=given.get(variant.temperature.given or "") if variant.temperature else None,
        shared_kv=given.get(variant.kv_given or calling.kv_left or ""),
        picks=given.get(variant.selector.given or "") if variant.selector else None,
        value_added=given.get(variant.value_added or ""),
        source=source_of(given, variant.source, cache, layer),
        wants_pattern=bool(given.get("output_attentions")) or bool(getattr(config, "output_attentions", False)),
        **offsets(cache, layer, hidden_states.shape[1], mask),
    )


def checked(name: str, hidden_states: Any, d_model: int) -> Tensor:
    """The hidden states, of the shape clause IN-2 requires."""
    if not isinstance(hidden_states, Tensor):
        raise ContractError(f"{name!r} was given no hidden_states; clause IN-1 requires a tensor (batch, pos, {d_model})")
    if hidden_states.ndim != 3 or hidden_states.shape[-1] != d_model:
        raise ContractError(
            f"{name!r} was given hidden_states of shape {tuple(hidden_states.shape)}; clause IN-2 requires (batch, pos, {d_model})\n"
            f"  axes: batch pos d_model\n"
            f"  with: d_model={d_model}"
        )
    return hidden_states


def layer_of(given: Mapping[str, Any], module: nn.Module, variant: Variant) -> int:
    """Which layer of the cache is this call's: the module's own number or the one that is named, further on by an offset where the family has one."""
    named = given.get(variant.calling.layer or "", getattr(module, "layer_idx", None))
    offset = variant.calling.cache_offset
    return (named or 0) + (given.get(offset, 0) if offset else 0)


def offsets(cache: Any, layer: int, pos: int, mask: Any) -> dict[str, int]:
    """How many positions the cache has seen, and the position of the first key it will give back.

    A mask that has queries says all of that itself (MASK-1); then the cache is not asked, and a compiled graph not broken.
    """
    if cache is None or not (mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)):
        return {"seen_before": 0, "first_key": 0}
    _, first_key = cache.get_mask_sizes(pos, layer)
    return {"seen_before": int(cache.get_seq_length(layer)), "first_key": int(first_key)}


def source_of(given: Mapping[str, Any], source: Source | None, cache: Any, layer: int) -> Tensor | None:
    """The states of another sequence; None where keys of it were made before, and lie in the cache (KV-2)."""
    if source is None or (source.place == "after" and cache is not None and cache.is_updated.get(layer)):
        return None
    states: Tensor | None = given.get(source.argument)
    return states


def returned(names: Sequence[str], module: nn.Module, call: Call, out: Tensor, pattern: Tensor | None, picks: Tensor | None) -> tuple[Any, ...]:
    """What the wrapped class returns, in its order; the pattern whole, or in its parts over own keys and those of a sequence after them."""
    made = {"out": out, "pattern": pattern, "pattern_own": pattern, "pattern_source": None, "picks": picks}
    if pattern is not None and call.source is not None:
        own = pattern.shape[-1] - call.source.shape[1]
        made |= {"pattern_own": pattern[..., :own], "pattern_source": pattern[..., own:]}
    return tuple(made[name] if name in made else getattr(module, name) for name in names)


def refuse_crossing(name: str, given: Mapping[str, Any], positional: Sequence[str], source: Source | None) -> None:
    """Refuse a call that asks for attention to another sequence, of a class that can but a layer that does not."""
    asked = [entry for entry in CROSSING if entry in positional and given.get(entry) is not None and (source is None or entry != source.argument)]
    if asked:
        raise ContractError(
            f"{name!r} was given {', '.join(asked)}, and its layer attends to its own hidden_states\n"
            f"  cross-attention is not rotated, and has no bridge: attach to the part of the model without it"
        )


def refuse_bidirectional(name: str, is_causal: object) -> None:
    """Refuse a call that asks for attention to later positions: without a mask the layer would be causal all the same."""
    if is_causal is False:
        raise ContractError(
            f"{name!r} was called with is_causal=False, and its layer is causal (MASK-2)\n  pass a four-axis attention_mask that says what each query may see"
        )
