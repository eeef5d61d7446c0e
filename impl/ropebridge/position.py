"""Rotary side of a bridge: its rotary module, the tables it is given, and their hooks."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ropebridge_spec import ContractError, RotaryMissing, Variant, layer_type, position_axes

Tables = tuple[Tensor, Tensor]


class PositionEmbeddingHooksMixin:
    """Add `hook_cos` and `hook_sin`, and the model's rotary module to make tables with."""

    name: str
    variant: Variant
    requires_position_embeddings: bool
    original_component: nn.Module | None
    rotary_emb: nn.Module | None = None

    if TYPE_CHECKING:
        # the bridge has it
        def show(
            self, name: str, tensor: Tensor, *, fresh: bool = False, made_by: str | None = None
        ) -> Tensor: ...

    def set_rotary_emb(self, rotary_emb: nn.Module) -> None:
        """Name the model's rotary embedding module.

        It is called as the model calls it: with the hidden states, position ids, and the layer's
        type where the module makes tables by layer type (Gemma 3). It is not registered as a child:
        it belongs to the model.
        """
        object.__setattr__(self, "rotary_emb", rotary_emb)

    def make_tables(
        self, hidden_states: Tensor, position_ids: Tensor, *, copied: bool = False
    ) -> Any:
        """Return the tables for these positions, as the model's own rotary module makes them: (cos,
        sin), or one complex tensor.

        Args:
            hidden_states: gives the tables' dtype and device.
            position_ids: (batch or 1, pos) integers.
            copied: ask a copy of the rotary module, and leave the model's as it is: one that scales
                with the length of its inputs (dynamic NTK) remembers what it was last asked.

        Raises:
            RotaryMissing: `set_rotary_emb` was not called. Tables are never made up.
        """
        buffer = self.variant.calling.table_buffer
        if buffer is not None:
            sin, cos = (
                getattr(self.original_component, buffer)
                .to(position_ids.device)[position_ids]
                .chunk(2, dim=-1)
            )
            return cos, sin
        if self.rotary_emb is None:
            raise RotaryMissing(
                f"{type(self).__name__} {self.name!r} has no rotary module to make cos and sin"
                " with\n  call set_rotary_emb(model.model.rotary_emb) first; an identity rotation"
                " is never put in its place\n  where attach was given a part of a model: give it"
                " the part that holds the rotary module too, such as model.model, or go on"
                " unproved:\n  bridged = attach(part, verify=False); then, for each bridge in"
                " bridged.layers, bridge.set_rotary_emb(model.model.rotary_emb)"
            )
        if isinstance(self.rotary_emb, nn.Embedding):
            return self.rotary_emb.weight[position_ids].unsqueeze(1).to(hidden_states.dtype)
        axes = position_axes(self.rotary_emb, self.variant)
        if axes > 1 and position_ids.ndim == 2:
            # text stands at the same place on every axis
            position_ids = position_ids.expand(axes, *position_ids.shape)
        by_type = "layer_type" in inspect.signature(type(self.rotary_emb).forward).parameters
        kind = layer_type(self.original_component) if by_type else None
        rotary = copy.deepcopy(self.rotary_emb) if copied else self.rotary_emb
        return rotary(hidden_states, position_ids, *(() if kind is None else (kind,)))

    def tables(
        self, given: Any, hidden_states: Tensor, position_ids: Callable[[], Tensor]
    ) -> Tables | None:
        """Return the tables of this call through their hooks; None in a layer that does not rotate
        (POS-1, CFG-3).

        `position_ids` is asked only where tables must be made.
        """
        if self.variant.rotary is None:
            return None
        if given is None:
            if self.requires_position_embeddings and self.variant.calling.tables != "own":
                raise ContractError(
                    f"{self.name!r} was given no position_embeddings, and its layer rotates; clause"
                    " CFG-3 requires (cos, sin)\n  pass"
                    " position_embeddings=rotary_emb(hidden_states, position_ids), or build the"
                    " bridge with requires_position_embeddings=False"
                )
            given = self.make_tables(hidden_states, position_ids())
        cos, sin = (
            self._batched(self._of_this_call(table, hidden_states), hidden_states)
            for table in self._pair(given)
        )
        return self.show("hook_cos", cos), self.show("hook_sin", sin)

    def _of_this_call(self, table: Tensor, hidden_states: Tensor) -> Tensor:
        """Return (batch or 1, pos, rotary_dim): the table of this call's positions, where the layer
        is handed that of all keys."""
        return (
            table[..., -hidden_states.shape[1] :, :]
            if self.variant.calling.tables_of == "keys"
            else table
        )

    def with_earlier(self, tables: Tables, given: Any) -> Tables:
        """Return the tables of this call, after those of earlier positions where the layer is
        handed these too."""
        if self.variant.calling.tables_of == "positions" or given is None:
            return tables
        cos, sin = (
            torch.cat([whole[..., : -own.shape[-2], :], own], dim=-2)
            for whole, own in zip(self._pair(given), tables, strict=True)
        )
        return cos, sin

    def _pair(self, given: Any) -> Tables:
        """Return what was handed down as position embeddings, as a pair of tensors; a complex table
        is cos + i sin, a real one sin and then cos."""
        if isinstance(given, Tensor) and given.is_complex():
            return given.real, given.imag
        if isinstance(given, Tensor) and self.variant.calling.tables_in != "position_embeddings":
            sin, cos = given.squeeze(1).chunk(2, dim=-1)
            return cos, sin
        if (
            isinstance(given, (tuple, list))
            and len(given) == 2
            and all(isinstance(table, Tensor) for table in given)
        ):
            first, second = given
            return (
                (first, second)
                if self.variant.calling.tables_order == "cos_sin"
                else (second, first)
            )
        kinds = f"{len(given)} items" if isinstance(given, (tuple, list)) else type(given).__name__
        raise ContractError(
            f"{self.name!r} was given position_embeddings of {kinds}; clause CFG-3 requires a pair"
            " of tensors (cos, sin)"
        )

    def _batched(self, table: Tensor, hidden_states: Tensor) -> Tensor:
        """Return (batch or 1, pos, rotary_dim): a table with its batch axis, of the shape clause
        POS-2 requires."""
        table = table[None] if table.ndim == 2 else table
        batch, pos, _ = hidden_states.shape
        pos = (
            table.shape[1]
            if self.variant.source is not None and self.variant.source.place == "before"
            else pos
        )
        rotary = self.variant.rotary
        assert rotary is not None
        fits = (
            table.ndim == 3
            and table.shape[0] in (1, batch)
            and table.shape[1:] == (pos, rotary.table_width)
        )
        if not fits:
            raise ContractError(
                f"{self.name!r} was given a rotary table of shape {tuple(table.shape)}; clause"
                f" POS-2 requires (1 or {batch}, {pos}, {rotary.table_width})\n  axes: table_batch"
                f" pos rotary_dim\n  with: {batch=}, {pos=}, rotary_dim={rotary.table_width}"
            )
        return table


def positions(start: int, pos: int, device: torch.device) -> Tensor:
    """Return (1, pos) position ids that follow on `start` earlier positions."""
    return torch.arange(start, start + pos, device=device)[None]
