"""Projections to heads: adapters, the shared rotary part, multipliers, clipping (PROJ-1,
CLIP-1)."""

from __future__ import annotations

from dataclasses import replace

from einops import rearrange, repeat
from torch import Tensor

from ropebridge_conformance.mutants.applies import (
    all_of,
    clips_projections,
    has,
    has_all_positions,
    has_bias,
    has_multiplier,
    makes_kv,
    many_heads,
    many_kv_heads,
    opts_in_to,
    precise,
    shares_kv_heads_in_any_call,
)
from ropebridge_conformance.mutants.mutant import (
    AXES,
    EDITS,
    Mutant,
    change,
    goes_on_with,
    shows_as,
)
from ropebridge_conformance.stages.carried import WithError, carry_factor, join_parts
from ropebridge_conformance.stages.context import (
    Context,
    Expectation,
    expects,
    for_heads,
    handed_on,
    role_of,
)
from ropebridge_conformance.stages.functions import STAGES
from ropebridge_conformance.stages.norm import carry_norm
from ropebridge_reference import Weights, copies, project_heads, with_rotary_part
from ropebridge_spec import Norm, Role, Variant, bounds

Adapter = tuple[Tensor, Tensor]
"""What an adapter projects down by, and up by."""


@expects("hook_q", "hook_k", "hook_v")
def expected_projection(hook: str, c: Context) -> Expectation:
    """Return what PROJ-1, CLIP-1 makes of the values before."""
    role = role_of(hook)
    if role == "v" and c.variant.value_is_key:
        return handed_on(c.seen("hook_k"))
    x, W, b, adapter = projection(role, c)
    product = c.stages.project_heads(x.value, W, b)
    value = c.stages.adapt(product, x.value, adapter)
    if role == "k" and c.weights.W_KR is not None:
        shared = for_heads(c.seen("hook_in"), c.variant.kv_heads).value
        value = c.stages.with_rotary_part(value, shared, c.weights, c.variant.rotary_part_norm)
    value = c.stages.clip(c.stages.multiply(value, multiplier(role, c)), c.clips(hook))
    if role == "v" and c.added_value is not None:
        value = value + added_to(value, c.added_value)
    return Expectation(value, lambda: projection_bound(hook, product, c))


def projection(role: Role, c: Context) -> tuple[WithError, Tensor, Tensor | None, Adapter | None]:
    """Return what the heads of a role read, and their W, b and adapter."""
    W, b = (getattr(c.weights, f"{kind}_{role.upper()}") for kind in ("W", "b"))
    return c.input_of(role), W, b, c.weights.adapters.get(role.upper())


def multiplier(role: Role, c: Context) -> float:
    """Return what a projection is multiplied by."""
    return {"k": c.variant.k_multiplier, "v": c.variant.v_multiplier}.get(role, 1.0)


def added_to(value: Tensor, added: Tensor) -> Tensor:
    """Return what the model hands down to be added to a value, for every head of it."""
    return added.repeat_interleave(value.shape[2] // added.shape[2], dim=2)


def projection_bound(hook: str, product: Tensor, c: Context) -> Tensor:
    """Return the bound of a projection, of which `product` is x W + b. An implementation may
    project hook_in once and add what the split inputs moved: both magnitudes count."""
    role = role_of(hook)
    x, W, b, adapter = projection(role, c)
    bound = carry_projection(x, W, b, c.dtype, value=product)
    bound = carry_adapter(bound, x, adapter, c.dtype)
    if c.opted_in and c.variant.splits:
        moved = moved_after_projection(x.value, c.seen("hook_in").value, W, b, c.dtype)
        bound = WithError(bound.value, bound.error + moved)
    if role == "k" and c.weights.W_KR is not None:
        shared = for_heads(c.seen("hook_in"), c.variant.kv_heads)
        part = carry_rotary_part(shared, c.weights, c.variant.rotary_part_norm, c.dtype)
        bound = join_parts(bound, part)
    bound = carry_clip(carry_factor(bound, multiplier(role, c), c.dtype), c.clips(hook))
    if role != "v" or c.added_value is None:
        return bound.error
    largest = bound.value.abs() + bound.error + added_to(bound.value, c.added_value).abs()
    return bound.error + bounds.rounded(largest, times=1, dtype=c.dtype)  # type: ignore[no-any-return]


def moved_after_projection(
    x: Tensor, hook_in: Tensor, W: Tensor, b: Tensor | None, dtype: str
) -> Tensor:
    """Return what is lost where hook_in is projected, and W times what hooks moved is added: both
    are sums of so many terms, and three roundings."""
    before = project_heads(
        copies(hook_in, x.shape[2]).abs(), W.abs(), None if b is None else b.abs()
    )
    after = project_heads(x.abs(), W.abs(), None if b is None else b.abs())
    return 3 * bounds.UNIT[dtype] * (before + after) + bounds.growth(W.shape[1] + 2, dtype) * (
        2 * before + after
    )


def carry_projection(
    x: WithError, W: Tensor, b: Tensor | None, dtype: str, value: Tensor | None = None
) -> WithError:
    """Carry value and error through PROJ-1: (batch pos head n) by (head n m); `value` is what the
    stage makes of the value, where it is known already, here and below."""
    value = project_heads(x.value, W, b) if value is None else value
    carried = x.error_through(lambda error: project_heads(error, W.abs(), None))
    magnitude = project_heads(x.value.abs() + x.error, W.abs(), None if b is None else b.abs())
    product = 0 if b is None else project_heads(x.value, W, None).abs() + carried
    return WithError(
        value,
        carried + bounds.linear(value, magnitude, terms=W.shape[1], dtype=dtype, product=product),
    )


def carry_adapter(
    y: WithError, x: WithError, adapter: tuple[Tensor, Tensor] | None, dtype: str
) -> WithError:
    """Carry value and error through PROJ-1: a projection, and what its adapter adds."""
    if adapter is None:
        return y
    down, up = adapter
    more = carry_projection(
        carry_projection(x, down.expand(x.value.shape[2], -1, -1), None, dtype), up, None, dtype
    )
    total = y.value.abs() + y.error + more.value.abs() + more.error
    return WithError(
        y.value + more.value, y.error + more.error + bounds.rounded(total, times=1, dtype=dtype)
    )


def carry_rotary_part(x: WithError, weights: Weights, norm: Norm | None, dtype: str) -> WithError:
    """Carry value and error through PROJ-1: the part of a key that all heads share, normed where
    the family does so."""
    assert weights.W_KR is not None
    part = carry_projection(x, weights.W_KR, weights.b_KR, dtype)
    return part if norm is None else carry_norm(part, weights.k_rotary_norm, norm, dtype)


def carry_clip(x: WithError, bound: float | None) -> WithError:
    """Carry value and error through CLIP-1: clipping brings two numbers no further apart."""
    return x if bound is None else WithError(x.value.clamp(-bound, bound), x.error, x.is_exact)


# Faults that prove the judge at this stage.


def project_without_bias(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project_heads(x, W, None)


def project_with_heads_rolled(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project_heads(x, W.roll(1, 0), b)


def rotary_part_unnormed(k: Tensor, x: Tensor, weights: Weights, norm: Norm | None) -> Tensor:
    return with_rotary_part(k, x, weights)


def keys_with_rotary_part_first(
    k: Tensor, x: Tensor, weights: Weights, norm: Norm | None
) -> Tensor:
    k = with_rotary_part(k, x, weights, norm)
    return k if weights.W_KR is None else k.roll(weights.W_KR.shape[-1], -1)


def multiply_by_nothing(x: Tensor, factor: float) -> Tensor:
    return x


def clip_forgotten(x: Tensor, bound: float | None) -> Tensor:
    return x


def clip_above_only(x: Tensor, bound: float | None) -> Tensor:
    return x if bound is None else x.clamp(max=bound)


def project_positions_late(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project_heads(x.roll(1, 1), W, b)


def project_with_bias_twice(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project_heads(x, W, None if b is None else 2 * b)


def project_rounding_each_half(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """Return two sums, each rounded to bfloat16."""
    half = x.shape[-1] // 2
    parts = (
        project_heads(x[..., s], W[:, s], None).bfloat16().to(x.dtype)
        for s in (slice(None, half), slice(half, None))
    )
    return sum(parts, x.new_zeros(()) if b is None else b)


def value_by_the_keys_weights(weights: Weights, variant: Variant) -> Weights:
    return replace(weights, W_V=weights.W_K, b_V=weights.b_K)


def key_by_the_values_weights(weights: Weights, variant: Variant) -> Weights:
    return replace(weights, W_K=weights.W_V, b_K=weights.b_V)


def dimensions_reversed(weights: Weights, variant: Variant) -> Weights:
    return replace(weights, W_Q=weights.W_Q.flip(-1))


def rows_one_late(weights: Weights, variant: Variant) -> Weights:
    """Make a fault: each head begins with the last row of the head before."""
    W = rearrange(weights.W_Q, "head d_model d_head -> d_model (head d_head)").roll(1, -1)
    return replace(
        weights,
        W_Q=rearrange(W, "d_model (head d_head) -> head d_model d_head", head=variant.heads),
    )


def keys_bias_for_values(weights: Weights, variant: Variant) -> Weights:
    return replace(weights, b_V=weights.b_K)


def first_heads_copy(x: Tensor) -> Tensor:
    """Return the first head's copy for every head."""
    return x[:, :, :1].expand_as(x)


def first_of_each_group(x: Tensor) -> Tensor:
    """Return for three query heads what the first of them reads."""
    return repeat(x[:, :, ::3], "batch pos group d_model -> batch pos (group head) d_model", head=3)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "bias_forgotten",
        "the query projection leaves its bias out",
        "hook_q",
        has_bias("Q"),
        change(project_heads=project_without_bias),
        also=("hook_k", "hook_v"),
    ),
    Mutant(
        "heads_rolled",
        "head h projects with head h-1's weights",
        "hook_q",
        many_heads,
        change(project_heads=project_with_heads_rolled),
        also=("hook_k", "hook_v"),
        also_where=many_kv_heads,
    ),
    Mutant(
        "rotary_part_first",
        "a key begins with its rotary part",
        "hook_k",
        has("latent"),
        change(with_rotary_part=keys_with_rotary_part_first),
    ),
    Mutant(
        "rotary_part_unnormed",
        "a key's rotary part is not normed",
        "hook_k",
        has("latent", "rotary_norm"),
        change(with_rotary_part=rotary_part_unnormed),
    ),
    Mutant(
        "key_multiplier_forgotten",
        "keys are not multiplied",
        "hook_k",
        has_multiplier("k"),
        change(multiply=multiply_by_nothing),
    ),
    Mutant(
        "value_multiplier_forgotten",
        "values are not multiplied",
        "hook_v",
        has_multiplier("v"),
        change(multiply=multiply_by_nothing),
    ),
    Mutant(
        "clip_forgotten",
        "nothing is clipped",
        "hook_q",
        clips_projections,
        change(clip=clip_forgotten),
        also=("hook_k", "hook_v"),
        clause="CLIP-1",
    ),
    Mutant(
        "clip_above_only",
        "only what is too large is clipped",
        "hook_q",
        clips_projections,
        change(clip=clip_above_only),
        also=("hook_k", "hook_v"),
        clause="CLIP-1",
    ),
    Mutant(
        "projected_late",
        "each position is projected in place of the next",
        "hook_q",
        stages=change(project_heads=project_positions_late),
        applies=has_all_positions,
        foil=False,
    ),
    Mutant(
        "bias_twice",
        "the projection's bias is added twice",
        "hook_q",
        has_bias("Q"),
        change(project_heads=project_with_bias_twice),
        foil=False,
    ),
    Mutant(
        "projected_in_half",
        "projections are summed in bfloat16",
        "hook_q",
        precise,
        change(project_heads=project_rounding_each_half),
        foil=False,
    ),
    Mutant(
        "value_is_key",
        "values are projected by the key's weights",
        "hook_v",
        makes_kv,
        weights=value_by_the_keys_weights,
    ),
    Mutant(
        "key_is_value",
        "keys are projected by the value's weights",
        "hook_k",
        makes_kv,
        weights=key_by_the_values_weights,
    ),
    Mutant(
        "dimensions_reversed",
        "the dimensions of a query head come last first",
        "hook_q",
        weights=dimensions_reversed,
    ),
    Mutant(
        "rows_one_late",
        "each query head begins one row early in its projection",
        "hook_q",
        many_heads,
        weights=rows_one_late,
    ),
    Mutant(
        "key_bias_on_values",
        "values are given the key's bias",
        "hook_v",
        all_of(makes_kv, has_bias("K")),
        weights=keys_bias_for_values,
    ),
    Mutant(
        "first_heads_input",
        "every query head reads the first one's input",
        "hook_q",
        opts_in_to("split_qkv_input"),
        show=goes_on_with("hook_q_input", first_heads_copy),
        clause="SPLIT-1",
        arms=EDITS,
        foil=False,
    ),
    Mutant(
        "group_reads_first",
        "the heads of a group read what its first head reads",
        "hook_q",
        all_of(opts_in_to("attn_in"), shares_kv_heads_in_any_call),
        show=goes_on_with("hook_attn_in", first_of_each_group),
        clause="SPLIT-3",
        arms=("an_edit_of_one_heads_input_moves_that_head_alone",),
        foil=False,
    ),
    Mutant(
        "query_heads_in_one",
        "hook_q is shown with heads and their dimensions in one axis",
        "hook_q",
        show=shows_as("hook_q", lambda q: q.flatten(2), lambda q: q.unflatten(2, (6, -1))),
        clause="PROJ-2",
        arms=AXES,
    ),
    Mutant(
        "clipped_at_half",
        "everything is clipped to half of the bound",
        "hook_q",
        clips_projections,
        change(clip=lambda x, bound: STAGES.clip(x, bound and bound / 2)),
        also=("hook_k", "hook_v"),
        clause="CLIP-1",
        foil=False,
    ),
)
