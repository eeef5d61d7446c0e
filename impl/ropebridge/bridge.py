"""Production bridge: rotary attention, stage by stage, each stage ending in its hooks. Work follows
demand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ropebridge import kernels, memory
from ropebridge.base import AttentionBridge
from ropebridge.calls import Call, read_call, returned
from ropebridge.inputs import random_inputs
from ropebridge.masks import Visibility, read_mask
from ropebridge.mixing import exclude, key_bias, side_by_side, subtract
from ropebridge.norms import affine, by_formula, normalise
from ropebridge.position import PositionEmbeddingHooksMixin, Tables
from ropebridge.rotary import fitting, rotate
from ropebridge.selection import Given, allowed, handed_down, pick
from ropebridge.stages.scores import score_keys, show_scores
from ropebridge_spec import Latent, Norm, NotBound


class PositionEmbeddingsAttentionBridge(PositionEmbeddingHooksMixin, AttentionBridge):
    """Compute attention that is given rotary position embeddings, with a hook at every stage.

    The hook points are those of `ropebridge_spec.hook_order(variant)`. `forward` takes what the
    wrapped module takes,
    and returns what it returns: the output, and `hook_pattern` where `output_attentions` asks for
        it, else None.

    Args:
        name: full name in the model, `blocks.{layer}.attn`.
        config: the model's config, or None.
        submodules: role -> attribute name, as an adapter declares it; None takes the family's names
            (CFG-4).
        optional: the model may have no such component (CFG-1).
        requires_attention_mask: `get_random_inputs` gives an explicit mask (CFG-2).
        requires_position_embeddings: a rotating layer refuses to run without tables (CFG-3).
        **kwargs: `use_attn_in`, `use_split_qkv_input`, `use_attn_result` opt in to hook points;
            `families` adds to what `describe` knows.
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
        super().__init__(
            name,
            config,
            submodules,
            optional,
            requires_attention_mask,
            requires_position_embeddings,
            **kwargs,
        )

    def set_original_component(self, component: nn.Module | None) -> None:
        """Wire the Hugging Face module, validate what was declared, and take its own rotary module
        if it owns one."""
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
        """Return inputs for one call of the layer, with the model's own rotary tables.

        Args:
            batch_size, seq_len: sizes of hidden_states (batch_size, seq_len, d_model), standard
                normal.
            device, dtype: None means the module's own.
            seed, generator: make the numbers repeatable; give one of them at most.
            left_padding: positions that the last of the batch is padded by on the left; earlier
                ones by less.

        Returns: `hidden_states`, `position_embeddings` (cos, sin) and `attention_mask`: additive,
            (batch, 1, query, key), causal and windowed; None where the bridge was built with
            requires_attention_mask=False and nothing is padded.

        Raises:
            RotaryMissing: there is no rotary module to make the tables with.
        """
        return random_inputs(
            self, batch_size, seq_len, device, dtype, seed, generator, left_padding
        )

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the layer: hidden states (batch, pos, d_model) to output (batch, pos, d_model)
        and, when asked, the pattern, else None.

        Raises:
            ContractError, MaskError: an input that does not fit, or an edit that breaks the
                contract.
            NotBound: `set_original_component` was not called.
        """
        call = read_call(self.name, self.wrapped, self.variant, self.signature, args, kwargs)
        self._edits.begin()
        x = self.hook("hook_in")(call.hidden_states)
        heads = self._project(x, self._joined(x, call.source), call)
        heads, tables = self._place(heads, call, x)
        q = self._scale_by_temperature(heads["q"], call)
        positions = call.ids() if self.variant.selector else None  # the cache grows
        keys, values = self._remember(heads, call)
        seen = self._visibility(call, keys.shape[2])
        picks = (
            call.picks
            if positions is None
            else self._pick(call, x, heads.get("q_latent"), tables, positions, seen)
        )
        seen = self._biased(self._among(seen, picks), values)
        z, pattern = self._attend(q, keys, values, seen, call.wants_pattern)
        z = self._finish(z, heads.get("v"), self._gate(x, heads.get("q_gate")))
        out = F.dropout(self._output(z), self.variant.output_dropout, self._training)
        self._edits.end(self.name, call.position_embeddings)
        return returned(self.variant.calling.returns, self.wrapped, call, out, pattern, picks)

    @property
    def wrapped(self) -> Any:
        """Return the Hugging Face module that the bridge stands for.

        Raises:
            NotBound: there is none yet.
        """
        if self.original_component is None:
            raise NotBound(
                f"{type(self).__name__} {self.name!r} has no attention module yet; call"
                " set_original_component(module) first"
            )
        return self.original_component

    # ---- project ----

    def _joined(self, x: Tensor, source: Tensor | None) -> Tensor:
        """Return (batch, kv_pos, d_model): what key and value are projected from: hook_in, and the
        states of another sequence through hook_kv_in (KV-2)."""
        if self.variant.source is None or source is None:
            return x
        states = self.hook("hook_kv_in")(source)
        return torch.cat(
            [states, x] if self.variant.source.place == "before" else [x, states], dim=1
        )

    def _project(self, x: Tensor, x_kv: Tensor, call: Call) -> dict[str, Tensor]:
        """Return hook_q, hook_k, hook_v (PROJ-1, CLIP-1), from split inputs where those are opted
        in to (SPLIT-1); the gate's rows beside them."""
        heads = (
            self._heads(x, x_kv, call)
            if self.variant.latent is None
            else self._heads_of_latents(x, self.variant.latent)
        )
        heads |= {role: self._spread_heads(heads[role]) for role in "kv" if role in heads}
        heads |= self._moved_by_hooks(x, heads)
        for role, factor in (
            ("q", 1.0),
            ("k", self.variant.k_multiplier),
            ("v", self.variant.v_multiplier),
        ):
            if role in heads:
                scaled = heads[role] if factor == 1 else heads[role] * factor
                clipped = self._clip(scaled, role == "v" or not self._normed_before_rotation)
                heads[role] = self.hook(f"hook_{role}")(
                    self._added(clipped, call) if role == "v" else clipped
                )
        if self.variant.value_is_key:
            heads["v"] = self.hook("hook_v")(heads["k"])
        return heads

    def _heads(self, x: Tensor, x_kv: Tensor, call: Call) -> dict[str, Tensor]:
        """Return role -> (batch, pos, heads, width): query, key and value, through the wrapped
        module's own projections, and adapters beside them."""
        roles = [role for role in ("qkv", "q", "k", "v") if role in self._roles]
        rows = {role: self.submodule(role)(x_kv if role in "kv" else x) for role in roles}
        beside: Any = self.variant.projections.beside
        if beside is not None:
            own = self.wrapped.layer_dic[call.cache_layer]
            rows = {
                role: y + getattr(self.wrapped, beside.format(role))[own](x)
                for role, y in rows.items()
            }
        return {
            part: heads for role in roles for part, heads in self.split(role, rows[role]).items()
        }

    def _heads_of_latents(self, x: Tensor, latent: Latent) -> dict[str, Tensor]:
        """Return query, key and value head by head, up from the latents that all heads share
        (LAT-1); hook_q_latent, hook_kv_latent."""
        c_q = x
        if latent.q_rank is not None:
            c_q = self._latent(
                "hook_q_latent", self.submodule("q_down")(x), latent.q_scale, beside=latent.q_beside
            )
        query = self.split("q", self.submodule("q" if latent.q_rank is None else "q_up")(c_q))
        down = self.submodule("kv_down")(x)
        c_kv = self._latent(
            "hook_kv_latent", down[..., : latent.kv_rank], latent.kv_scale, beside=False
        )
        up = self.submodule("kv_up")(c_kv).unflatten(-1, (self.variant.heads, -1))
        k, v = up.split([up.shape[-1] - self.variant.d_head_v, self.variant.d_head_v], dim=-1)
        rotary = down[..., latent.kv_rank :]
        rotary = (
            rotary
            if latent.rotary_norm is None
            else normalise(rotary, self.submodule("k_rotary_norm"), latent.rotary_norm)
        )
        shared = rotary.unsqueeze(2).expand(-1, -1, self.variant.heads, -1)
        return {**query, "k": torch.cat([k, shared], dim=-1), "v": v, "q_latent": c_q}

    def _latent(self, name: str, down: Tensor, scale: float, *, beside: bool) -> Tensor:
        """Return (batch, pos, rank): a latent, normalised and scaled, through its hook; followed,
        where that is asked for, by the latent as it was before."""
        role = f"{name.removeprefix('hook_')}_norm"
        normed = normalise(down, self.submodule(role), self.variant.norm_in(role))
        scaled = normed if scale == 1 else normed * scale
        return self.hook(name)(torch.cat([scaled, down], dim=-1) if beside else scaled)

    def _spread_heads(self, heads: Tensor) -> Tensor:
        """Return (batch, pos, heads, width): key or value heads; under `attn_in` one for each query
        head (SPLIT-3)."""
        return (
            heads
            if self.effective.kv_heads == self.variant.kv_heads
            else heads.repeat_interleave(self.variant.group, dim=2)
        )

    def _moved_by_hooks(self, x: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return role -> (batch, pos, heads, width): the projections whose inputs hooks moved; only
        what an edit moved goes through the weights again."""
        moved: dict[str, Tensor] = {}
        if "attn_in" in self.opted_in and self.hook("hook_attn_in").watched:
            moved = dict.fromkeys("qkv", self._moved("hook_attn_in", x, self.variant.heads))
        if "split_qkv_input" in self.opted_in:
            moved = {
                role: self._moved(f"hook_{role}_input", x, heads[role].shape[2])
                for role in "qkv"
                if self.hook(f"hook_{role}_input").watched
            }
        return {
            role: heads[role] + along(by, self._spread(getattr(self, f"W_{role.upper()}")))
            for role, by in moved.items()
        }

    def _spread(self, weight: Tensor) -> Tensor:
        """Return a (kv_head, ...) weight repeated to (head, ...) where `attn_in` is on; a (head,
        ...) weight as it is."""
        spread = self.effective.kv_heads // self.variant.kv_heads
        return (
            weight
            if spread == 1 or weight.shape[0] == self.variant.heads
            else weight.repeat_interleave(spread, dim=0)
        )

    def _moved(self, name: str, x: Tensor, heads: int) -> Tensor:
        """Return (batch, pos, heads, d_model): how far the hooks moved each head's copy of x,
        exactly 0 where they only looked (LOOK-1)."""
        copies = x.unsqueeze(2).expand(-1, -1, heads, -1)
        return self.hook(name)(copies) - copies

    def _added(self, v: Tensor, call: Call) -> Tensor:
        """Return (batch, pos, kv_head, d_head_v): the value, and what the model hands down to be
        added to it (PROJ-1)."""
        return (
            v
            if call.added_value is None
            else v + self._spread_heads(call.added_value.unflatten(-1, (self.variant.kv_heads, -1)))
        )

    def _clip(self, x: Tensor, here: bool) -> Tensor:
        """Return x, of any shape, within the family's bound, where this is the place for it
        (CLIP-1)."""
        return (
            x
            if self.variant.clip is None or not here
            else x.clamp(-self.variant.clip, self.variant.clip)
        )

    # ---- norm and rotate ----

    @property
    def _normed_before_rotation(self) -> bool:
        return self.variant.norm is not None and not self.variant.norm.after_rotation

    def _place(
        self, heads: dict[str, Tensor], call: Call, x: Tensor
    ) -> tuple[dict[str, Tensor], Tables | None]:
        """Return query and key normed and rotated, in the family's order, and the value normed
        (NORM-1, NORM-3, ROT-1); the tables they were rotated by."""
        norm = self.variant.norm
        if norm is not None and not norm.after_rotation:
            heads = self._normalise(heads, norm)
        if "v" in heads and self.variant.value_norm is not None:
            heads["v"] = self.hook("hook_v_normed")(
                normalise(heads["v"], self.submodule("v_norm"), self.variant.value_norm)
            )
        tables = self.tables(call.position_embeddings, x, call.ids)
        heads = self._rotate(heads, tables)
        return (
            self._normalise(heads, norm) if norm is not None and norm.after_rotation else heads
        ), tables

    def _normalise(self, heads: dict[str, Tensor], norm: Norm) -> dict[str, Tensor]:
        """Return role -> (batch, pos, heads, d_head): hook_q_normed and hook_k_normed (NORM-1,
        CLIP-1), shown in the family's axes."""
        for role in (role for role in "qk" if role in heads):
            normed = (
                self._norm_flat(role, heads[role], norm)
                if norm.over == "flat"
                else self._norm_heads(role, heads[role], norm)
            )
            shown = self.hook(f"hook_{role}_normed")(
                self._clip(normed, self._normed_before_rotation)
            )
            heads[role] = shown.reshape(heads[role].shape)
        return heads

    def _norm_flat(self, role: str, heads: Tensor, norm: Norm) -> Tensor:
        """Return (batch, pos, heads * d_head): all heads of a position normalised as one axis."""
        module, flat = self.submodule(f"{role}_norm"), heads.flatten(-2)
        spread = 1 if role == "q" else self.effective.kv_heads // self.variant.kv_heads
        if spread == 1 or (norm.weight == "none" and not norm.bias):
            return normalise(flat, module, norm)
        # a key for every query head (SPLIT-3): the module's weight does not fit, each kv head's
        # part of it does
        rows = [
            (
                row
                if row is None
                else self._spread(row.unflatten(0, (self.variant.kv_heads, -1))).flatten()
            )
            for row in affine(module, norm)
        ]
        return by_formula(flat, rows[0], rows[1], norm)

    def _norm_heads(self, role: str, heads: Tensor, norm: Norm) -> Tensor:
        """Return each head normalised by itself; a key norm with one weight per head has one for
        each kv head, however many query heads read it."""
        module = self.submodule(f"{role}_norm")
        if role == "q" or norm.module_per_head:
            return normalise(heads, module, norm)
        by_kv_head = heads.unflatten(2, (self.variant.kv_heads, -1)).transpose(2, 3)
        return normalise(by_kv_head, module, norm).transpose(2, 3).flatten(2, 3)

    def _rotate(self, heads: dict[str, Tensor], tables: Tables | None) -> dict[str, Tensor]:
        """Return hook_rot_q, hook_rot_k (ROT-1); in a layer that does not rotate, copies of query
        and key."""
        rotary = self.variant.rotary
        turned = {
            role: heads[role]
            for role in ("qkv" if rotary is not None and rotary.values else "qk")
            if role in heads
        }
        if rotary is not None and tables is not None:
            turned = {
                role: rotate(x, *fitting(tables, x.shape[1]), rotary) for role, x in turned.items()
            }
        return heads | {
            role: self.hook(f"hook_rot_{role}")(x, fresh=rotary is not None)
            for role, x in turned.items()
        }

    def _scale_by_temperature(self, q: Tensor, call: Call) -> Tensor:
        """Return (batch, pos, head, d_head): the query times the family's temperature at its
        position (SCORE-4)."""
        temperature = self.variant.temperature
        if temperature is None:
            return q
        if temperature.factor_argument is not None:
            return (
                q
                if call.temperature is None
                else (q * call.temperature.transpose(1, 2)).to(q.dtype)
            )
        position = call.counted() if temperature.counted else call.ids()
        position = position.to(torch.promote_types(q.dtype, torch.float32))
        steps = torch.floor((position + temperature.shift) / temperature.length)
        factor = 1 + temperature.beta * torch.log1p(steps)
        return (q * factor[..., None, None]).to(q.dtype)

    # ---- attend ----

    def _remember(self, heads: Mapping[str, Tensor], call: Call) -> tuple[Tensor, Tensor]:
        """Return keys and values (batch kv_head key d_head) of all positions (CACHE-1, EDIT-4,
        KV-1, KV-2)."""
        if self.variant.shared_kv_argument is not None:
            return memory.given(call, self.wrapped)
        return memory.remember(
            (heads["k"].transpose(1, 2), heads["v"].transpose(1, 2)),
            call,
            self.wrapped,
            self.variant,
        )

    def _pick(
        self,
        call: Call,
        x: Tensor,
        c_q: Tensor | None,
        tables: Tables | None,
        positions: Tensor,
        seen: Visibility,
    ) -> Tensor:
        """Return what the layer's own selector picks, or an earlier layer's did (SEL-1), in the
        shape that `Selector.picks` says."""
        selector, latent = self.variant.selector, self.variant.latent
        assert selector is not None
        if selector.picks_argument is not None:
            return handed_down(self.name, selector.picks_argument, call.picks)
        first = c_q if latent is None or c_q is None else c_q[..., : latent.q_rank]
        module = getattr(self.wrapped, selector.module)
        tables = tables and self.with_earlier(tables, call.position_embeddings)
        return pick(module, selector, Given(x, first, tables, positions, call.cache), seen)

    def _among(self, seen: Visibility, picks: Tensor | None) -> Visibility:
        """Return what may be seen, of the keys that were picked."""
        selector = self.variant.selector
        return (
            seen
            if selector is None or picks is None
            else replace(seen, picked=allowed(picks, selector, self.variant.heads, seen.key))
        )

    def _biased(self, seen: Visibility, values: Tensor) -> Visibility:
        """Return what may be seen, with the bias that keys have by their values (SCORE-5)."""
        kind = self.variant.key_bias
        if kind is None:
            return seen
        dt = self.submodule("key_bias")(values.transpose(1, 2).flatten(-2))
        return replace(
            seen, key_bias=key_bias(dt, self.wrapped, kind, self.variant.group), keep=kind.keep
        )

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, seen: Visibility, wants_pattern: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return hook_attn_scores, hook_pattern; z (batch pos head d_head_v). The one place that
        chooses how z is made."""
        variant, q, dropout = self.effective, q.transpose(1, 2), self._dropout()
        v = v if variant.differential is None else side_by_side(v)
        pattern = None
        if (
            wants_pattern
            or self.hook("hook_attn_scores").watched
            or self.hook("hook_pattern").watched
        ):
            shown = self.hook("hook_pattern").watched
            z, pattern = self._watched(q, k, v, seen, dropout)
            # what hooks were shown is nobody else's (EDIT-2)
            pattern = pattern.clone() if wants_pattern and shown else pattern
        elif (
            dropout
            or variant.softcap is not None
            or variant.sinks is not None
            or v.shape[-1] != variant.d_head
        ):
            z = kernels.explicit(q, k, v, seen, variant, self._sinks(), dropout)
        else:
            z = kernels.fused(q, k, v, seen, variant)
        return z.transpose(1, 2), pattern

    def _watched(
        self, q: Tensor, k: Tensor, v: Tensor, seen: Visibility, dropout: float
    ) -> tuple[Tensor, Tensor]:
        """Return z (batch, head, query, d_head_v) and the pattern (batch, head, query, key), with
        scores and pattern made whole, once, and shown (SCORE-1, PAT-1)."""
        rows, keys = slice(0, seen.query), slice(0, seen.key)
        mask = seen.block(rows, keys)
        exact = score_keys(q, k, mask, self.effective)
        scores = show_scores(exact, mask, q.dtype, self.hook("hook_attn_scores"))
        pattern = self.hook("hook_pattern")(
            kernels.softmax(scores, self._sinks()).to(v.dtype), fresh=not torch.is_grad_enabled()
        )
        return kernels.mix(kernels.drop(pattern, dropout), v), pattern

    def _dropout(self) -> float:
        """Return the rate of dropout in this call (DROP-1): the wrapped module says whether it
        trains."""
        return self.variant.dropout if self._training else 0.0

    @property
    def _training(self) -> bool:
        """Return whether the wrapped module trains."""
        return self.original_component is not None and self.original_component.training

    def _sinks(self) -> Tensor | None:
        return (
            None
            if self.variant.sinks is None
            else getattr(self.original_component, self.variant.sinks)
        )

    # ---- gate and output ----

    def _gate(self, x: Tensor, rows: Tensor | None) -> Tensor | None:
        """Return hook_gate (batch, pos, head, d_head_v or 1), after hook_q_gate (GATE-1); None
        where the family has no gate."""
        gate = self.variant.gate
        if gate is None:
            return None
        if gate.in_query:
            assert rows is not None
            logits = self.hook("hook_q_gate")(rows)
        else:
            logits = self.submodule("gate")(x).unflatten(-1, (self.variant.heads, -1))
            logits = (
                logits
                if gate.bias is None
                else logits + getattr(self.original_component, gate.bias).unsqueeze(-1)
            )
        opened = torch.sigmoid(logits) if gate.activation == "sigmoid" else F.softplus(logits)
        return self.hook("hook_gate")(opened if gate.per == "channel" else opened.squeeze(-1))

    def _finish(self, z: Tensor, v: Tensor | None, gate: Tensor | None) -> Tensor:
        """Return hook_z (batch, pos, head, d_head_v) (MIX-1, MIX-3, DIFF-1): what was mixed,
        subtracted, normalised and gated where the family does so."""
        norm, kind, alpha = self.variant.z_norm, self.variant.differential, self.variant.exclusive
        z = z if kind is None else subtract(z, self.wrapped, kind)
        z = z if alpha is None or v is None else exclude(z, v, self.wrapped, alpha)
        if norm is not None:
            rows = z.flatten(-2) if norm.over == "flat" else z
            z = normalise(rows, self.submodule("z_norm"), norm).view(z.shape)
        if gate is not None:
            z = z * (gate if gate.ndim == z.ndim else gate.unsqueeze(-1))
        z = z if self.variant.z_multiplier == 1 else z * self.variant.z_multiplier
        return self.hook("hook_z")(z)

    def _output(self, z: Tensor) -> Tensor:
        """Return (batch, pos, d_model): what hook_out left (OUT-1), after hook_result where that is
        opted in to (RES-1). The caller may write into it: what hooks were shown is not in it
        (EDIT-2)."""
        out: Tensor = self.submodule("o")(z.flatten(-2)) if "o" in self._roles else z.flatten(-2)
        if "attn_result" in self.opted_in and self.hook("hook_result").watched:
            out = (out + self._moved_results(z)).to(out.dtype)
        shown = self.hook("hook_out")(out)
        held = self.hook("hook_out").watched or (
            "o" not in self._roles and self.hook("hook_z").watched
        )
        return shown.clone() if held else shown

    def _moved_results(self, z: Tensor) -> Tensor:
        """Return (batch, pos, d_model): how far the hooks moved the sum of results, exactly 0 where
        they only looked (LOOK-1)."""
        results = along(z, self.W_O)
        moved: Tensor = (
            self.hook("hook_result")(results).to(torch.promote_types(z.dtype, torch.float32))
            - results
        )
        return moved.sum(2)

    # ---- what the call brings ----

    def _visibility(self, call: Call, key: int) -> Visibility:
        """Return what each query may see: the mask that was handed down, or causality and window
        (MASK-1 to MASK-4)."""
        batch, query, _ = call.hidden_states.shape
        mask, padding = read_mask(
            call.attention_mask, batch=batch, heads=self.variant.heads, query=query, key=key
        )
        variant, device = self.variant, call.hidden_states.device
        other = 0 if call.source is None or variant.source is None else call.source.shape[1]
        before, beyond = (
            (other, 0) if variant.source and variant.source.place == "before" else (0, other)
        )
        first = call.seen_before + before
        return Visibility(
            query,
            key,
            device,
            first,
            call.first_key,
            variant.causal,
            variant.window,
            variant.chunk,
            mask,
            padding,
            beyond=beyond,
        )


def along(heads: Tensor, weight: Tensor) -> Tensor:
    """Return (batch, pos, head, n) through (head, n, m): each head by its own weights."""
    return torch.einsum("bphn,hnm->bphm", heads, weight)
