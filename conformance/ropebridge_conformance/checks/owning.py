"""Owning: what a call is given, and what others hold of it, stays as it was (EDIT-2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from ropebridge_conformance.checks.edits import edit_in_place
from ropebridge_conformance.judging.bench import Bench, Watch
from ropebridge_conformance.judging.findings import Finding, failed, passed
from ropebridge_conformance.judging.questions import Question, any_hook, check
from ropebridge_conformance.subjects.traces import Edit, record
from ropebridge_conformance.zoo.calls import CallInputs, cache_layer, calls
from ropebridge_conformance.zoo.scenarios import CORE_CALLS, OPTED


@dataclass(frozen=True)
class Held:
    """Hold a tensor that lives outside the layer: what it is, how it is read, and a copy of what it
    held."""

    name: str
    read: Callable[[], Tensor]
    copy: Tensor

    @property
    def changed(self) -> bool:
        """Return whether it holds something else now."""
        return not torch.equal(self.read(), self.copy)


@check("EDIT-2", scenarios=("prefill", "split", "decode"), hooks=any_hook, dtypes=("float32",))
def an_edit_in_place_stays_in_the_layer(bench: Bench, q: Question) -> Finding:
    """EDIT-2: hidden states, tables and mask that the caller holds, what was in the cache, and what
    raw hooks of torch on the module's parts were given are, to the bit, what they were, whatever
    hooks wrote into what they were shown."""
    assert q.hook is not None
    changed = changed_by_calls(bench, q, "all", {q.hook: edit_in_place})
    if changed is None:
        return passed()
    return failed(
        f"an edit in place at {q.hook} changed {changed}; clause EDIT-2 requires that it stays in"
        " the layer",
        divergent=q.hook,
    )


@check("EDIT-2", scenarios=(*CORE_CALLS, *OPTED), dtypes=("float32", "bfloat16"))
def a_call_changes_none_of_its_inputs(bench: Bench, q: Question) -> Finding:
    """EDIT-2: without any edit, watched or not, what the caller holds, what was in the cache, and
    what raw hooks of torch were given stay as they were."""
    watches: tuple[Watch, ...] = ("none", "fused", "all")
    for watch in watches:
        changed = changed_by_calls(bench, q, watch, {})
        if changed is not None:
            return failed(
                f"a call changed {changed} (watching {watch}); clause EDIT-2 requires that nothing"
                " outside the layer changes",
                divergent="hook_in",
            )
    return passed()


def changed_by_calls(
    bench: Bench, q: Question, watch: Watch, edits: Mapping[str, Edit]
) -> str | None:
    """Return which tensor outside the layer the scenario's calls changed; None where none is."""
    layer = bench.layer(q.specimen, q.situation.opted_in)
    names = bench.watched(q.specimen, q.situation, watch)
    outside: list[Held] = []
    with raw_hooks(q.specimen.module, outside):
        for call in calls(q.situation, q.specimen, layer):
            outside += [*given(call), *cached(call, q)]
            record(layer, [call], names, edits)
    return next((held.name for held in outside if held.changed), None)


def kept(name: str, tensor: Tensor) -> Held:
    """Return a tensor that lives outside the layer, as it is now."""
    return Held(name, lambda: tensor, tensor.detach().clone())


def given(call: CallInputs) -> Iterator[Held]:
    """Yield the tensors that the caller of a layer hands it."""
    leaves, _ = tree_flatten_with_path(dict(call.given))
    for path, leaf in leaves:
        if isinstance(leaf, Tensor):
            yield kept(f"the caller's {keystr(path)}", leaf)


def cached(call: CallInputs, q: Question) -> Iterator[Held]:
    """Yield the keys and values that earlier calls left in a growing cache."""
    cache: Any = call.given.get("cache")
    number = cache_layer(call.given, q.specimen.module, q.specimen.variant)
    seen = 0 if cache is None else int(cache.get_seq_length(number))
    for kind in ("keys", "values") if seen else ():

        def read(kind: str = kind) -> Tensor:
            heads: Tensor = getattr(cache.layers[number], kind)  # (batch, kv_head, key, width)
            return heads[:, :, :seen]

        yield Held(f"the cached {kind}", read, read().clone())


@contextmanager
def raw_hooks(module: nn.Module, outside: list[Held]) -> Iterator[None]:
    """Add to a list what raw hooks of torch on the parts of a module are given, while it is
    called."""

    def keep(name: str, part: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outside.append(kept(f"what a raw hook on {name} was given", output))

    with ExitStack() as stack:
        for name, part in module.named_modules():
            if name:
                handle = part.register_forward_hook(partial(keep, name))
                stack.callback(handle.remove)
        yield
