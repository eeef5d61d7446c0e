"""Costs: what a layer allocates where nobody watches, on which device, and that it reads no number
off a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ropebridge_conformance.checks.firing import complaint_about, first_amiss
from ropebridge_conformance.judging.bench import Bench, Watch
from ropebridge_conformance.judging.compare import Difference
from ropebridge_conformance.judging.findings import Finding, failed, passed
from ropebridge_conformance.judging.questions import Question, check
from ropebridge_conformance.subjects.traces import record
from ropebridge_conformance.zoo.calls import CallInputs, calls
from ropebridge_conformance.zoo.scenarios import Scenario, possible, tables_go_on
from ropebridge_conformance.zoo.specimens import specimen
from ropebridge_spec import Variant, ungrouped

READS = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select")
"""What makes a number, or a shape, of what a tensor holds: `item`, `if tensor`, `torch.equal`,
indexing by booleans."""


class Made(TorchDispatchMode):
    """Counts what operations make.

    elements: of the largest storage that any operation gave back. by: that operation. devices: of
        all they gave back.
    reads: the operations that read a number off a tensor.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements, self.by = 0, ""
        self.devices: set[str] = set()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().partition(".")[0] in READS:
            self.reads.append(func.name())
        result = func(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)):
            self.devices.add(tensor.device.type)
            elements = tensor.untyped_storage().nbytes() // tensor.element_size()
            if elements > self.elements:
                self.elements, self.by = elements, func.name()
        return result


def on_demand(scenario: Scenario, variant: Variant) -> bool:
    """Accept layers that can be called with so many positions, and whose keys nobody else picks."""
    return possible(scenario, variant) and variant.selector is None and tables_go_on(variant)


def unselected(scenario: Scenario, variant: Variant) -> bool:
    """Accept layers whose numbers are all their own: a selector is a module of the family's, and
    does as it likes."""
    return possible(scenario, variant) and variant.selector is None


@check("MEM-1", scenarios=("long",), dtypes=("float32", "bfloat16"), where=on_demand)
def nothing_of_size_query_by_key_is_made_where_nobody_watches(bench: Bench, q: Question) -> Finding:
    """MEM-1: counted, operation by operation, with no hook, and with one at every point but scores
    and pattern."""
    worst = None
    watches: tuple[Watch, ...] = ("none", "fused")
    for watch in watches:
        made, call = counted(bench, q, watch)
        limit = call.given["hidden_states"].shape[1] * call.keys
        worst = Difference(made.elements / (limit - 1), made.elements, limit - 1, ())
        if not worst.fits:
            return failed(
                f"{made.by} made {made.elements} elements; query times key is {limit} (watching"
                f" {watch})",
                worst,
                divergent="hook_attn_scores",
            )
    return passed(worst)


def counted(bench: Bench, q: Question, watch: Watch) -> tuple[Made, CallInputs]:
    """Return what is made in the scenario's call."""
    layer = bench.layer(q.specimen, q.situation.opted_in)
    call = calls(q.situation, q.specimen, layer)[0]
    hooks = [(name, nothing) for name in bench.watched(q.specimen, q.situation, watch)]
    with torch.no_grad(), Made() as made:
        layer.run(call.inputs, hooks)
    return made, call


def nothing(tensor: Tensor, hook: Any) -> None:
    """Do nothing: a hook that looks away."""


@check("TYPE-2", scenarios=("prefill", "no_mask", "decode"), dtypes=("float32",), where=unselected)
def no_number_is_read_on_the_way(bench: Bench, q: Question) -> Finding:
    """TYPE-2: watched or not, a call asks no tensor for a number, which would make an accelerator
    wait; on a CPU, which may read its mask, a call without one."""
    layer = bench.layer(q.specimen, q.situation.opted_in)
    watches: tuple[Watch, ...] = ("none", "fused", "all")
    for watch in watches:
        hooks = [(name, nothing) for name in bench.watched(q.specimen, q.situation, watch)]
        for call in calls(q.situation, q.specimen, layer):
            masked = {} if q.device != "cpu" else {"attention_mask": None}
            with Made() as made:
                layer.run({**call.inputs, **masked}, hooks)
            if made.reads:
                return failed(
                    f"{made.reads[0]} reads a number off a tensor (watching {watch})",
                    divergent="hook_in",
                )
    return passed()


@check("TYPE-2", scenarios=("prefill", "no_mask", "attn_in"), dtypes=("float32",), where=unselected)
def a_layer_runs_on_meta(bench: Bench, q: Question) -> Finding:
    """TYPE-2: on the meta device every hook fires, with the shape and dtype of its clauses, and
    nothing is made on another device."""
    meta = specimen(q.case, getattr(torch, q.dtype), "meta")
    layer = bench.layer(meta, q.situation.opted_in)
    variant, wanted = (
        ungrouped(meta.variant, q.situation.opted_in),
        list(bench.watched(meta, q.situation, "all")),
    )
    for watch in ("none", "all"):
        for call in map(on_meta, calls(q.situation, q.specimen, None)):
            with Made() as made:
                (trace,) = record(layer, [call], wanted if watch == "all" else ())
            if made.devices - {"meta"}:
                return failed(
                    f"a tensor was made on {', '.join(sorted(made.devices - {'meta'}))} (watching"
                    f" {watch})",
                    divergent="hook_in",
                )
            amiss = complaints(trace, wanted, variant) if watch == "all" else ""
            if amiss or trace.out is None or trace.out.device.type != "meta":
                return failed(
                    amiss or "the output is not on meta",
                    divergent=first_amiss(trace.fired, wanted) if trace.fired != wanted else None,
                )
    return passed()


def on_meta(call: CallInputs) -> CallInputs:
    """Return a call whose tensors hold no numbers: made elsewhere, because some rotary modules read
    one to choose their frequencies."""
    return replace(
        call,
        given=tree_map(
            lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, dict(call.given)
        ),
    )


def complaints(trace: Any, wanted: Sequence[str], variant: Variant) -> str:
    """Return what is wrong with the order or the shapes of a call."""
    if trace.fired != list(wanted):
        return f"on meta fired {trace.fired}; clause FIRE-1 requires {list(wanted)}"
    return next(
        (words for words in (complaint_about(trace, name, variant) for name in wanted) if words), ""
    )
