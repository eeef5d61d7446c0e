"""Faults of how hooks are called, and of what becomes of what they leave."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.mutants.applies import (
    all_of,
    always,
    gives_back_its_width,
    half_precision,
    has_mask,
    makes_kv,
    opts_in_to,
    reads_own_cache,
    rotates,
    scales_scores,
    shares_nothing,
)
from ropebridge_conformance.mutants.mutant import (
    ALONE,
    AXES,
    EDITS,
    Around,
    Mutant,
    hooked_as,
)
from ropebridge_conformance.subjects.parts import Hooks, name_of
from ropebridge_conformance.subjects.reference import ReferenceLayer, Run, Show, show
from ropebridge_conformance.zoo.calls import cache_layer
from ropebridge_spec import ContractError, HookFunction, Variant, hook_order


def drops_edits(hook: str) -> Show:
    """Make a fault: the hook is shown a copy, and what it leaves is thrown away."""

    def shown(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
        edited = show(name, value, hooks)
        return value if name == hook else edited

    return shown


def fires_twice(hook: str) -> Show:
    """Make a fault: every hook is called a second time."""
    return lambda name, value, hooks: show(name, value, [*hooks, *hooks] if name == hook else hooks)


def never_fires(hook: str) -> Show:
    """Make a fault: the hook point is passed by."""
    return lambda name, value, hooks: show(name, value, [] if name == hook else hooks)


def shows_heads_first(hook: str) -> Show:
    """Make a fault: the value is shown as batch head pos d_head."""

    def shown(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
        return (
            show(name, value.transpose(1, 2), hooks).transpose(1, 2)
            if name == hook
            else show(name, value, hooks)
        )

    return shown


def shows_float32(hook: str) -> Show:
    """Make a fault: the value is shown, and kept, in float32."""

    def shown(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
        return (
            show(name, value.float(), hooks).to(value.dtype)
            if name == hook
            else show(name, value, hooks)
        )

    return shown


def last_word(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
    """Take only the first row of the batch of what hooks give back."""
    left = show(name, value, hooks)
    return left if left is value else torch.cat([left[:1], value[1:]])


def in_place_dropped(hook: str) -> Show:
    """Make a fault: a hook is shown one copy, and the layer goes on with another unless it gives
    something back."""

    def shown(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
        if name != hook:
            return show(name, value, hooks)
        for fn in hooks:
            value = show(name, value, [returning(fn, value)])
        return value

    return shown


def returning(fn: HookFunction, value: Tensor) -> HookFunction:
    """Return a hook whose edits in place are undone."""

    def called(tensor: Tensor, hook: Any) -> Tensor:
        replacement = fn(tensor, hook=hook)
        return value.clone() if replacement is None else replacement

    return called


def shows_itself(hook: str) -> Show:
    """Make a fault: a hook is shown the very tensor that others hold."""

    def shown(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
        if name != hook:
            return show(name, value, hooks)
        for fn in hooks:
            replacement = fn(value, hook=SimpleNamespace(name=f"blocks.0.attn.{name}"))
            value = value if replacement is None else replacement
        return value

    return shown


def shows_a_transpose(hook: str) -> Show:
    """Make a fault: the value is shown as a transpose of what lies in memory."""

    def shown(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
        if name != hook:
            return show(name, value, hooks)
        transposed = value.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        return shows_itself(hook)(name, transposed.transpose(1, 2), hooks)

    return shown


def shows_a_part(hook: str) -> Show:
    """Make a fault: the value is shown as a part of a larger tensor."""

    def shown(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
        if name != hook:
            return show(name, value, hooks)
        larger = torch.cat([value, value])
        return shows_itself(hook)(name, larger[: value.shape[0]], hooks)

    return shown


def gives_away_what_it_showed(layer: ReferenceLayer) -> Run:
    """Make a fault: the caller is given the very tensor that hook_out was shown."""

    def run(
        inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        kept: list[Tensor] = []
        last = ("hook_out", lambda tensor, hook: kept.append(tensor))
        out, pattern = layer.call(inputs, [*hooks, last], backward)
        return (kept[0] if kept else out), pattern

    return run


def takes_anything(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
    """Make a fault: what does not fit is passed over, and nobody is told."""
    shown = value.clone()
    for fn in hooks:
        replacement = fn(shown, hook=SimpleNamespace(name=f"blocks.0.attn.{name}"))
        fits = (
            isinstance(replacement, Tensor)
            and replacement.shape == shown.shape
            and replacement.dtype == shown.dtype
        )
        shown = replacement if fits and not replacement.is_meta else shown
    return shown


def short_names(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
    """Make a fault: hook.name says nothing of where the layer is."""
    return show(
        name,
        value,
        [lambda tensor, hook, fn=fn: fn(tensor, hook=SimpleNamespace(name=name)) for fn in hooks],
    )


def known_hooks_only(layer: ReferenceLayer) -> Run:
    """Make a fault: a hook at a point that the layer does not have is passed over."""
    there = {hook.name for hook in hook_order(layer.variant, layer.opted_in)}
    return lambda inputs, hooks, backward: layer.call(
        inputs, [(hook, fn) for hook, fn in hooks if name_of(hook) in there], backward
    )


def swapped(hooks: Hooks) -> Hooks:
    """Call the hooks of keys at values, and the other way about."""
    other = {"hook_k": "hook_v", "hook_v": "hook_k"}
    return [(other.get(name_of(hook), hook), fn) for hook, fn in hooks]


def pattern_with_scores_only(hooks: Hooks) -> Hooks:
    """Make a fault: hook_pattern is called only where hook_attn_scores is watched too."""
    watched = {name_of(hook) for hook, _ in hooks}
    return [
        (hook, fn)
        for hook, fn in hooks
        if name_of(hook) != "hook_pattern" or "hook_attn_scores" in watched
    ]


def editing_moves_the_input(layer: ReferenceLayer) -> Run:
    """Give the layer another input where a hook point has two hooks."""

    def run(
        inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        names = [name_of(hook) for hook, _ in hooks]
        factor = 1 if len(set(names)) == len(names) else 1.5
        return layer.call(
            {**inputs, "hidden_states": inputs["hidden_states"] * factor}, hooks, backward
        )

    return run


def first_replacement_wins(hook: str) -> Show:
    """Make a fault: once a hook gave something back, those after it are shown that and change
    nothing."""

    def shown(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
        if name != hook:
            return show(name, value, hooks)
        for at, fn in enumerate(hooks):
            left = show(name, value, [fn])
            if not torch.equal(left, value):
                show(name, left, hooks[at + 1 :])
                return left
        return value

    return shown


def each_is_shown_the_first(hook: str) -> Show:
    """Make a fault: each hook is shown the value as it was; what the last leaves goes on."""

    def shown(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
        if name != hook:
            return show(name, value, hooks)
        left = value
        for fn in hooks:
            left = show(name, value, [fn])
        return left

    return shown


def one_hook_at(hook: str) -> Callable[[Hooks], Hooks]:
    """Make a fault: of the hooks at a point the last takes the place of those before."""

    def kept(hooks: Hooks) -> Hooks:
        own = [pair for pair in hooks if name_of(pair[0]) == hook]
        return [pair for pair in hooks if pair not in own[:-1]]

    return kept


def under_gradients(wrong: Show) -> Show:
    """Make a fault that is there only where a gradient is taken."""
    return lambda name, value, hooks: (
        wrong(name, value, hooks) if value.requires_grad else show(name, value, hooks)
    )


def doubled_in_inference_mode(hook: str) -> Show:
    """Make a fault: in inference mode a value is doubled."""

    def shown(name: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
        twice = name == hook and torch.is_inference_mode_enabled()
        return show(name, value * 2 if twice else value, hooks)

    return shown


def alone_otherwise(watched: tuple[str, ...], other: Callable[[Variant], Variant]) -> Around:
    """Make a fault: where these hook points are watched, and no others, the layer computes what
    another description says."""

    def around(layer: ReferenceLayer) -> Run:
        def run(
            inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
        ) -> tuple[Tensor, Tensor | None]:
            alone = {name_of(hook) for hook, _ in hooks} == set(watched)
            own = replace(layer, variant=other(layer.variant)) if alone else layer
            return own.call(inputs, hooks, backward)

        return run

    return around


def unrotated(variant: Variant) -> Variant:
    """Return a layer that rotates nothing: it turns pairs of no width."""
    return replace(variant, rotary=None)


def unscaled(variant: Variant) -> Variant:
    """Return a layer that does not scale its scores."""
    return replace(variant, scale=1.0)


def weights_before_an_edit(layer: ReferenceLayer) -> Run:
    """Make a fault: the weights that are returned are those of a call without hooks."""

    def run(
        inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        own = {**inputs, "cache": copy.deepcopy(inputs.get("cache"))}
        _, weights = layer.call(own, [], [])
        out, _ = layer.call(inputs, hooks, backward)
        return out, weights

    return run


def edited(hooks: Hooks, hook: str) -> bool:
    """Return whether two hooks are at a point: the judge edits, and looks at what is left."""
    return [name_of(at) for at, _ in hooks].count(hook) > 1


def edit_reaches_a_raw_hook(layer: ReferenceLayer) -> Run:
    """Make a fault: the tensor that a module gave is shown to hook_q itself."""

    def run(
        inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        module: Any = layer.module.get_submodule(layer.variant.roles["q"])
        projected = module(inputs["hidden_states"])
        made = layer.call(inputs, hooks, backward)
        if edited(hooks, "hook_q"):
            projected.mul_(2)
        return made

    return run


def edit_reaches_earlier_keys(layer: ReferenceLayer) -> Run:
    """Make a fault: an edit of this call's keys is one of all keys in the cache."""

    def run(
        inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        made, cache = layer.call(inputs, hooks, backward), inputs.get("cache")
        if cache is not None and edited(hooks, "hook_rot_k"):
            held = cache.layers[cache_layer(inputs, layer.module, layer.variant)]
            held.keys[:, :, : -inputs["hidden_states"].shape[1]] *= 2
        return made

    return run


def mask_is_written_to(layer: ReferenceLayer) -> Run:
    """Make a fault: the mask is cut off where it lies."""

    def run(
        inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        made = layer.call(inputs, hooks, backward)
        inputs["attention_mask"].clamp_(min=-10_000)
        return made

    return run


def input_is_written_to(layer: ReferenceLayer) -> Run:
    """Make a fault: the output takes the place of the hidden states."""

    def run(
        inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        out, pattern = layer.call(inputs, hooks, backward)
        inputs["hidden_states"].copy_(out)
        return out, pattern

    return run


def stretches(hook: str) -> Show:
    """Make a fault: a replacement that can be stretched to the value's shape is."""

    def stretched(fn: HookFunction, value: Tensor) -> HookFunction:
        def called(tensor: Tensor, hook: Any) -> Any:
            left = fn(tensor, hook=hook)
            fits = isinstance(left, Tensor) and left.ndim == value.ndim
            small = fits and all(a in (1, b) for a, b in zip(left.shape, value.shape, strict=True))
            return left.expand_as(value).contiguous() if small else left

        return called

    return lambda name, value, hooks: show(
        name, value, [stretched(fn, value) for fn in hooks] if name == hook else hooks
    )


def backward_hooks_passed_over(layer: ReferenceLayer) -> Run:
    """Make a fault: where no gradient is taken, backward hooks are passed over."""
    return lambda inputs, hooks, backward: layer.call(
        inputs, hooks, backward if torch.is_grad_enabled() else ()
    )


def changed_by_a_refusal(layer: ReferenceLayer) -> Run:
    """Make a fault: what a refused call had begun stays in the layer."""

    def run(
        inputs: Mapping[str, Any], hooks: Hooks, backward: Hooks
    ) -> tuple[Tensor, Tensor | None]:
        try:
            out, pattern = layer.call(inputs, hooks, backward)
        except ContractError:
            object.__setattr__(layer, "refused", True)
            raise
        return (out / 2 if getattr(layer, "refused", False) else out), pattern

    return run


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "edit_of_k_dropped",
        "hook_rot_k is shown a copy",
        "hook_rot_k",
        always,
        show=drops_edits("hook_rot_k"),
        clause="EDIT-1",
    ),
    Mutant(
        "edit_of_pattern_dropped",
        "hook_pattern is shown a copy",
        "hook_pattern",
        always,
        show=drops_edits("hook_pattern"),
        clause="EDIT-1",
    ),
    Mutant(
        "edit_of_z_dropped",
        "hook_z is shown a copy",
        "hook_z",
        always,
        show=drops_edits("hook_z"),
        clause="EDIT-1",
    ),
    Mutant(
        "edit_of_out_dropped",
        "hook_out is shown a copy",
        "hook_out",
        always,
        show=drops_edits("hook_out"),
        clause="EDIT-1",
    ),
    Mutant(
        "fires_twice",
        "hook_v fires twice",
        "hook_v",
        always,
        show=fires_twice("hook_v"),
        clause="FIRE-1",
    ),
    Mutant(
        "never_fires",
        "hook_z never fires",
        "hook_z",
        always,
        show=never_fires("hook_z"),
        clause="FIRE-1",
    ),
    Mutant(
        "heads_first",
        "hook_q is shown as batch head pos d_head",
        "hook_q",
        always,
        show=shows_heads_first("hook_q"),
        clause="PROJ-2",
    ),
    Mutant(
        "promoted",
        "hook_attn_scores is shown in float32",
        "hook_attn_scores",
        half_precision,
        show=shows_float32("hook_attn_scores"),
        clause="TYPE-1",
    ),
    Mutant(
        "edit_of_in_dropped",
        "hook_in is shown a copy",
        "hook_in",
        show=drops_edits("hook_in"),
        clause="EDIT-1",
    ),
    Mutant(
        "edit_of_q_dropped",
        "hook_q is shown a copy",
        "hook_q",
        show=drops_edits("hook_q"),
        clause="EDIT-1",
    ),
    Mutant(
        "edit_of_v_dropped",
        "hook_v is shown a copy",
        "hook_v",
        makes_kv,
        show=drops_edits("hook_v"),
        clause="EDIT-1",
    ),
    Mutant(
        "edit_of_scores_dropped",
        "hook_attn_scores is shown a copy",
        "hook_attn_scores",
        show=drops_edits("hook_attn_scores"),
        clause="EDIT-1",
    ),
    Mutant(
        "edit_of_sin_dropped",
        "hook_sin is shown a copy",
        "hook_sin",
        rotates,
        show=drops_edits("hook_sin"),
        clause="EDIT-1",
    ),
    Mutant(
        "edit_of_result_dropped",
        "hook_result is shown a copy",
        "hook_result",
        opts_in_to("attn_result"),
        show=drops_edits("hook_result"),
        clause="EDIT-1",
    ),
    Mutant(
        "edit_of_first_row",
        "an edit counts for the first row of the batch alone",
        "hook_in",
        show=last_word,
        arms=EDITS,
    ),
    Mutant(
        "edit_in_place_dropped",
        "an edit in place at hook_q is dropped",
        "hook_q",
        show=in_place_dropped("hook_q"),
        clause="EDIT-2",
        arms=("an_edit_in_place_is_what_the_rest_of_the_layer_sees",),
    ),
    Mutant(
        "input_is_shared",
        "hook_in is shown the caller's own tensor",
        "hook_in",
        show=shows_itself("hook_in"),
        clause="EDIT-2",
        arms=("an_edit_in_place_stays_in_the_layer",),
    ),
    Mutant(
        "tables_are_shared",
        "hook_cos is shown the table of all layers",
        "hook_cos",
        rotates,
        show=shows_itself("hook_cos"),
        clause="EDIT-2",
        arms=("an_edit_in_place_stays_in_the_layer",),
    ),
    Mutant(
        "z_is_shown_transposed",
        "hook_z is shown a transpose of what lies in memory",
        "hook_z",
        show=shows_a_transpose("hook_z"),
        clause="EDIT-2",
        arms=("a_hook_is_shown_a_contiguous_tensor_of_its_own",),
    ),
    Mutant(
        "pattern_is_shown_in_part",
        "hook_pattern is shown a part of a larger tensor",
        "hook_pattern",
        show=shows_a_part("hook_pattern"),
        clause="EDIT-2",
        arms=("a_hook_is_shown_a_contiguous_tensor_of_its_own",),
    ),
    Mutant(
        "output_is_shared",
        "the caller is given the tensor that hook_out was shown",
        "hook_out",
        around=gives_away_what_it_showed,
        clause="EDIT-2",
        arms=("a_hook_is_shown_a_contiguous_tensor_of_its_own",),
    ),
    Mutant(
        "misfits_passed_over",
        "a replacement that does not fit is passed over",
        "hook_in",
        show=takes_anything,
        clause="EDIT-3",
        arms=("a_replacement_that_does_not_fit_is_refused",),
    ),
    Mutant(
        "short_names",
        "hook.name has no layer in it",
        "hook_in",
        show=short_names,
        clause="FIRE-4",
        arms=ALONE,
    ),
    Mutant(
        "unknown_passed_over",
        "a hook that is not there is passed over",
        "hook_in",
        around=known_hooks_only,
        clause="FIRE-3",
        arms=("a_hook_point_that_is_not_there_is_refused",),
    ),
    Mutant(
        "key_and_value_swapped",
        "hooks of keys fire at values",
        "hook_k",
        makes_kv,
        around=hooked_as(swapped),
        clause="FIRE-1",
    ),
    Mutant(
        "pattern_with_scores_only",
        "hook_pattern fires only beside hook_attn_scores",
        "hook_pattern",
        around=hooked_as(pattern_with_scores_only),
        clause="FIRE-2",
        arms=ALONE,
    ),
    Mutant(
        "z_fires_twice",
        "hook_z fires twice",
        "hook_z",
        show=fires_twice("hook_z"),
        clause="FIRE-2",
        arms=ALONE,
    ),
    Mutant(
        "editing_moves_the_input",
        "an edit moves what comes before it",
        "hook_in",
        around=editing_moves_the_input,
        clause="EDIT-1",
        arms=EDITS,
    ),
    Mutant(
        "first_replacement_wins",
        "of two hooks at hook_q the first to give something back counts",
        "hook_q",
        show=first_replacement_wins("hook_q"),
        clause="EDIT-1",
        arms=("of_two_hooks_at_one_point_both_count",),
    ),
    Mutant(
        "second_hook_sees_the_first_value",
        "at hook_z each hook is shown the value as it was",
        "hook_z",
        show=each_is_shown_the_first("hook_z"),
        clause="EDIT-1",
        arms=("of_two_hooks_at_one_point_both_count",),
    ),
    Mutant(
        "one_hook_at_a_point",
        "of two hooks at hook_pattern the last one added is called alone",
        "hook_pattern",
        around=hooked_as(one_hook_at("hook_pattern")),
        clause="EDIT-1",
        arms=("of_two_hooks_at_one_point_both_count",),
    ),
    Mutant(
        "edit_through_a_view_lost",
        "hook_z is shown a transpose of what lies in memory, and a reshape is a copy",
        "hook_z",
        show=shows_a_transpose("hook_z"),
        clause="EDIT-2",
        arms=("an_edit_through_a_view_is_an_edit_in_place",),
    ),
    Mutant(
        "edit_lost_under_gradients",
        "where gradients are taken an edit at hook_v is dropped",
        "hook_v",
        makes_kv,
        show=under_gradients(drops_edits("hook_v")),
        clause="EDIT-1",
        arms=("an_edit_counts_where_gradients_are_taken",),
    ),
    Mutant(
        "edit_in_place_lost_under_gradients",
        "where gradients are taken an edit in place at hook_pattern is dropped",
        "hook_pattern",
        show=under_gradients(in_place_dropped("hook_pattern")),
        clause="EDIT-2",
        arms=("an_edit_counts_where_gradients_are_taken",),
    ),
    Mutant(
        "z_alone_is_of_unrotated_query",
        "where hook_z alone is watched nothing is rotated",
        "hook_z",
        rotates,
        around=alone_otherwise(("hook_z",), unrotated),
        clause="LOOK-1",
        arms=("what_is_shown_does_not_depend_on_who_watches",),
    ),
    Mutant(
        "scores_alone_are_not_scaled",
        "where hook_attn_scores alone is watched the scores are not scaled",
        "hook_attn_scores",
        scales_scores,
        around=alone_otherwise(("hook_attn_scores",), unscaled),
        clause="LOOK-1",
        arms=("what_is_shown_does_not_depend_on_who_watches",),
    ),
    Mutant(
        "pattern_and_z_of_unscaled_scores",
        "where pattern and z are watched, and no scores, these are not scaled",
        "hook_pattern",
        scales_scores,
        around=alone_otherwise(("hook_pattern", "hook_z"), unscaled),
        clause="LOOK-1",
        arms=("what_is_shown_does_not_depend_on_who_watches",),
    ),
    Mutant(
        "pattern_is_doubled_in_inference_mode",
        "in inference mode hook_pattern is doubled",
        "hook_pattern",
        show=doubled_in_inference_mode("hook_pattern"),
        clause="LOOK-1",
        arms=("what_is_shown_does_not_depend_on_who_watches",),
    ),
    Mutant(
        "weights_are_those_before_an_edit",
        "the returned weights are the pattern before an edit",
        "hook_pattern",
        around=weights_before_an_edit,
        clause="PAT-3",
        arms=("returned_weights_are_the_pattern",),
    ),
    Mutant(
        "edit_reaches_a_raw_hook",
        "what a raw hook on the query projection was given is what hook_q edits",
        "hook_q",
        makes_kv,
        around=edit_reaches_a_raw_hook,
        clause="EDIT-2",
        arms=("an_edit_in_place_stays_in_the_layer",),
    ),
    Mutant(
        "edit_reaches_earlier_keys",
        "an edit at hook_rot_k moves the keys that earlier calls left in the cache",
        "hook_rot_k",
        all_of(reads_own_cache, shares_nothing),
        around=edit_reaches_earlier_keys,
        clause="EDIT-2",
        arms=("an_edit_in_place_stays_in_the_layer",),
    ),
    Mutant(
        "mask_is_written_to",
        "the caller's mask is cut off at minus ten thousand",
        "hook_in",
        has_mask("additive"),
        around=mask_is_written_to,
        clause="EDIT-2",
        arms=("a_call_changes_none_of_its_inputs",),
    ),
    Mutant(
        "input_is_written_to",
        "the caller's hidden states are overwritten by the output",
        "hook_in",
        gives_back_its_width,
        around=input_is_written_to,
        clause="EDIT-2",
        arms=("a_call_changes_none_of_its_inputs",),
    ),
    Mutant(
        "a_broadcast_is_taken",
        "a replacement of another shape is stretched to fit hook_v",
        "hook_v",
        makes_kv,
        show=stretches("hook_v"),
        clause="EDIT-3",
        arms=("a_replacement_that_does_not_fit_is_refused",),
    ),
    Mutant(
        "backward_hooks_passed_over",
        "where no gradient is taken backward hooks are passed over",
        "hook_in",
        around=backward_hooks_passed_over,
        clause="FIRE-3",
        arms=("a_backward_hook_that_cannot_fire_is_refused",),
    ),
    Mutant(
        "a_refusal_leaves_something_behind",
        "after a refusal the layer goes on at half its scale",
        "hook_out",
        around=changed_by_a_refusal,
        clause="EDIT-3",
        arms=("a_replacement_that_does_not_fit_is_refused",),
    ),
    Mutant(
        "query_promoted",
        "hook_q is shown in float32",
        "hook_q",
        half_precision,
        show=shows_float32("hook_q"),
        clause="TYPE-1",
        arms=AXES,
    ),
    Mutant(
        "z_promoted",
        "hook_z is shown in float32",
        "hook_z",
        half_precision,
        show=shows_float32("hook_z"),
        clause="TYPE-1",
        arms=AXES,
    ),
)
