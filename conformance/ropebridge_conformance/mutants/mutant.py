"""Define what a mutant is, and the means of making one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ropebridge_conformance.mutants.applies import Applies, always
from ropebridge_conformance.stages.functions import STAGES, Stages
from ropebridge_conformance.subjects.parts import Hooks
from ropebridge_conformance.subjects.reference import (
    Factory,
    ReferenceLayer,
    Run,
    Show,
    as_it_is,
    show,
    weights_as_they_are,
)
from ropebridge_conformance.zoo.scenarios import Scenario
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_reference import Weights
from ropebridge_spec import HOOK_BY_NAME, HookFunction, Variant, by_role

ARMS = (
    "hooks_fire_once_in_contract_order",
    "a_hook_has_the_axes_of_the_contract",
    "a_stage_gives_the_value_of_its_clause",
    "a_replacement_is_what_the_rest_of_the_layer_sees",
)
"""The checks that most faults are put to, in the order in which they are asked."""
AXES = ("a_hook_has_the_axes_of_the_contract",)
EDITS = ("a_replacement_is_what_the_rest_of_the_layer_sees",)
ALONE = ("a_hook_watched_alone_fires_once",)
MASKS = (
    "the_mask_is_the_whole_truth",
    "a_two_axis_mask_says_which_keys_are_padding",
    "a_mask_in_any_form_is_the_whole_truth",
    "padding_at_either_end_is_hidden_in_any_form",
)
STEPS = ("steps_of_any_kind_give_what_the_whole_gives",)
LENGTHS = ("a_call_of_any_length_holds_what_its_clauses_say",)
LEANING = ("the_errors_of_a_stage_do_not_lean",)

Around = Callable[[ReferenceLayer], Run]
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Mutant:
    """Hold a named fault, and how a layer is made to have it.

    fault: what is wrong, in a sentence.
    stage: the hook point at which it shows first. also: others at which it shows by itself, in
        layers of which also_where is true.
    applies: whether a specimen and a scenario can show it.
    stages: the reference's functions, one of them wrong. show: how values are shown to hooks,
        perhaps wrongly. weights: what is made of the learned tensors. around: what is made of a
        whole call. read: how the arguments of a call are read.
    clause: the clause it breaks; by default that of the stage's value.
    arms: the checks it is put to, in order.
    foil: whether its wrong values prove an input (`foils`): not where they stay within the bounds,
        nor where another's do already.
    """

    name: str
    fault: str
    stage: str
    applies: Applies = always
    stages: Stages = STAGES
    show: Show = show
    weights: Callable[[Weights, Variant], Weights] = weights_as_they_are
    around: Around = as_it_is
    read: Callable[[Mapping[str, Any], Variant], Mapping[str, Any]] = by_role
    also: tuple[str, ...] = ()
    also_where: Applies = always
    clause: str = ""
    arms: tuple[str, ...] = ARMS
    foil: bool = True

    @property
    def breaks(self) -> str:
        """Return the clause that it breaks."""
        return self.clause or HOOK_BY_NAME[self.stage].value_clause

    def hooks(self, specimen: Specimen, scenario: Scenario) -> tuple[str, ...]:
        """Return the hook points whose own value is wrong, and can be seen to be."""
        if not self.applies(specimen, scenario):
            return ()
        return (self.stage, *self.also) if self.also_where(specimen, scenario) else (self.stage,)

    def subject(self) -> Factory:
        """Return the mutant as a subject, which declares no gap."""
        return Factory(
            name=self.name,
            stages=self.stages,
            show=self.show,
            weights=self.weights,
            around=self.around,
            read=self.read,
            unsupported={},
        )


def change(**wrong: Callable[..., Any]) -> Stages:
    """Return the reference's stages with one of them replaced."""
    return replace(STAGES, **wrong)


def shows_as(hook: str, there: Change, back: Change) -> Show:
    """Make a fault: a value is shown as something else, and what the hooks leave is turned back."""

    def shown(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
        return (
            back(show(name, there(value), hooks))
            if name == hook and hooks
            else show(name, value, hooks)
        )

    return shown


def turns_to(hook: str, wrong: Change) -> Show:
    """Make a fault: a value is another, for hooks and for the rest of the layer."""
    return lambda name, value, hooks: show(name, wrong(value) if name == hook else value, hooks)


def goes_on_with(hook: str, wrong: Change) -> Show:
    """Make a fault: hooks are shown the right value, and the layer goes on with something else."""
    return lambda name, value, hooks: (
        wrong(show(name, value, hooks)) if name == hook else show(name, value, hooks)
    )


def given_other(wrong: Callable[[ReferenceLayer, Mapping[str, Any]], Mapping[str, Any]]) -> Around:
    """Make a fault: the layer reads something else than it is given."""
    return lambda layer: (
        lambda inputs, hooks, backward: layer.call(wrong(layer, inputs), hooks, backward)
    )


def described_as(wrong: Callable[[Variant], Variant]) -> Around:
    """Make a fault: the layer computes what another description says."""
    return lambda layer: replace(layer, variant=wrong(layer.variant)).call


def hooked_as(wrong: Callable[[Hooks], Hooks]) -> Around:
    """Make a fault: the layer is given other hooks than were asked for."""
    return lambda layer: lambda inputs, hooks, backward: layer.call(inputs, wrong(hooks), backward)
