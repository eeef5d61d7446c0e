"""Faults of gradients: values are right, and what flows back is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.mutants.applies import (
    has_rms_norm,
    has_softcap,
    makes_kv,
    rotates,
    scales_scores,
)
from ropebridge_conformance.mutants.mutant import (
    Mutant,
    change,
    goes_on_with,
)
from ropebridge_conformance.subjects.reference import ReferenceLayer, Run, Show, show
from ropebridge_reference import (
    Affine,
    make_pattern,
    mix_values,
    normalise,
    project_output,
    rotate,
    score_keys,
)
from ropebridge_spec import HookFunction, Norm, Rotary, Variant

DERIVATIVE = ("the_gradient_at_a_hook_is_the_derivative",)
SEEN, REPLACED = (
    ("a_backward_hook_sees_the_gradient",),
    ("a_backward_hook_may_replace_the_gradient",),
)


class Scaled(torch.autograd.Function):
    """Give a tensor as it is back, its gradient larger by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.factor * gradients[0], None


def scaled(x: Tensor, factor: float) -> Tensor:
    """Return a tensor as it is, its gradient larger by a factor."""
    return Scaled.apply(x, factor)  # type: ignore[no-untyped-call, no-any-return]


def beside(name: str) -> Show:
    """Make a fault: looking hooks are shown a copy beside the way, so that no gradient comes back
    to it."""

    def shown(hook: str, value: Tensor, hooks: Sequence[HookFunction]) -> Tensor:
        if hook == name and hooks:
            show(hook, value, hooks)
            return value
        return show(hook, value, hooks)

    return shown


def cut(name: str) -> Show:
    """Make a fault: the layer goes on with a tensor that no gradient flows through."""
    return goes_on_with(name, lambda value: value.detach())


def norm_of_constant_size(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    """Make a fault: the size that x is divided by is a constant for the gradient."""
    normed = normalise(x.detach(), affine, norm)
    flat = x.reshape(normed.shape)
    factor = torch.where(flat == 0, 0.0, normed / flat).detach()
    return factor * flat + (normed - factor * flat).detach()


def capped_in_a_straight_line(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    """Make a fault: the cap has slope 1 for the gradient."""
    bare = score_keys(q, k, bias, replace(variant, softcap=None))
    capped = score_keys(q, k, bias, variant).detach()
    through = torch.where(bare.isfinite(), bare, 0.0)
    return torch.where(bare.isfinite(), capped + through - through.detach(), capped)


def pattern_of_independent_entries(s: Tensor, sinks: Tensor | None) -> Tensor:
    """Make a fault: the sum of a row is a constant for the gradient."""
    p = make_pattern(s, sinks).detach()
    through = torch.where(s.isfinite(), s, 0.0)
    return p + (p * (through - through.detach())).to(p.dtype)


def mix_of_constant_values(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(p, v.detach())


def mix_by_a_constant_pattern(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(p.detach(), v)


def scores_of_constant_keys(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return score_keys(q, k.detach(), bias, variant)


def scores_unscaled_backwards(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return score_keys(scaled(q, 1 / variant.scale), k, bias, variant)


def rotate_forwards_only(x: Tensor, turn: Tensor, rotary: Rotary) -> Tensor:
    """Rotate the value, and nothing in the backward pass."""
    return rotate(x, turn, rotary).detach() + x - x.detach()


def output_slightly_steeper(z: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project_output(scaled(z, 1.25), W, b)


def no_backward_hooks(layer: ReferenceLayer) -> Run:
    """Take backward hooks, and never call them."""
    return lambda inputs, hooks, backward: layer.call(inputs, hooks, [])


def backward_hooks_twice(layer: ReferenceLayer) -> Run:
    """Call backward hooks twice."""
    return lambda inputs, hooks, backward: layer.call(inputs, hooks, [*backward, *backward])


def backward_hooks_look(layer: ReferenceLayer) -> Run:
    """Make a fault: what backward hooks give back is dropped."""

    def looking(fn: HookFunction) -> HookFunction:
        def called(gradient: Tensor, hook: Any) -> None:
            fn(gradient.clone(), hook=hook)

        return called

    return lambda inputs, hooks, backward: layer.call(
        inputs, hooks, [(name, looking(fn)) for name, fn in backward]
    )


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "cut_at_q",
        "no gradient flows through hook_q",
        "hook_q",
        show=cut("hook_q"),
        clause="GRAD-1",
        arms=DERIVATIVE,
    ),
    Mutant(
        "cut_at_pattern",
        "no gradient flows through hook_pattern",
        "hook_pattern",
        show=cut("hook_pattern"),
        clause="GRAD-1",
        arms=DERIVATIVE,
    ),
    Mutant(
        "cut_at_z",
        "no gradient flows through hook_z",
        "hook_z",
        show=cut("hook_z"),
        clause="GRAD-1",
        arms=DERIVATIVE,
    ),
    Mutant(
        "beside_v",
        "hook_v is shown a copy beside the way of the gradient",
        "hook_v",
        makes_kv,
        show=beside("hook_v"),
        clause="GRAD-1",
        arms=DERIVATIVE,
    ),
    Mutant(
        "beside_scores",
        "hook_attn_scores is shown a copy beside the way of the gradient",
        "hook_attn_scores",
        show=beside("hook_attn_scores"),
        clause="GRAD-1",
        arms=DERIVATIVE,
    ),
    Mutant(
        "norm_size_constant",
        "the norm's divisor is a constant for the gradient",
        "hook_k",
        has_rms_norm,
        change(normalise=norm_of_constant_size),
        clause="GRAD-1",
        arms=DERIVATIVE,
        foil=False,
    ),
    Mutant(
        "cap_straight",
        "the cap has slope 1 for the gradient",
        "hook_rot_k",
        has_softcap,
        change(score_keys=capped_in_a_straight_line),
        clause="GRAD-1",
        arms=DERIVATIVE,
        foil=False,
    ),
    Mutant(
        "row_sum_constant",
        "the sum of a row is a constant for the gradient",
        "hook_attn_scores",
        stages=change(make_pattern=pattern_of_independent_entries),
        clause="GRAD-1",
        arms=DERIVATIVE,
        foil=False,
    ),
    Mutant(
        "values_constant",
        "values are constants for the gradient",
        "hook_v",
        makes_kv,
        change(mix_values=mix_of_constant_values),
        clause="GRAD-1",
        arms=DERIVATIVE,
        foil=False,
    ),
    Mutant(
        "pattern_constant",
        "the pattern is a constant for the gradient",
        "hook_pattern",
        stages=change(mix_values=mix_by_a_constant_pattern),
        clause="GRAD-1",
        arms=DERIVATIVE,
        foil=False,
    ),
    Mutant(
        "keys_constant",
        "keys are constants for the gradient",
        "hook_rot_k",
        makes_kv,
        change(score_keys=scores_of_constant_keys),
        clause="GRAD-1",
        arms=DERIVATIVE,
        foil=False,
    ),
    Mutant(
        "unscaled_backwards",
        "the gradient of the query is not scaled",
        "hook_rot_q",
        scales_scores,
        change(score_keys=scores_unscaled_backwards),
        clause="GRAD-1",
        arms=DERIVATIVE,
        foil=False,
    ),
    Mutant(
        "unturned_backwards",
        "gradients are not turned back",
        "hook_sin",
        rotates,
        change(rotate=rotate_forwards_only),
        clause="GRAD-1",
        arms=DERIVATIVE,
        foil=False,
    ),
    Mutant(
        "steeper_output",
        "the gradient of z is larger by a quarter",
        "hook_z",
        stages=change(project_output=output_slightly_steeper),
        clause="GRAD-1",
        arms=DERIVATIVE,
        foil=False,
    ),
    Mutant(
        "no_backward_hooks",
        "backward hooks are never called",
        "hook_out",
        around=no_backward_hooks,
        clause="GRAD-1",
        arms=SEEN,
    ),
    Mutant(
        "backward_hooks_twice",
        "backward hooks are called twice",
        "hook_out",
        around=backward_hooks_twice,
        clause="GRAD-1",
        arms=SEEN,
    ),
    Mutant(
        "backward_hooks_look",
        "what a backward hook gives back is dropped",
        "hook_in",
        around=backward_hooks_look,
        clause="GRAD-1",
        arms=REPLACED,
    ),
)
