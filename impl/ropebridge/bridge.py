"""Production bridge: rotary attention, stage by stage, each stage ending in its hooks. Work follows
demand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ropebridge import memory
from ropebridge.base import AttentionBridge
from ropebridge.calls import Call, read_call, return_values
from ropebridge.extents import read_extents
from ropebridge.heads import Heads
from ropebridge.inputs import random_inputs
from ropebridge.kernels.choose import attend
from ropebridge.masks import Visibility, read_mask
from ropebridge.position import PositionEmbeddingHooksMixin, Tables
from ropebridge.selector import SelectorInputs, among_picks, pick_keys
from ropebridge.stages.gate import open_gate
from ropebridge.stages.key_bias import add_key_bias
from ropebridge.stages.latent import Latents, heads_of_latents, make_latents
from ropebridge.stages.mix import finish_mix
from ropebridge.stages.norm import norm_q_and_k, norm_value
from ropebridge.stages.output import project_output
from ropebridge.stages.project import finish_projections, heads_of_input
from ropebridge.stages.rotary import rotate_heads
from ropebridge.stages.scores import scale_by_temperature
from ropebridge.stages.split import join_source


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
            AttachError: the wrapped module is no longer what it was when it was wired.
            NotBound: `set_original_component` was not called.
        """
        call = read_call(self.name, self.wrapped, self.variant, self.signature, args, kwargs)
        self.refuse_changes()
        self._edits.begin(call.position_embeddings)

        x = self.show("hook_in", call.hidden_states)
        x_kv = join_source(x, call.source, self)
        latents = make_latents(x, self)
        heads = self._project(x, x_kv, latents, call)
        heads, tables = self._place(heads, x, call)
        q = scale_by_temperature(heads.q, call, self.variant)

        selecting = self._selector_inputs(x, latents, tables, call)  # before the cache grows
        keys, values = self._remember(heads, call)
        seen = self._visibility(call, q.shape[2], keys.shape[2])
        picks = pick_keys(selecting, call.picks, seen, self)
        seen = among_picks(seen, picks, q.shape[2], self)
        seen = add_key_bias(seen, values, self)

        z, pattern = attend(q, keys, values, seen, call.wants_pattern, self)
        gate = open_gate(x, heads.gate, self)
        z = finish_mix(z, heads.v, gate, self)
        del heads, q, keys, values  # not held while the output is made
        out = project_output(z, self)
        if self.variant.output_dropout:
            out = F.dropout(out, self.variant.output_dropout, self.wrapped.training)

        self._edits.end(self.name, call.position_embeddings)
        return return_values(self.variant.calling.returns, self.wrapped, call, out, pattern, picks)

    def _project(self, x: Tensor, x_kv: Tensor, latents: Latents | None, call: Call) -> Heads:
        """Return query, key and value (batch, pos, heads, width), of the latents or straight of the
        inputs (LAT-1, PROJ-1)."""
        if latents is None:
            heads = heads_of_input(x, x_kv, call, self)
        else:
            heads = heads_of_latents(latents, self)
        return finish_projections(heads, x, call, self)

    def _place(self, heads: Heads, x: Tensor, call: Call) -> tuple[Heads, Tables | None]:
        """Return the heads normalised and rotated, in the family's order (NORM-1, NORM-3, ROT-1),
        and the tables that they were rotated by."""
        norm = self.variant.norm
        if norm is not None and not norm.after_rotation:
            heads = norm_q_and_k(heads, self)
        heads = norm_value(heads, self)
        tables = self.tables(call.position_embeddings, x, call.ids)
        heads = rotate_heads(heads, tables, self)
        if norm is not None and norm.after_rotation:
            heads = norm_q_and_k(heads, self)
        return heads, tables

    def _remember(self, heads: Heads, call: Call) -> tuple[Tensor, Tensor]:
        """Return keys and values (batch, kv_head, key, width) of all positions (CACHE-1, EDIT-4,
        KV-1, KV-2)."""
        if heads.k is None or heads.v is None:
            return memory.read_shared_kv(call, self.wrapped)
        own = heads.k.transpose(1, 2), heads.v.transpose(1, 2)  # (batch, kv_head, pos, width)
        return memory.remember(own, call, self.wrapped, self.variant)

    def _selector_inputs(
        self, x: Tensor, latents: Latents | None, tables: Tables | None, call: Call
    ) -> SelectorInputs | None:
        """Return what the layer's own selector is given (SEL-1); None in a layer without one."""
        if self.variant.selector is None:
            return None
        rank = None if self.variant.latent is None else self.variant.latent.q_rank
        c_q = None if latents is None else latents.q[..., :rank]
        tables = tables and self.with_earlier(tables, call.position_embeddings)
        return SelectorInputs(x, c_q, tables, call.ids(), call.cache)

    def _visibility(self, call: Call, heads: int, keys: int) -> Visibility:
        """Return what each query may see: the mask that was handed down, or causality and window
        (MASK-1 to MASK-4)."""
        batch, query, _ = call.hidden_states.shape
        mask, padding = read_mask(
            call.attention_mask, batch=batch, heads=heads, query=query, key=keys
        )
        variant, source = self.variant, self.variant.source
        others = 0 if call.source is None else call.source.shape[1]
        before = source is not None and source.place == "before"
        seen = Visibility(
            query,
            keys,
            call.hidden_states.device,
            first_query=call.seen_before + (others if before else 0),
            first_key=call.first_key,
            causal=variant.causal,
            window=variant.window,
            chunk=variant.chunk,
            mask=mask,
            extents=read_extents(mask, query),
            padding=padding,
            beyond=0 if before else others,
        )
        # a family's selector is handed the mask as it is
        return seen if variant.selector is not None else seen.without_idle_mask()
