"""Faults of the layer as a whole: what it allocates, where, what it leaves behind, and what it does
in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout

from ropebridge_conformance.mutants.applies import has_rows_that_see_nothing
from ropebridge_conformance.mutants.mutant import (
    Around,
    Mutant,
    change,
    described_as,
)
from ropebridge_conformance.stages.functions import STAGES
from ropebridge_conformance.stages.pattern import pattern_uniform_where_dead
from ropebridge_conformance.subjects.parts import Hooks
from ropebridge_conformance.subjects.reference import ReferenceLayer, Run, as_it_is, show
from ropebridge_conformance.zoo.scenarios import Scenario
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_reference import make_pattern, mix_values, project_output
from ropebridge_spec import HookFunction, Variant, Watch

TRAINING, DROPPED_OUT = (
    ("dropout_comes_after_the_pattern_and_in_training_alone",),
    ("output_dropout_comes_after_hook_out",),
)
UNTOUCHED = ("the_module_is_left_as_it_is",)


def made_on_cpu(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
    """Make a fault: something is made on the cpu, wherever the layer is."""
    torch.zeros(1)
    return show(name, value, hooks)


def number_read(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
    """Make a fault: a number is read off a tensor."""
    if not value.is_meta:
        value.sum().item()
    return show(name, value, hooks)


def leaves_hooks_behind() -> Around:
    """Make a fault: hooks lie in one list for all layers, which a call that raises does not
    empty."""
    held: list[tuple[str | Watch, HookFunction]] = []

    def around(layer: ReferenceLayer) -> Run:
        def run(
            inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
        ) -> tuple[Tensor, Tensor | None]:
            held.extend(hooks)
            made = layer.call(inputs, list(held), backward)
            held.clear()
            return made

        return run

    return around


def remembers_the_last_edit() -> Around:
    """Make a fault: the hooks of one layer's call are called once more in the next call of any
    layer that has none."""
    held: list[tuple[str | Watch, HookFunction]] = []

    def around(layer: ReferenceLayer) -> Run:
        def run(
            inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
        ) -> tuple[Tensor, Tensor | None]:
            now = list(hooks or held)
            held[:] = hooks
            return layer.call(inputs, now, backward)

        return run

    return around


def touches(module_is_changed: Callable[[Any], object]) -> Around:
    """Make a fault: a call changes the module that the layer is built around."""

    def around(layer: ReferenceLayer) -> Run:
        module_is_changed(layer.module)
        return layer.call

    return around


def leave_a_hook(module: Any) -> None:
    module.register_forward_hook(lambda *_: None)


def leave_an_attribute(module: Any) -> None:
    module.watched = True


def switch_the_mode(module: Any) -> None:
    module.train(not module.training)


def scale_a_weight(module: Any) -> None:
    with torch.no_grad():
        next(module.parameters()).mul_(1.5)


def undropped(variant: Variant) -> Variant:
    return replace(variant, dropout=0.0)


def dropped_too_often(variant: Variant) -> Variant:
    return replace(variant, dropout=variant.dropout and 1 - (1 - variant.dropout) ** 4)


def output_undropped(variant: Variant) -> Variant:
    return replace(variant, output_dropout=0.0)


def trained_with(
    wrong: Callable[[float], Mapping[str, Callable[..., Tensor]]], *, always: bool = False
) -> Around:
    """Use other stages in training mode, or always; the layer's own dropout is off."""

    def around(layer: ReferenceLayer) -> Run:
        rate = layer.variant.dropout or layer.variant.output_dropout
        stages = change(**wrong(rate)) if layer.module.training or always else STAGES
        still = replace(layer.variant, dropout=0.0, output_dropout=0.0)
        return replace(
            layer, variant=still, factory=replace(layer.factory, stages=stages, around=as_it_is)
        ).call

    return around


def dropped_before_its_hook(rate: float) -> Mapping[str, Callable[..., Tensor]]:
    return {"make_pattern": lambda s, sinks: dropout(make_pattern(s, sinks), rate)}


def dropped_and_not_doubled(rate: float) -> Mapping[str, Callable[..., Tensor]]:
    return {"mix_values": lambda p, v: mix_values(dropout(p, rate) * (1 - rate), v)}


def dropped_on_the_way(rate: float) -> Mapping[str, Callable[..., Tensor]]:
    return {"mix_values": lambda p, v: mix_values(dropout(p, rate), v)}


def output_dropped_before_its_hook(rate: float) -> Mapping[str, Callable[..., Tensor]]:
    return {"project_output": lambda z, W, b: dropout(project_output(z, W, b), rate)}


def first_layer_serves_all() -> Around:
    """Make a fault: every layer computes with the weights of the first that was called."""
    first: list[ReferenceLayer] = []

    def around(layer: ReferenceLayer) -> Run:
        first.append(layer)
        return replace(layer, module=first[0].module).call

    return around


def dead_rows_spread(rate: float) -> Mapping[str, Callable[..., Tensor]]:
    return {"make_pattern": pattern_uniform_where_dead}


def returned_after_dropout(layer: ReferenceLayer) -> Run:
    """Make a fault: the weights that are returned are those that dropout left."""

    def run(
        inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        out, weights = layer.call(inputs, hooks, backward)
        if layer.module.training and weights is not None:
            weights = dropout(weights, layer.variant.dropout)
        return out, weights

    return run


def drops_out(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers that drop out their output."""
    return specimen.variant.output_dropout > 0


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "pattern_always_made",
        "scores and pattern are made where nobody watches them",
        "hook_attn_scores",
        clause="MEM-1",
        arms=("nothing_of_size_query_by_key_is_made_where_nobody_watches",),
    ),
    Mutant(
        "made_on_cpu",
        "a tensor is made on the cpu, wherever the layer is",
        "hook_in",
        show=made_on_cpu,
        clause="TYPE-2",
        arms=("a_layer_runs_on_meta",),
    ),
    Mutant(
        "number_read",
        "a number is read off a tensor",
        "hook_in",
        show=number_read,
        clause="TYPE-2",
        arms=("no_number_is_read_on_the_way",),
    ),
    Mutant(
        "hooks_left_behind",
        "hooks of a call that raised are called in the next",
        "hook_in",
        around=leaves_hooks_behind(),
        clause="ISO-1",
        arms=("a_hook_that_raises_leaves_nothing_behind",),
    ),
    Mutant(
        "last_edit_remembered",
        "one layer's edit is made in another's next call",
        "hook_z",
        around=remembers_the_last_edit(),
        clause="ISO-1",
        arms=("layers_do_not_see_each_other",),
    ),
    Mutant(
        "first_layer_serves_all",
        "every layer computes with the weights of the first that was called",
        "hook_z",
        around=first_layer_serves_all(),
        clause="ISO-1",
        arms=("layers_do_not_see_each_other",),
    ),
    Mutant(
        "raw_hook_left",
        "a raw hook is left on the module",
        "hook_in",
        around=touches(leave_a_hook),
        clause="BACK-1",
        arms=UNTOUCHED,
    ),
    Mutant(
        "attribute_left",
        "an attribute is left on the module",
        "hook_in",
        around=touches(leave_an_attribute),
        clause="BACK-1",
        arms=UNTOUCHED,
    ),
    Mutant(
        "mode_switched",
        "the module is switched to training",
        "hook_in",
        around=touches(switch_the_mode),
        clause="BACK-1",
        arms=UNTOUCHED,
    ),
    Mutant(
        "weight_scaled",
        "a weight of the module is changed",
        "hook_in",
        around=touches(scale_a_weight),
        clause="BACK-1",
        arms=UNTOUCHED,
    ),
    Mutant(
        "nothing_dropped",
        "nothing is dropped in training",
        "hook_z",
        around=described_as(undropped),
        clause="DROP-1",
        arms=TRAINING,
    ),
    Mutant(
        "dropped_too_often",
        "more is dropped than the rate says",
        "hook_z",
        around=described_as(dropped_too_often),
        clause="DROP-1",
        arms=TRAINING,
    ),
    Mutant(
        "dropped_before_hook",
        "hook_pattern is what dropout left",
        "hook_pattern",
        around=trained_with(dropped_before_its_hook),
        clause="DROP-1",
        arms=TRAINING,
    ),
    Mutant(
        "dead_rows_spread_in_training",
        "in training a row that sees no key spreads its weight over all keys",
        "hook_pattern",
        has_rows_that_see_nothing,
        around=trained_with(dead_rows_spread),
        clause="MASK-6",
        arms=("a_row_that_sees_no_key_is_zero_in_training",),
    ),
    Mutant(
        "returned_after_dropout",
        "in training the weights that are returned are those that dropout left",
        "hook_pattern",
        around=returned_after_dropout,
        clause="PAT-3",
        arms=("returned_weights_are_the_pattern_before_dropout",),
    ),
    Mutant(
        "dropped_and_not_doubled",
        "what dropout keeps is not scaled up",
        "hook_z",
        around=trained_with(dropped_and_not_doubled),
        clause="DROP-1",
        arms=TRAINING,
    ),
    Mutant(
        "dropped_in_evaluation",
        "entries are dropped in evaluation too",
        "hook_z",
        around=trained_with(dropped_on_the_way, always=True),
        clause="DROP-1",
        arms=TRAINING,
    ),
    Mutant(
        "output_undropped",
        "the output is not dropped out",
        "hook_out",
        drops_out,
        around=described_as(output_undropped),
        clause="DROP-2",
        arms=DROPPED_OUT,
    ),
    Mutant(
        "output_dropped_before_hook",
        "hook_out is what dropout left",
        "hook_out",
        drops_out,
        around=trained_with(output_dropped_before_its_hook),
        clause="DROP-2",
        arms=DROPPED_OUT,
    ),
)
