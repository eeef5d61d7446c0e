"""Edits: what a hook leaves is what the rest of the layer sees; earlier stages do not move."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.checks.values import across_gaps, held_at
from ropebridge_conformance.judging.bench import Bench, Watch
from ropebridge_conformance.judging.compare import compare, fits, ratios
from ropebridge_conformance.judging.findings import Finding, failed, passed, vacuous
from ropebridge_conformance.judging.questions import Question, any_hook, check
from ropebridge_conformance.stages.context import Context, Expectation, expect
from ropebridge_conformance.stages.oracle import contexts_after, unchanged
from ropebridge_conformance.subjects.answers import answered
from ropebridge_conformance.subjects.traces import Trace, record
from ropebridge_conformance.zoo.calls import CallInputs, calls
from ropebridge_conformance.zoo.scenarios import OPTED
from ropebridge_spec import HOOK_BY_NAME, HookSpec, axis_names
from ropebridge_spec.hooks import resolve

EDITED_CALLS = ("prefill", "decode", *OPTED)


def nudged(value: Tensor) -> Tensor:
    """Return a value edited so that no later stage can absorb it: affine, another number for every
    element. -inf stays."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(value.shape, generator=generator).to(value.device, value.dtype)
    return value * 1.25 + 0.5 * noise


def replace_all(value: Tensor) -> Tensor:
    """Give back another tensor."""
    return nudged(value)


def edit_in_place(value: Tensor) -> None:
    """Change the tensor that was shown, and give nothing back."""
    value.copy_(nudged(value))


def zero_one_head(axis: int, length: int) -> Callable[[Tensor], None]:
    """Set the last head to zero, in place; forbidden scores stay forbidden (SCORE-6)."""

    def edit(value: Tensor) -> None:
        head = value.narrow(axis, value.shape[axis] - length, length)
        head.masked_fill_(head.isfinite(), 0.0)

    return edit


def nudge_one_position(axis: int) -> Callable[[Tensor], None]:
    """Change what stands at the fourth position, in place."""

    def edit(value: Tensor) -> None:
        place = value.narrow(axis, 3, 1)
        place.copy_(nudged(place))

    return edit


def has_heads(hook: HookSpec) -> bool:
    """Accept hook points with an axis of heads."""
    return "head" in hook.axes


def unfused(hook: HookSpec) -> bool:
    """Accept hook points that exist where scores and pattern are not made."""
    return hook.name not in ("hook_attn_scores", "hook_pattern")


@check("EDIT-1", scenarios=EDITED_CALLS, hooks=any_hook, also=("EDIT-4",))
def a_replacement_is_what_the_rest_of_the_layer_sees(bench: Bench, q: Question) -> Finding:
    """EDIT-1: a returned tensor replaces the value; earlier stages are bit-identical, later ones as
    the reference says."""
    return judge_edit(bench, q, replace_all, "all")


@check("EDIT-2", scenarios=EDITED_CALLS, hooks=any_hook)
def an_edit_in_place_is_what_the_rest_of_the_layer_sees(bench: Bench, q: Question) -> Finding:
    """EDIT-2: an edit of the tensor that was shown counts as a replacement."""
    return judge_edit(bench, q, edit_in_place, "all")


@check("EDIT-2", scenarios=("prefill", *OPTED), hooks=has_heads, dtypes=("float32", "bfloat16"))
def a_zeroed_head_is_zero_for_the_rest_of_the_layer(bench: Bench, q: Question) -> Finding:
    """EDIT-2 on a part: one head set to zero, the others as they were."""
    assert q.hook is not None
    axis, length = head_axis(resolve(HOOK_BY_NAME[q.hook], q.specimen.variant), q)
    return judge_edit(bench, q, zero_one_head(axis, length), "all")


@check("EDIT-2", scenarios=("prefill",), hooks=any_hook, dtypes=("float32", "bfloat16"))
def an_edit_at_one_position_is_what_the_rest_of_the_layer_sees(
    bench: Bench, q: Question
) -> Finding:
    """EDIT-2 on a part: one position edited, the others as they were."""
    assert q.hook is not None
    names = axis_names(resolve(HOOK_BY_NAME[q.hook], q.specimen.variant).axes)
    return judge_edit(
        bench,
        q,
        nudge_one_position(
            next(
                names.index(axis) for axis in ("pos", "kv_pos", "source", "query") if axis in names
            )
        ),
        "all",
    )


GRAD_MODES: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "with gradients": torch.enable_grad,
    "under no_grad": torch.no_grad,
    "under inference_mode": torch.inference_mode,
}


@check("EDIT-2", scenarios=("prefill", *OPTED), dtypes=("float32", "bfloat16"))
def a_hook_is_shown_a_contiguous_tensor_of_its_own(bench: Bench, q: Question) -> Finding:
    """EDIT-2: what each hook is shown is contiguous, lies in no other hook's memory, and stays as
    it was shown when the caller writes into the output; watched alone and with all others, with
    gradients, without, and in inference mode."""
    layer = bench.layer(q.specimen, q.situation.opted_in)
    names = bench.watched(q.specimen, q.situation, "all")
    for mode, begin in GRAD_MODES.items():
        for watch in (names, *([name] for name in names)):
            call = calls(q.situation, q.specimen, layer)[0]
            with begin():
                shown, copies, out = watch_and_spoil(layer, call, watch)
            if out is None or bool(out.count_nonzero()):
                return vacuous("nothing was written into the output")
            beside = "with all others" if watch is names else "alone"
            for name in watch:
                wrong = what_is_not_its_own(name, shown, copies)
                if wrong:
                    return failed(
                        f"{name}, watched {beside} {mode}, {wrong}; clause EDIT-2 requires a"
                        " contiguous tensor of its own",
                        divergent=name,
                    )
    return passed()


def watch_and_spoil(
    layer: Any, call: CallInputs, watch: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
    """Return by name the very tensors that hooks were shown, copies made at that time, and the
    output, which is then written full of zeros."""
    shown: dict[str, Tensor] = {}
    copies: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def look(tensor: Tensor, hook: Any) -> None:
            shown[name], copies[name] = tensor.detach(), tensor.detach().clone()

        return look

    out, _ = answered(layer.run(call.inputs, [(name, keep(name)) for name in watch]))
    if out is not None:
        out.detach().zero_()
    return shown, copies, out


def what_is_not_its_own(
    hook: str, shown: Mapping[str, Tensor], copies: Mapping[str, Tensor]
) -> str | None:
    """Return how a tensor that a hook was shown is not its own; None where it is."""
    if hook not in shown:
        return "did not fire"
    value, storage = shown[hook], shown[hook].untyped_storage()
    if not value.is_contiguous():
        return f"was shown a tensor of strides {value.stride()} and shape {tuple(value.shape)}"
    if storage.nbytes() != value.numel() * value.element_size():
        return f"was shown {value.numel()} numbers in a memory of {storage.nbytes()} bytes"
    others = [
        name
        for name, other in shown.items()
        if name != hook and other.untyped_storage().data_ptr() == storage.data_ptr()
    ]
    if others:
        return f"was shown memory that {', '.join(others)} was shown too"
    if not torch.equal(value, copies[hook]):
        return "was shown what holds something else after the call"
    return None


@check("EDIT-1", scenarios=("prefill", "no_mask", "decode"), hooks=unfused)
def a_replacement_reaches_the_stages_nobody_watches(bench: Bench, q: Question) -> Finding:
    """EDIT-1 where scores and pattern are not watched: a kernel that makes neither still sees the
    edit."""
    return judge_edit(bench, q, replace_all, "fused")


def head_axis(hook: HookSpec, q: Question) -> tuple[int, int]:
    """Return the axis that counts heads, and how many entries of it one head takes."""
    for axis, name in enumerate(axis_names(hook.axes)):
        if "head" in name.strip("()").split(" ")[0]:
            return axis, q.specimen.variant.d_head if name.startswith("(") else 1
    raise LookupError(f"{hook.name} has no axis of heads")


def judge_edit(
    bench: Bench, q: Question, edit: Callable[[Tensor], Tensor | None], watch: Watch
) -> Finding:
    """Run the scenario with and without the edit, and hold the edited run to the contract, stage by
    stage."""
    assert q.hook is not None
    specimen, scenario = q.specimen, q.situation
    layer = bench.layer(specimen, scenario.opted_in)
    clean = bench.traces(specimen, scenario, watch)
    shown: list[Tensor] = []

    def edit_and_keep(value: Tensor) -> Tensor | None:
        result = edit(value)
        shown.append((value if result is None else result).detach().clone())
        return result

    edited = record(
        layer,
        calls(scenario, specimen, layer),
        bench.watched(specimen, scenario, watch),
        {q.hook: edit_and_keep},
    )
    early = first_moved(q, clean, edited) or lost(q, edited, shown)
    return early or bench.once_for_the_same(
        edited,
        q,
        lambda: what_followed(q, clean, edited, bench.contexts(specimen, scenario, watch)),
    )


def first_moved(q: Question, clean: list[Trace], edited: list[Trace]) -> Finding | None:
    """Return the finding on a stage before the edit that is not bit-identical in the first call;
    later calls read an edited cache."""
    for name in clean[0].fired[
        : clean[0].fired.index(q.hook) if q.hook in clean[0].fired else None
    ]:
        if not torch.equal(clean[0].values[name], edited[0].values[name]):
            return failed(f"{name} comes before {q.hook} and moved with its edit", divergent=name)
    return None


def lost(q: Question, edited: list[Trace], shown: list[Tensor]) -> Finding | None:
    """Return the finding that an edit is lost, which the next hook at the same point, or the caller
    at hook_out, does not see."""
    assert q.hook is not None
    if len(shown) != len(edited):
        return failed(f"{q.hook} fired {len(shown)} times in {len(edited)} calls", divergent=q.hook)
    for trace, left in zip(edited, shown, strict=True):
        if not torch.equal(trace.values[q.hook], left):
            return failed(f"the edit at {q.hook} was lost before the next hook", divergent=q.hook)
        if q.hook == "hook_out" and not torch.equal(trace.out, left):  # type: ignore[arg-type]
            return failed("the edit at hook_out is not what the layer returned", divergent=q.hook)
    return None


def what_followed(
    q: Question, clean: list[Trace], edited: list[Trace], before: list[Context]
) -> Finding:
    """Return what became of the stages after the edit; `before` has the contexts of the clean
    run."""
    contexts = contexts_after(edited, before)
    return (
        first_divergent(q, clean, edited, contexts, before)
        or without_effect(q, clean, edited, contexts[0], before[0])
        or passed()
    )


def first_divergent(
    q: Question,
    clean: list[Trace],
    edited: list[Trace],
    contexts: list[Context],
    contexts_before: list[Context],
) -> Finding | None:
    """Return the first stage of the edited run that is not what the reference makes of the values
    before it, and was so without the edit; else the first that was not either.

    Those before the edit in the first call are bit for bit what they were without it, and other
    checks judge those.
    """
    wrong_before: list[str] = []
    for before, trace, context, context_before in zip(
        clean, edited, contexts, contexts_before, strict=True
    ):
        for name in judged_after(q, trace, trace is edited[0]):
            if is_right(name, trace, context, before, context_before):
                continue
            if not was_right(name, before, context_before):
                wrong_before.append(name)
                continue
            difference = compare(held_at(name, trace), expect(name, context))
            dropped = not unchanged(name, context, context_before) and unedited(
                held_at(name, trace), held_at(name, before), expect(name, context)
            )
            how = (
                f"the edit at {q.hook} did not reach {name}"
                if dropped
                else f"after the edit {name} is off by {difference.ratio:.3g} bounds"
            )
            return failed(how, difference, divergent=q.hook if dropped else name)
    if wrong_before:
        return failed(f"{wrong_before[0]} is wrong without any edit", divergent=wrong_before[0])
    return None


def is_right(
    name: str, trace: Trace, context: Context, before: Trace, context_before: Context
) -> bool:
    """Return whether a stage of the edited run is what the reference makes of the values before
    it.

    Where it and all that it is made of are, to the bit, what they were without the edit, so is the
    answer, which is worked out once for all edits.
    """
    if not unchanged(name, context, context_before):
        return fits(held_at(name, trace), expect(name, context))
    return was_right(name, before, context_before)


def was_right(name: str, before: Trace, context_before: Context) -> bool:
    """Return whether a stage was right without the edit."""
    if name not in context_before.right:
        context_before.right[name] = fits(held_at(name, before), expect(name, context_before))
    return context_before.right[name]


def judged_after(q: Question, trace: Trace, first: bool) -> list[str]:
    """Return the stages of an edited call to be judged: in the first call those after the edit, in
    others all but it; the output too where no hook showed it."""
    names = later(trace, q) if first else [name for name in trace.fired if name != q.hook]
    return names if "hook_out" in trace.fired else [*names, "hook_out"]


def unedited(after: Tensor, before: Tensor, expected: Expectation) -> bool:
    """Return whether whatever misses its bound is, to the bit, what it was without the edit."""
    missed = ratios(after, expected) > 1
    return torch.equal(after[missed], before[missed])


def later(trace: Trace, q: Question) -> list[str]:
    """Return the hook points that fired after the edit."""
    return trace.fired[trace.fired.index(q.hook or "") + 1 :]


def without_effect(
    q: Question, clean: list[Trace], edited: list[Trace], context: Context, before: Context
) -> Finding | None:
    """Return that the question is vacuous, if the unedited run's later stages would have passed as
    well."""
    if q.hook == "hook_out":
        return (
            vacuous("the edit changed nothing")
            if torch.equal(clean[0].out, edited[0].out)  # type: ignore[arg-type]
            else None
        )
    if all(
        unchanged(name, context, before) or fits(held_at(name, clean[0]), expect(name, context))
        for name in judged_after(q, edited[0], True)
    ):
        assert q.hook is not None
        words = f"the stages after {q.hook} would have passed without the edit too"
        return across_gaps(words, q.hook, context)
    return None
