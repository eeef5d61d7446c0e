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
from ropebridge.base import AttentionBridge
from ropebridge.inputs import random_inputs
from ropebridge.masks import Visibility, read_mask
from ropebridge.norms import affine, by_formula, normalise
from ropebridge.position import PositionEmbeddingHooksMixin, Tables, positions
from ropebridge.rotary import rotate
from ropebridge_spec import ContractError, Latent, Norm, NotBound, shared_key

CACHES = ("past_key_values", "layer_past")
"""Names under which transformers hands a layer its cache."""


@dataclass(frozen=True)
class Call:
    """What the surrounding Hugging Face layer hands to one call."""

    hidden_states: Tensor
    position_embeddings: Any
    attention_mask: Any
    cache: Any
    cache_layer: int
    position_ids: Tensor | None
    temperature: Tensor | None
    shared_kv: Any
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

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The layer: hidden states (batch, pos, d_model) to output (batch, pos, d_model) and, when asked, the pattern, else None.

        Raises:
            ContractError, MaskError: an input that does not fit, or an edit that breaks the contract.
            NotBound: `set_original_component` was not called.
        """
        call = self._read_call(args, kwargs)
        self._edits.begin()
        x = self.hook("hook_in")(call.hidden_states, shared=True)
        heads = self._project(x)
        heads = self._place(heads, call, x)
        q = self._temper(heads["q"], call)
        keys, values = self._remember(heads, call)
        z, pattern = self._attend(q, keys, values, self._visibility(call, keys.shape[2]), call.wants_pattern)
        z = self._finish(z, self._gate(x, heads.get("q_gate")))
        out = F.dropout(self._output(z), self.variant.output_dropout, self._training)
        self._edits.end(self.name, call.position_embeddings)
        made = {"out": out, "pattern": pattern}
        return tuple(made[name] if name in made else getattr(self.original_component, name) for name in self.variant.calling.returns)

    # ---- project ----

    def _project(self, x: Tensor) -> dict[str, Tensor]:
        """hook_q, hook_k, hook_v (PROJ-1, CLIP-1), from split inputs where those are opted in to (SPLIT-1); the gate's rows beside them."""
        heads = self._heads(x) if self.variant.latent is None else self._heads_of_latents(x, self.variant.latent)
        heads |= {role: self._spread_heads(heads[role]) for role in "kv" if role in heads}
        heads |= self._moved_by_hooks(x, heads)
        for role, factor in (("q", 1.0), ("k", self.variant.k_multiplier), ("v", self.variant.v_multiplier)):
            if role in heads:
                scaled = heads[role] if factor == 1 else heads[role] * factor
                heads[role] = self.hook(f"hook_{role}")(self._clip(scaled, role == "v" or not self._normed_before_rotation), shared=True)
        if self.variant.value_is_key:
            heads["v"] = self.hook("hook_v")(heads["k"], shared=True)
        return heads

    def _heads(self, x: Tensor) -> dict[str, Tensor]:
        """Query, key and value head by head, through the wrapped module's own projections."""
        roles = [role for role in ("qkv", "q", "k", "v") if role in self._roles]
        return {part: heads for role in roles for part, heads in self.split(role, self.submodule(role)(x)).items()}

    def _heads_of_latents(self, x: Tensor, latent: Latent) -> dict[str, Tensor]:
        """Query, key and value head by head, up from the latents that all heads share (LAT-1); hook_q_latent, hook_kv_latent."""
        c_q = x
        if latent.q_rank is not None:
            c_q = self._latent("hook_q_latent", self.submodule("q_down")(x), latent.q_scale)
        q = self.submodule("q" if latent.q_rank is None else "q_up")(c_q).unflatten(-1, (self.variant.heads, -1))
        down = self.submodule("kv_down")(x)
        c_kv = self._latent("hook_kv_latent", down[..., : latent.kv_rank], latent.kv_scale)
        up = self.submodule("kv_up")(c_kv).unflatten(-1, (self.variant.heads, -1))
        k, v = up.split([up.shape[-1] - self.variant.d_head_v, self.variant.d_head_v], dim=-1)
        shared = down[..., latent.kv_rank :].unsqueeze(2).expand(-1, -1, self.variant.heads, -1)
        return {"q": q, "k": torch.cat([k, shared], dim=-1), "v": v}

    def _latent(self, name: str, down: Tensor, scale: float) -> Tensor:
        """A latent, normed and scaled, through its hook."""
        role = f"{name.removeprefix('hook_')}_norm"
        normed = normalise(down, self.submodule(role), self.variant.norm_in(role))
        return self.hook(name)(normed if scale == 1 else normed * scale, shared=True)

    def _spread_heads(self, heads: Tensor) -> Tensor:
        """Key or value heads; one for each query head under `attn_in` (SPLIT-3)."""
        return heads if self.effective.kv_heads == self.variant.kv_heads else heads.repeat_interleave(self.variant.group, dim=2)

    def _moved_by_hooks(self, x: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """The projections whose inputs hooks moved; only what an edit moved goes through the weights again."""
        moved: dict[str, Tensor] = {}
        if "attn_in" in self.opted_in and self.hook("hook_attn_in").watched:
            moved = dict.fromkeys("qkv", self._moved("hook_attn_in", x, self.variant.heads))
        if "split_qkv_input" in self.opted_in:
            moved = {role: self._moved(f"hook_{role}_input", x, heads[role].shape[2]) for role in "qkv" if self.hook(f"hook_{role}_input").watched}
        return {role: heads[role] + along(by, self._spread(getattr(self, f"W_{role.upper()}"))) for role, by in moved.items()}

    def _spread(self, weight: Tensor) -> Tensor:
        """A weight a kv head as one a query head under `attn_in`; a weight a query head as it is."""
        spread = self.effective.kv_heads // self.variant.kv_heads
        return weight if spread == 1 or weight.shape[0] == self.variant.heads else weight.repeat_interleave(spread, dim=0)

    def _moved(self, name: str, x: Tensor, heads: int) -> Tensor:
        """How far the hooks moved each head's copy of x: exactly 0 where they only looked (LOOK-1)."""
        copies = x.unsqueeze(2).expand(-1, -1, heads, -1)
        return self.hook(name)(copies, shared=True) - copies

    def _clip(self, x: Tensor, here: bool) -> Tensor:
        """x within the family's bound, where this is the place for it (CLIP-1)."""
        return x if self.variant.clip is None or not here else x.clamp(-self.variant.clip, self.variant.clip)

    # ---- norm and rotate ----

    @property
    def _normed_before_rotation(self) -> bool:
        return self.variant.norm is not None and not self.variant.norm.after_rotation

    def _place(self, heads: dict[str, Tensor], call: Call, x: Tensor) -> dict[str, Tensor]:
        """Query and key normed and rotated, in the family's order, and the value normed (NORM-1, NORM-3, ROT-1)."""
        norm = self.variant.norm
        if norm is not None and not norm.after_rotation:
            heads = self._normalise(heads, norm)
        if "v" in heads and self.variant.value_norm is not None:
            heads["v"] = self.hook("hook_v_normed")(normalise(heads["v"], self.submodule("v_norm"), self.variant.value_norm))
        heads = self._rotate(heads, self.tables(call.position_embeddings, x, partial(self._position_ids, call)))
        return self._normalise(heads, norm) if norm is not None and norm.after_rotation else heads

    def _normalise(self, heads: dict[str, Tensor], norm: Norm) -> dict[str, Tensor]:
        """hook_q_normed, hook_k_normed (NORM-1, CLIP-1), in the family's axes."""
        for role in (role for role in "qk" if role in heads):
            normed = self._norm_flat(role, heads[role], norm) if norm.over == "flat" else self._norm_heads(role, heads[role], norm)
            shown = self.hook(f"hook_{role}_normed")(self._clip(normed, self._normed_before_rotation))
            heads[role] = shown.view(heads[role].shape)
        return heads

    def _norm_flat(self, role: str, heads: Tensor, norm: Norm) -> Tensor:
        """All heads of a position normed as one axis."""
        module, flat = self.submodule(f"{role}_norm"), heads.flatten(-2)
        spread = 1 if role == "q" else self.effective.kv_heads // self.variant.kv_heads
        if spread == 1 or (norm.weight == "none" and not norm.bias):
            return normalise(flat, module, norm)
        # a key for every query head (SPLIT-3): the module's weight does not fit, each kv head's part of it does
        rows = [row if row is None else self._spread(row.unflatten(0, (self.variant.kv_heads, -1))).flatten() for row in affine(module, norm)]
        return by_formula(flat, rows[0], rows[1], norm)

    def _norm_heads(self, role: str, heads: Tensor, norm: Norm) -> Tensor:
        """Each head normed by itself; a key norm with a weight a head has one for each kv head, however many query heads read it."""
        module = self.submodule(f"{role}_norm")
        if role == "q" or norm.apart:
            return normalise(heads, module, norm)
        by_kv_head = heads.unflatten(2, (self.variant.kv_heads, -1)).transpose(2, 3)
        return normalise(by_kv_head, module, norm).transpose(2, 3).flatten(2, 3)

    def _rotate(self, heads: dict[str, Tensor], tables: Tables | None) -> dict[str, Tensor]:
        """hook_rot_q, hook_rot_k (ROT-1); in a layer that does not rotate, copies of query and key."""
        rotary = self.variant.rotary
        turned = {role: heads[role] for role in "qk" if role in heads}
        if rotary is not None and tables is not None:
            turned = {role: rotate(x, *tables, rotary) for role, x in turned.items()}
        return heads | {role: self.hook(f"hook_rot_{role}")(x, shared=rotary is None) for role, x in turned.items()}

    def _temper(self, q: Tensor, call: Call) -> Tensor:
        """The query times the family's temperature at its position (SCORE-4)."""
        temperature = self.variant.temperature
        if temperature is None:
            return q
        if temperature.given is not None:
            return q if call.temperature is None else (q * call.temperature.transpose(1, 2)).to(q.dtype)
        position = self._counted(call) if temperature.counted else self._position_ids(call)
        position = position.to(torch.promote_types(q.dtype, torch.float32))
        steps = torch.floor((position + temperature.shift) / temperature.length)
        factor = 1 + temperature.beta * torch.log1p(steps)
        return (q * factor[..., None, None]).to(q.dtype)

    # ---- attend ----

    def _remember(self, heads: Mapping[str, Tensor], call: Call) -> tuple[Tensor, Tensor]:
        """Keys and values (batch kv_head key d_head): those of earlier calls included (CACHE-1, EDIT-4), or those that an earlier layer left (KV-1)."""
        if self.variant.kv_given is not None:
            keys, values = call.shared_kv[shared_key(self.original_component)]
            return keys, values
        keys, values = heads["k"].transpose(1, 2), heads["v"].transpose(1, 2)
        if call.cache is not None:
            keys, values = call.cache.update(keys, values, call.cache_layer)
        if self.variant.calling.kv_left is not None:
            call.shared_kv[shared_key(self.original_component)] = (keys, values)
        return keys, values

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Visibility, wants_pattern: bool) -> tuple[Tensor, Tensor | None]:
        """hook_attn_scores, hook_pattern; z (batch pos head d_head_v). The one place that chooses how z is made."""
        variant, q, dropout = self.effective, q.transpose(1, 2), self._dropout()
        pattern = None
        if wants_pattern or self.hook("hook_attn_scores").watched or self.hook("hook_pattern").watched:
            shown = self.hook("hook_pattern").watched
            z, pattern = self._watched(q, k, v, seen, dropout)
            pattern = pattern.clone() if wants_pattern and shown else pattern  # what hooks were shown is nobody else's (EDIT-2)
        elif dropout or variant.softcap is not None or variant.sinks is not None or variant.d_head_v != variant.d_head:
            z = kernels.explicit(q, k, v, seen, variant, self._sinks(), dropout)
        else:
            z = kernels.fused(q, k, v, seen, variant)
        return z.transpose(1, 2), pattern

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

    # ---- gate and output ----

    def _gate(self, x: Tensor, rows: Tensor | None) -> Tensor | None:
        """hook_q_gate, hook_gate (GATE-1); None where the family has no gate."""
        gate = self.variant.gate
        if gate is None:
            return None
        if gate.in_query:
            assert rows is not None
            logits = self.hook("hook_q_gate")(rows, shared=True)
        else:
            logits = self.submodule("gate")(x).unflatten(-1, (self.variant.heads, -1))
            logits = logits if gate.bias is None else logits + getattr(self.original_component, gate.bias).unsqueeze(-1)
        opened = torch.sigmoid(logits) if gate.activation == "sigmoid" else F.softplus(logits)
        return self.hook("hook_gate")(opened if gate.per == "channel" else opened.squeeze(-1), shared=torch.is_grad_enabled())

    def _finish(self, z: Tensor, gate: Tensor | None) -> Tensor:
        """hook_z (MIX-1): normed and gated where the family does so."""
        norm = self.variant.z_norm
        if norm is not None:
            rows = z.flatten(-2) if norm.over == "flat" else z
            z = normalise(rows, self.submodule("z_norm"), norm).view(z.shape)
        if gate is not None:
            z = z * (gate if gate.ndim == z.ndim else gate.unsqueeze(-1))
        return self.hook("hook_z")(z, shared=torch.is_grad_enabled())

    def _output(self, z: Tensor) -> Tensor:
        """hook_result where opted in to (RES-1), hook_out (OUT-1)."""
        out: Tensor = self.submodule("o")(z.flatten(-2)) if "o" in self._roles else z.flatten(-2)
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
        if self.variant.causal:
            refuse_bidirectional(self.name, given.get("is_causal"))
        cache, module = next((given[name] for name in CACHES if given.get(name) is not None), None), self.original_component
        offset = self.variant.calling.cache_offset
        cache_layer = (getattr(module, "layer_idx", None) or 0) + (given.get(offset, 0) if offset else 0)
        config_asks = bool(getattr(getattr(module, "config", None), "output_attentions", False))
        return Call(
            hidden_states=hidden_states,
            position_embeddings=given.get("position_embeddings"),
            attention_mask=given.get("attention_mask"),
            cache=cache,
            cache_layer=cache_layer,
            position_ids=given.get("position_ids"),
            temperature=given.get(self.variant.temperature.given or "") if self.variant.temperature else None,
            wants_pattern=bool(given.get("output_attentions")) or config_asks,
            shared_kv=given.get(self.variant.kv_given or self.variant.calling.kv_left or ""),
            **offsets(cache, cache_layer, hidden_states.shape[1], given.get("attention_mask")),
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

    def _position_ids(self, call: Call) -> Tensor:
        """The positions of this call: as given, or going on where the cache ends, whatever the mask says."""
        return self._counted(call) if call.position_ids is None else call.position_ids

    def _counted(self, call: Call) -> Tensor:
        """(1, pos): the positions that go on where the cache ends."""
        seen_before = 0 if call.cache is None else int(call.cache.get_seq_length(call.cache_layer))
        return positions(seen_before, call.hidden_states.shape[1], call.hidden_states.device)

    def _visibility(self, call: Call, key: int) -> Visibility:
        """What each query may see: the mask that was handed down, or causality and window (MASK-1 to MASK-4)."""
        batch, query, _ = call.hidden_states.shape
        mask, padding = read_mask(call.attention_mask, batch=batch, heads=self.variant.heads, query=query, key=key)
        variant, device = self.variant, call.hidden_states.device
        return Visibility(query, key, device, call.seen_before, call.first_key, variant.causal, variant.window, variant.chunk, mask, padding)


def offsets(cache: Any, layer: int, pos: int, mask: Any) -> dict[str, int]:
    """How many positions the cache has seen, and the position of the first key it will give back.

    A mask that has queries says all of that itself (MASK-1); then the cache is not asked, and a compiled graph not broken.
    """
    if cache is None or not (mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)):
        return {"seen_before": 0, "first_key": 0}
    _, first_key = cache.get_mask_sizes(pos, layer)
    return {"seen_before": int(cache.get_seq_length(layer)), "first_key": int(first_key)}


def refuse_bidirectional(name: str, is_causal: object) -> None:
    """Refuse a call that asks for attention to later positions: without a mask the layer would be causal all the same."""
    if is_causal is False:
        raise ContractError(
            f"{name!r} was called with is_causal=False, and its layer is causal (MASK-2)\n  pass a four-axis attention_mask that says what each query may see"
        )


def along(heads: Tensor, weight: Tensor) -> Tensor:
    """(batch, pos, head, n) through (head, n, m): each head by its own weights."""
    return torch.einsum("bphn,hnm->bphm", heads, weight)
