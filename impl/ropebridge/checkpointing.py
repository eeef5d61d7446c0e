"""Gradient checkpointing runs a layer again in the backward pass: what hooks edited in its forward
pass, they must edit again there.

The rotary tables say which forward pass a recomputation repeats: the model hands the very same
tensors to both.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ropebridge.owners import Owner, present, recompute_for
from ropebridge_spec import ContractError


def recomputing() -> bool:
    """Return whether this call is made in a backward pass; a compiled graph is made in none."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._current_graph_task_id() != -1)


@dataclass
class Pass:
    """Hold what one layer did in the forward passes of one set of tables.

    edits: the hook points that edited, once for each call. owners: whose hooks fired.
    """

    edits: set[frozenset[str]] = field(default_factory=set)
    owners: tuple[Owner, ...] = ()


class Running(threading.local):
    """Hold the hook points that edited in the call that runs now, in this thread."""

    def __init__(self) -> None:
        self.edited: set[str] = set()


class Edits:
    """Hold the hook points of one layer that edited, in the call that runs now and in those whose
    tables still live.

    A compiled graph keeps none. A copy, deep or out of a pickle, begins anew.
    """

    def __init__(self) -> None:
        self._now = Running()
        self._of_pass: Any = WeakTensorKeyDictionary()

    def __reduce__(self) -> tuple[type[Edits], tuple[()]]:
        return Edits, ()

    def begin(self, tables: Any) -> None:
        """Begin a call of the layer; a recomputation fires the hooks of the pass that it repeats,
        in whatever thread autograd runs it."""
        if torch.compiler.is_compiling():
            return
        self._now.edited.clear()
        table = first_table(tables)
        repeated = self._of_pass.get(table) if table is not None and recomputing() else None
        recompute_for(() if repeated is None else repeated.owners)

    def note(self, name: str) -> None:
        """Note that a hook point edited."""
        if not torch.compiler.is_compiling():
            self._now.edited.add(name)

    def end(self, layer: str, tables: Any) -> None:
        """End a call of the layer: keep what was edited, or hold a recomputation to it.

        Args:
            layer: the layer's name.
            tables: what the call was given as position embeddings; without a table there is nothing
                to know it by again.

        Raises:
            ContractError: a recomputation edited elsewhere than the forward pass that it repeats
                (FIRE-2).
        """
        table = first_table(tables)
        if torch.compiler.is_compiling() or table is None:
            return
        now = frozenset(self._now.edited)
        known = self._of_pass.get(table)
        if recomputing():
            if known is not None and now not in known.edits:
                refuse_other_edits(layer, now, frozenset[str]().union(*known.edits))
            return
        if known is None:
            known = self._of_pass.setdefault(table, Pass())
        known.edits.add(now)
        known.owners = present()


def first_table(tables: Any) -> Tensor | None:
    """Return the tensor by which a pass is known again; None where the call had no tables."""
    table = tables[0] if isinstance(tables, (tuple, list)) and tables else tables
    return table if isinstance(table, Tensor) else None


def refuse_other_edits(layer: str, now: frozenset[str], before: frozenset[str]) -> None:
    """Refuse other edits than in the first pass: gradients would be those of a computation that
    nobody asked for."""
    then, here = (", ".join(sorted(names)) or "nothing" for names in (before, now))
    raise ContractError(
        f"{layer!r} was run again in the backward pass, as gradient checkpointing does, under other"
        " edits; clause FIRE-2 requires those of the forward pass\n  edited in the forward pass:"
        f" {then}; edited now: {here}\n  keep hooks() open over both passes: with"
        " bridged.hooks(fwd_hooks=[...]): bridged(...).loss.backward()"
    )
