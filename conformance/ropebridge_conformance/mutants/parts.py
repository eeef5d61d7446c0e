"""Faults in what a hook is given that asked for a part, and in what becomes of its edit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from ropebridge_conformance.mutants.mutant import Around, Mutant, hooked_as
from ropebridge_conformance.subjects.parts import Hooks, name_of, places
from ropebridge_conformance.subjects.reference import ReferenceLayer, Run
from ropebridge_spec import HookFunction, Watch


def with_parts(wrong: Callable[[HookFunction], HookFunction]) -> Around:
    """Make a fault: hooks of parts are called wrongly."""
    return hooked_as(
        lambda hooks: [
            (asked, wrong(fn) if isinstance(asked, Watch) else fn) for asked, fn in hooks
        ]
    )


def back_to_front(fn: HookFunction) -> HookFunction:
    """Show the heads, or the positions, of a part in the wrong order."""
    return lambda tensor, hook: fn(tensor.flip(1), hook=hook)


def untold(fn: HookFunction) -> HookFunction:
    """Say nothing of which part it is."""
    return lambda tensor, hook: fn(tensor, hook=SimpleNamespace(name=hook.name, selection=None))


def on_a_copy(fn: HookFunction) -> HookFunction:
    """Drop what a hook leaves of its part."""

    def hook(tensor: Tensor, hook: Any) -> None:
        fn(tensor.clone(), hook=hook)

    return hook


def the_whole_first(hooks: Hooks) -> Hooks:
    """Call the hooks of parts after those of the whole."""
    return sorted(hooks, key=lambda pair: isinstance(pair[0], Watch))


def apart(layer: ReferenceLayer) -> Run:
    """Make a fault: a part holds what was there before any hook."""

    def run(
        inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        first: dict[str, Tensor] = {}

        def keep(tensor: Tensor, hook: Any) -> None:
            first[hook.name] = tensor.clone()

        def unedited(fn: HookFunction, asked: Watch) -> HookFunction:
            def hook(tensor: Tensor, hook: Any) -> Any:
                whole, part = first[hook.name], hook.selection
                axes = layer.points[name_of(asked)].axes
                return fn(whole[places(part, axes, whole.shape)], hook=hook)

            return hook

        keeping: Hooks = [(name, keep) for name in dict.fromkeys(name_of(a) for a, _ in hooks)]
        wrong = [
            (asked, unedited(fn, asked) if isinstance(asked, Watch) else fn) for asked, fn in hooks
        ]
        return layer.call(inputs, [*keeping, *wrong], backward)

    return run


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "part_back_to_front",
        "a part of hook_in is shown back to front",
        "hook_in",
        around=with_parts(back_to_front),
        clause="PART-1",
        arms=("parts_hold_what_the_whole_would",),
    ),
    Mutant(
        "part_untold",
        "hook.selection does not say which part it is",
        "hook_in",
        around=with_parts(untold),
        clause="PART-1",
        arms=("parts_hold_what_the_whole_would",),
    ),
    Mutant(
        "edit_of_a_part_dropped",
        "an edit of a part is dropped",
        "hook_in",
        around=with_parts(on_a_copy),
        clause="PART-1",
        arms=("an_edit_of_a_part_is_what_the_rest_of_the_layer_sees",),
    ),
    Mutant(
        "parts_after_the_whole",
        "hooks of parts are called after those of the whole",
        "hook_q",
        around=hooked_as(the_whole_first),
        clause="PART-2",
        arms=("hooks_of_parts_see_what_those_before_left",),
    ),
    Mutant(
        "parts_made_apart",
        "a hook of a part does not see what those before it left",
        "hook_q",
        around=apart,
        clause="PART-2",
        arms=("hooks_of_parts_see_what_those_before_left",),
    ),
    Mutant(
        "pattern_made_for_parts",
        "scores and pattern are made where parts alone are watched",
        "hook_attn_scores",
        clause="MEM-2",
        arms=("parts_alone_make_nothing_of_size_query_by_key",),
    ),
)
