"""The production bridge: rotary attention, stage by stage, each stage ending in its hooks. Work follows demand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ropebridge import kernels
from ropebridge.base import AttentionBridge, split_heads
from ropebridge.inputs import random_inputs
from ropebridge.masks import Visibility, read_mask
from ropebridge.norms import by_formula, normalise
from ropebridge.position import PositionEmbeddingHooksMixin, Tables, positions
from ropebridge.rotary import rotate
from ropebridge_spec import ContractError, NotBound

CACHES = ("past_key_values", "layer_past")
"""Names under which transformers hands a layer its cache."""


@dataclass(frozen=True)
class Call:
    """What the surrounding Hugging Face layer hands to one call."""

    hidden_states: Tensor
    position_embeddings: Any
    attention_mask: Any
    cache: Any
    position_ids: Tensor | None
    wants_pattern: bool
    seen_before: int
    first_key: int


class PositionEmbeddingsAttentionBridge(PositionEmbeddingHooksMixin, AttentionBridge):
    """Attention that is given rotary position embeddings, with a hook at every stage.

    The hook points are those of `ropebridge_spec.hook_order(variant)`. `forward` takes what the wrapped module takes,
    and returns what it returns: the output, and `hook_pattern` where `output_attentions` asks for it, else None.

    Args:
        name: full name in the model, `blocks.{layer}.attn`.
        config: the model's config, or None.
        submodules: role -> attribute name, as an adapter declares it; None takes the family's names (CFG-4).
        optional: the model may have no such component (CFG-1).
        requires_attention_mask: `get_random_inputs` gives an explicit mask (CFG-2).
        requires_position_embeddings: a rotating layer refuses to run without tables (CFG-3).
        **kwargs: `use_attn_in`, `use_split_qkv_input`, `use_attn_result` opt in to hook points; `families` adds to
            what `describe` knows.
    """

    def __init__(
        self,
        name: str,
        config: Any,
        submodules: Mapping[str, Any] | None = None,
        optional: bool = False,
        requires_attention_mask: bool = True,
        requires_position_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, config, submodules, optional, requires_attention_mask, requires_position_embeddings, **kwargs)

    def set_original_component(self, component: nn.Module | None) -> None:
        """Wire the Hugging Face module, validate what was declared, and take its own rotary module if it owns one."""
        super().set_original_component(component)
        own_rotary = getattr(component, "rotary_emb", None)
        if self.rotary_emb is None and isinstance(own_rotary, nn.Module):
            self.set_rotary_emb(own_rotary)

    def get_random_inputs(
        self,
        batch_size: int = 2,
        seq_len: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        left_padding: int = 0,
    ) -> dict[str, Any]:
        """Inputs for one call of the layer, with the model's own rotary tables.

        Args:
            batch_size, seq_len: sizes of hidden_states (batch_size, seq_len, d_model), standard normal.
            device, dtype: None means the module's own.
            seed, generator: make the numbers repeatable; give one of them at most.
            left_padding: positions that the last of the batch is padded by on the left; earlier ones by less.

        Returns:
            `hidden_states`, `position_embeddings` (cos, sin) and `attention_mask`: additive, (batch, 1, query, key),
            causal and windowed; None where the bridge was built with requires_attention_mask=False and nothing is padded.

        Raises:
            RotaryMissing: there is no rotary module to make the tables with.
        """
        return random_inputs(self, batch_size, seq_len, device, dtype, seed, generator, left_padding)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """The layer: hidden states (batch, pos, d_model) to output (batch, pos, d_model) and, when asked, the pattern.

        Raises:
            ContractError, MaskError: an input that does not fit, or an edit that breaks the contract.
            NotBound: `set_original_component` was not called.
        """
        call = self._read_call(args, kwargs)
        self._edits.begin()
        x = self.hook("hook_in")(call.hidden_states, shared=True)
        q, k, v = self._project(x)
        q, k = self._normalise(q, k)
        q, k = self._rotate(q, k, self.tables(call.position_embeddings, x, partial(self._position_ids, call)))
        keys, values = self._remember(k, v, call.cache)
        z, pattern = self._attend(q, keys, values, self._visibility(call, keys.shape[2]), call.wants_pattern)
        out = F.dropout(self._output(z), self.variant.output_dropout, self._training)
        self._edits.end(self.name, call.position_embeddings)
        return out, pattern

    # ---- project ----

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hook_q, hook_k, hook_v (PROJ-1), from split inputs where those are opted in to (SPLIT-1)."""
        q, k, v = self._heads(x)
        k, v = self._spread_heads(k), self._spread_heads(v)
        if "attn_in" in self.opted_in and self.hook("hook_attn_in").watched:
            moved = self._moved("hook_attn_in", x, self.variant.heads)
            q, k, v = q + along(moved, self.W_Q), k + along(moved, self._spread(self.W_K)), v + along(moved, self._spread(self.W_V))
        if "split_qkv_input" in self.opted_in:
            q, k, v = (self._split(r, x, t) for r, t in (("q", q), ("k", k), ("v", v)))
        return self.hook("hook_q")(q, shared=True), self.hook("hook_k")(k, shared=True), self.hook("hook_v")(v, shared=True)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value head by head, through the wrapped module's own projections."""
        if "qkv" in self._roles:
            parts = split_heads(self.submodule("qkv")(x), self.variant)
            return parts["q"], parts["k"], parts["v"]
        q, k, v = (self.submodule(role)(x).unflatten(-1, (self.heads_of(role), -1)) for role in "qkv")
        return q, k, v

    def _spread_heads(self, heads: Tensor) -> Tensor:
        """Key or value heads; one for each query head under `attn_in` (SPLIT-3)."""
        return heads if self.effective.kv_heads == self.variant.kv_heads else heads.repeat_interleave(self.variant.group, dim=2)

    def _spread(self, weight: Tensor) -> Tensor:
        return weight.repeat_interleave(self.effective.kv_heads // self.variant.kv_heads, dim=0)

    def _split(self, role: str, x: Tensor, projected: Tensor) -> Tensor:
        """A projection whose heads read hook_{role}_input; only what an edit moved goes through the weights again."""
        if not self.hook(f"hook_{role}_input").watched:
            return projected
        weight: Tensor = getattr(self, f"W_{role.upper()}")
        return projected + along(self._moved(f"hook_{role}_input", x, projected.shape[2]), weight)

    def _moved(self, name: str, x: Tensor, heads: int) -> Tensor:
        """How far the hooks moved each head's copy of x: exactly 0 where they only looked (LOOK-1)."""
        copies = x.unsqueeze(2).expand(-1, -1, heads, -1)
        return self.hook(name)(copies, shared=True) - copies

    # ---- norm and rotate ----

    def _normalise(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """hook_q_normed, hook_k_normed (NORM-1), in the family's axes."""
        norm = self.variant.norm
        if norm is None:
            return q, k
        if norm.over == "flat":
            return self._norm_flat("q", q), self._norm_flat("k", k)
        q = self.hook("hook_q_normed")(normalise(q, self.submodule("q_norm"), norm))
        return q, self.hook("hook_k_normed")(self._norm_keys(k))

    def _norm_flat(self, role: str, heads: Tensor) -> Tensor:
        assert self.variant.norm is not None
        module: Any = self.submodule(f"{role}_norm")
        flat = heads.flatten(-2)
        if flat.shape[-1] == module.weight.shape[0]:
            normed = normalise(flat, module, self.variant.norm)
        else:  # a key for every query head (SPLIT-3): the module's weight does not fit, each kv head's part of it does
            by_head = self._spread(module.weight.unflatten(0, (self.variant.kv_heads, -1)))
            normed = by_formula(flat, by_head.flatten(), self.variant.norm)
        by_heads: Tensor = self.hook(f"hook_{role}_normed")(normed).unflatten(-1, heads.shape[-2:])
        return by_heads

    def _norm_keys(self, k: Tensor) -> Tensor:
        """Keys normed by kv head: a norm with a weight a head has one for each kv head, however many query heads read it."""
        assert self.variant.norm is not None
        by_kv_head = k.unflatten(2, (self.variant.kv_heads, -1)).transpose(2, 3)
        return normalise(by_kv_head, self.submodule("k_norm"), self.variant.norm).transpose(2, 3).flatten(2, 3)

    def _rotate(self, q: Tensor, k: Tensor, tables: Tables | None) -> tuple[Tensor, Tensor]:
        """hook_rot_q, hook_rot_k (ROT-1); in a layer that does not rotate, copies of query and key."""
        rotary = self.variant.rotary
        if rotary is not None and tables is not None:
            q, k = rotate(q, *tables, rotary), rotate(k, *tables, rotary)
        still = rotary is None
        return self.hook("hook_rot_q")(q, shared=still), self.hook("hook_rot_k")(k, shared=still)

    # ---- attend ----

    def _remember(self, k: Tensor, v: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (batch kv_head key d_head), those of earlier calls included (CACHE-1, EDIT-4)."""
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if cache is None:
            return k, v
        module: Any = self.original_component
        keys, values = cache.update(k, v, module.layer_idx)
        return keys, values

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Visibility, wants_pattern: bool) -> tuple[Tensor, Tensor | None]:
        """hook_attn_scores, hook_pattern, hook_z. The one place that chooses how z is made."""
        variant, q, dropout = self.effective, q.transpose(1, 2), self._dropout()
        saved = False
        pattern = None
        if wants_pattern or self.hook("hook_attn_scores").watched or self.hook("hook_pattern").watched:
            shown = self.hook("hook_pattern").watched
            z, pattern = self._watched(q, k, v, seen, dropout)
            pattern = pattern.clone() if wants_pattern and shown else pattern  # what hooks were shown is nobody else's (EDIT-2)
        elif dropout or variant.softcap is not None or variant.sinks is not None or variant.d_head_v != variant.d_head:
            z = kernels.explicit(q, k, v, seen, variant, self._sinks(), dropout)
        else:
            z, saved = kernels.fused(q, k, v, seen, variant), torch.is_grad_enabled()
        return self.hook("hook_z")(z.transpose(1, 2), shared=saved), pattern

    def _watched(self, q: Tensor, k: Tensor, v: Tensor, seen: Visibility, dropout: float) -> tuple[Tensor, Tensor]:
        """z and the pattern, with scores and pattern made whole, once, and shown (SCORE-1, PAT-1)."""
        rows, keys = slice(0, seen.query), slice(0, seen.key)
        scores = self.hook("hook_attn_scores")(kernels.score(q, k, seen.block(rows, keys), self.effective))
        pattern = self.hook("hook_pattern")(kernels.softmax(scores, self._sinks()), shared=torch.is_grad_enabled())
        return kernels.mix(kernels.drop(pattern, dropout), v), pattern

    def _dropout(self) -> float:
        """The rate of dropout in this call (DROP-1): the wrapped module says whether it trains."""
        return self.variant.dropout if self._training else 0.0

    @property
    def _training(self) -> bool:
        """Whether the wrapped module trains."""
        return self.original_component is not None and self.original_component.training

    def _sinks(self) -> Tensor | None:
        return None if self.variant.sinks is None else getattr(self.original_component, self.variant.sinks)

    # ---- output ----

    def _output(self, z: Tensor) -> Tensor:
        """hook_result where opted in to (RES-1), hook_out (OUT-1)."""
        out: Tensor = self.submodule("o")(z.flatten(-2))
        if "attn_result" in self.opted_in and self.hook("hook_result").watched:
            out = (out + self._moved_results(z)).to(out.dtype)
        return self.hook("hook_out")(out, shared=True)

    def _moved_results(self, z: Tensor) -> Tensor:
        """How far the hooks moved the sum of results: exactly 0 where they only looked (LOOK-1)."""
        results = along(z, self.W_O)
        moved: Tensor = self.hook("hook_result")(results, shared=True).to(torch.promote_types(z.dtype, torch.float32)) - results
        return moved.sum(2)

    # ---- what the call brings ----

    def _read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Sort what the surrounding layer passed, in the wrapped class's own positional order."""
        if self.original_component is None:
            raise NotBound(f"{type(self).__name__} {self.name!r} has no attention module yet; call set_original_component(module) first")
        given = {**dict(zip(self._positional, args, strict=False)), **kwargs}
        hidden_states = self._checked(given.get("hidden_states"))
        refuse_bidirectional(self.name, given.get("is_causal"))
        cache, module = next((given[name] for name in CACHES if given.get(name) is not None), None), self.original_component
        config_asks = bool(getattr(getattr(module, "config", None), "output_attentions", False))
        return Call(
            hidden_states=hidden_states,
            position_embeddings=given.get("position_embeddings"),
            attention_mask=given.get("attention_mask"),
            cache=cache,
            position_ids=given.get("position_ids"),
            wants_pattern=bool(given.get("output_attentions")) or config_asks,
            **self._offsets(cache, hidden_states.shape[1], given.get("attention_mask")),
        )

    def _checked(self, hidden_states: Any) -> Tensor:
        """The hidden states, of the shape clause IN-2 requires."""
        d_model = self.variant.d_model
        if not isinstance(hidden_states, Tensor):
            raise ContractError(f"{self.name!r} was given no hidden_states; clause IN-1 requires a tensor (batch, pos, {d_model})")
        if hidden_states.ndim != 3 or hidden_states.shape[-1] != d_model:
            raise ContractError(
                f"{self.name!r} was given hidden_states of shape {tuple(hidden_states.shape)}; clause IN-2 requires (batch, pos, {d_model})\n"
                f"  axes: batch pos d_model\n"
                f"  with: d_model={d_model}"
            )
        return hidden_states

    def _offsets(self, cache: Any, pos: int, mask: Any) -> dict[str, int]:
        """How many positions the cache has seen, and the position of the first key it will give back.

        A four-axis mask says all of that itself (MASK-1); then the cache is not asked, and a compiled graph not broken.
        """
        if cache is None or (isinstance(mask, Tensor) and mask.ndim == 4):
            return {"seen_before": 0, "first_key": 0}
        layer: Any = getattr(self.original_component, "layer_idx", 0)
        _, first_key = cache.get_mask_sizes(pos, layer)
        return {"seen_before": int(cache.get_seq_length(layer)), "first_key": int(first_key)}

    def _position_ids(self, call: Call) -> Tensor:
        """The positions of this call: as given, or going on where the cache ends, whatever the mask says."""
        if call.position_ids is not None:
            return call.position_ids
        seen_before = 0 if call.cache is None else int(call.cache.get_seq_length(getattr(self.original_component, "layer_idx", 0)))
        return positions(seen_before, call.hidden_states.shape[1], call.hidden_states.device)

    def _visibility(self, call: Call, key: int) -> Visibility:
        """What each query may see: the mask that was handed down, or causality and window (MASK-1 to MASK-4)."""
        batch, query, _ = call.hidden_states.shape
        mask, padding = read_mask(call.attention_mask, batch=batch, heads=self.variant.heads, query=query, key=key)
        device = call.hidden_states.device
        return Visibility(query, key, device, call.seen_before, call.first_key, self.variant.window, mask, padding)


def refuse_bidirectional(name: str, is_causal: object) -> None:
    """Refuse a call that asks for attention to later positions: without a mask the layer would be causal all the same."""
    if is_causal is False:
        raise ContractError(
            f"{name!r} was called with is_causal=False; clause MASK-2 serves causal attention only\n  pass a four-axis attention_mask that says it"
        )


def along(heads: Tensor, weight: Tensor) -> Tensor:
    """(batch, pos, head, n) through (head, n, m): each head by its own weights."""
    return torch.einsum("bphn,hnm->bphm", heads, weight)
