"""Norms of query, key and value (NORM-1)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from ropebridge_conformance.mutants.applies import (
    all_of,
    double,
    has,
    has_layer_norm,
    has_norm,
    has_norm_weight,
    has_norm_without_bias,
    has_rms_norm,
    norms_all_heads_at_once,
    norms_head_by_head,
    shares_norm_weight,
)
from ropebridge_conformance.mutants.mutant import AXES, Mutant, change, described_as, shows_as
from ropebridge_conformance.stages.carried import WithError
from ropebridge_conformance.stages.context import Context, Expectation, expects, role_of
from ropebridge_conformance.zoo.scenarios import Scenario
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_reference import Affine, Weights, normalise
from ropebridge_spec import Norm, Variant, bounds


@expects("hook_q_normed", "hook_k_normed", "hook_v_normed")
def expected_norm(hook: str, c: Context) -> Expectation:
    """Return what NORM-1, CLIP-1 makes of the values before."""
    role, x = role_of(hook), c.heads_before(hook)
    affine, norm = getattr(c.weights, f"{role}_norm"), c.variant.norm_in(f"{role}_norm")
    result = c.stages.normalise(x.value, affine, norm)
    value = c.stages.clip(result, c.clips(hook))

    def bound() -> Tensor:
        error = carry_norm(x, affine, norm, c.dtype, value=result).error
        return error.reshape(value.shape)

    return Expectation(value, bound)


def carry_norm(
    x: WithError, affine: Affine, norm: Norm, dtype: str, value: Tensor | None = None
) -> WithError:
    """Carry value and error through NORM-1: an error along the value itself is divided out, every
    other is divided by the size. The shape is that of x."""
    value = normalise(x.value, affine, norm) if value is None else value
    flat, off = (
        (x.value.flatten(2), x.error.flatten(2)) if norm.over == "flat" else (x.value, x.error)
    )
    centre = flat - flat.mean(-1, keepdim=True) if norm.kind == "layer" else flat
    size = (centre.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    unit, error = (centre / size).abs(), off / size
    spread = (
        error
        + unit * (unit * error).mean(-1, keepdim=True)
        + (error.mean(-1, keepdim=True) if norm.kind == "layer" else 0)
    )
    weight = factor_of(affine, norm, like=value)
    # a bias may cancel the product, whose error stays
    product = value if affine.bias is None else weight * unit
    own = bounds.norm(
        product, centring(flat, weight, norm), terms=flat.shape[-1], roundings=2, dtype=dtype
    )
    own = own + (
        0
        if affine.bias is None
        else bounds.rounded(product + affine.bias.abs(), times=1, dtype=dtype)
    )
    return WithError(value.reshape(x.value.shape), (weight * spread + own).reshape(x.value.shape))


def factor_of(affine: Affine, norm: Norm, *, like: Tensor) -> Tensor:
    """Return what a norm multiplies by, made positive."""
    if affine.weight is None:
        return torch.ones_like(like)
    return (affine.weight if norm.weight == "scale" else 1 + affine.weight).abs().expand_as(like)


def centring(x: Tensor, weight: Tensor, norm: Norm) -> Tensor:
    """Return how large a layer norm's terms are before the mean cancels them, scaled like its
    result; 0 for an rms norm."""
    if norm.kind == "rms":
        return torch.zeros_like(weight)
    relative = (
        x.abs().amax(-1, keepdim=True) / (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    )
    return 2 * relative * (1 + relative) * weight


# Faults that prove the judge at this stage.


def norm_with_other_weight(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    return normalise(
        x, affine, replace(norm, weight="scale" if norm.weight == "one_plus" else "one_plus")
    )


def norm_without_centring(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    return normalise(x, affine, replace(norm, kind="rms"))


def norm_head_by_head(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    by_head = (
        None
        if affine.weight is None
        else rearrange(affine.weight, "(head d_head) -> head d_head", head=x.shape[2])
    )
    return rearrange(
        normalise(x, Affine(by_head), replace(norm, over="head")),
        "batch pos head d_head -> batch pos (head d_head)",
    )


def norm_skipped(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    return (
        rearrange(x, "batch pos head d_head -> batch pos (head d_head)")
        if norm.over == "flat"
        else x
    )


def values_unnormed(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    return x if norm.q == "v_norm" else normalise(x, affine, norm)


def norm_without_bias(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    return normalise(x, Affine(affine.weight), norm)


def norm_by_sum(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    flat = normalise(x, affine, norm)
    return flat if affine.bias is not None else flat / math.sqrt(flat.shape[-1])


def norm_centring_all_the_same(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    return normalise(x, affine, replace(norm, kind="layer"))


def norm_of_next_head(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    return normalise(x.roll(1, 2), affine, norm)


def norm_in_float32(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    return normalise(x.float(), affine, norm).to(x.dtype)


def norm_without_weight(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    return normalise(x, Affine(None, affine.bias), norm)


def norm_unbiased(x: Tensor, affine: Affine, norm: Norm) -> Tensor:
    """Return the mean square over one fewer."""
    n = normalise(x, affine, norm).shape[-1]
    return normalise(x, affine, norm) * math.sqrt((n - 1) / n)


def key_by_the_querys_norm(weights: Weights, variant: Variant) -> Weights:
    return replace(weights, k_norm=weights.q_norm)


def normed_early(variant: Variant) -> Variant:
    return (
        variant
        if variant.norm is None
        else replace(variant, norm=replace(variant.norm, after_rotation=False))
    )


def late(specimen: Specimen, scenario: Scenario) -> bool:
    """Accept layers that norm query and key once they are rotated."""
    return specimen.variant.norm is not None and specimen.variant.norm.after_rotation


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "norm_weight",
        "w in place of 1 + w, or the other way",
        "hook_q_normed",
        has_norm_weight,
        change(normalise=norm_with_other_weight),
        also=("hook_k_normed",),
    ),
    Mutant(
        "norm_mean",
        "a layer norm that keeps the mean",
        "hook_q_normed",
        has_layer_norm,
        change(normalise=norm_without_centring),
        also=("hook_k_normed",),
    ),
    Mutant(
        "norm_axis",
        "a flat norm taken head by head",
        "hook_q_normed",
        norms_all_heads_at_once,
        change(normalise=norm_head_by_head),
        also=("hook_k_normed",),
    ),
    Mutant(
        "norm_forgotten",
        "query and key are not normed",
        "hook_q_normed",
        has_norm,
        change(normalise=norm_skipped),
        also=("hook_k_normed",),
    ),
    Mutant(
        "norm_bias_forgotten",
        "the norm leaves its bias out",
        "hook_q_normed",
        has("norm", "bias"),
        change(normalise=norm_without_bias),
        also=("hook_k_normed",),
    ),
    Mutant(
        "value_norm_forgotten",
        "the value is not normed",
        "hook_v_normed",
        has("value_norm"),
        change(normalise=values_unnormed),
    ),
    Mutant(
        "norm_by_sum",
        "a root of the sum of squares, not of their mean",
        "hook_q_normed",
        all_of(has_rms_norm, has_norm_without_bias),
        change(normalise=norm_by_sum),
        also=("hook_k_normed",),
        foil=False,
    ),
    Mutant(
        "rms_centred",
        "an rms norm that subtracts the mean",
        "hook_q_normed",
        has_rms_norm,
        change(normalise=norm_centring_all_the_same),
        also=("hook_k_normed",),
        foil=False,
    ),
    Mutant(
        "norm_of_next_head",
        "head h is given the norm of head h-1",
        "hook_q_normed",
        has_norm,
        change(normalise=norm_of_next_head),
        also=("hook_k_normed",),
        foil=False,
    ),
    Mutant(
        "norm_in_float32",
        "a float64 layer norms in float32",
        "hook_q_normed",
        all_of(has_norm, double),
        change(normalise=norm_in_float32),
        also=("hook_k_normed",),
        foil=False,
    ),
    Mutant(
        "norm_without_weight",
        "the norm has no weight",
        "hook_q_normed",
        has_norm_weight,
        change(normalise=norm_without_weight),
        also=("hook_k_normed",),
        foil=False,
    ),
    Mutant(
        "norm_unbiased",
        "the mean square is taken over one fewer",
        "hook_q_normed",
        all_of(norms_head_by_head, has_norm_without_bias),
        change(normalise=norm_unbiased),
        also=("hook_k_normed",),
        foil=False,
    ),
    Mutant(
        "key_by_the_querys_norm",
        "keys are normed by the query's weight",
        "hook_k_normed",
        all_of(has_norm_weight, norms_head_by_head, shares_norm_weight),
        weights=key_by_the_querys_norm,
    ),
    Mutant(
        "normed_before_rotation",
        "a norm that comes after rotation comes before",
        "hook_cos",
        late,
        around=described_as(normed_early),
        clause="NORM-3",
    ),
    Mutant(
        "flat_norm_by_head",
        "a flat norm's hook is shown head by head",
        "hook_q_normed",
        norms_all_heads_at_once,
        show=shows_as("hook_q_normed", lambda q: q.unflatten(-1, (6, -1)), lambda q: q.flatten(2)),
        clause="NORM-2",
        arms=AXES,
    ),
)
