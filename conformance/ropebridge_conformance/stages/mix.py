"""Each head's mix of values, and what families make of it (MIX-1, MIX-3, DIFF-1)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from ropebridge_conformance.mutants.applies import (
    all_of,
    has,
    has_gate_of_several_heads,
    has_no_softcap,
    in_dtypes,
    many_heads,
    many_kv_heads,
    no_z_norm,
    norms_and_gates_z,
    opts_in_to_nothing,
    precise,
    shares_kv_heads,
)
from ropebridge_conformance.mutants.mutant import AXES, Mutant, change, shows_as
from ropebridge_conformance.stages.carried import WithError, carry_factor, exact
from ropebridge_conformance.stages.context import HALF, Context, Expectation, expects
from ropebridge_conformance.stages.norm import carry_norm
from ropebridge_conformance.stages.scores import score_bound, scores_before_rounding, tiled
from ropebridge_reference import Affine, exclude, mix_values, norm_and_gate, strength, subtract
from ropebridge_spec import Differential, Norm, bounds


@expects("hook_z")
def expected_z(hook: str, c: Context) -> Expectation:
    """Return what MIX-1 makes of the values before: from the recorded pattern and gate; over the
    fused stages where nobody watched the pattern."""
    if "hook_pattern" not in c.values:
        return expected_z_of_unseen_pattern(c)
    pattern = c.values["hook_pattern"]
    value = c.stages.mix_values(pattern, c.paired_values.value)

    def bound() -> WithError:
        mix = carry_mix(exact(pattern), c.paired_values, c.dtype, value=value)
        if not c.in_parts:
            return mix
        # both that kernel and the pattern that was shown are so far from the truth
        _, error = mix_of_unseen_pattern(c)
        return WithError(mix.value, mix.error + 2 * error())

    return expected_z_after_mix(c, value, bound)


def expected_z_of_unseen_pattern(c: Context) -> Expectation:
    """Return z end to end over score, softmax and mix, with the score error carried through the
    softmax."""
    value, error = mix_of_unseen_pattern(c)
    return expected_z_after_mix(c, value, lambda: WithError(value, error()))


def mix_of_unseen_pattern(c: Context) -> tuple[Tensor, Callable[[], Tensor]]:
    """Return each head's mix of values over score and softmax, and what gives its error; from the
    scores that were recorded, or over those too."""
    scores, off = unseen_scores(c)
    pattern = c.stages.make_pattern(scores, c.weights.sinks)
    v = c.paired_values
    value = c.stages.mix_values(pattern, v.value)

    def error() -> Tensor:
        delta = off().amax(-1).transpose(1, 2).unsqueeze(-1)  # (batch, pos, head, 1)
        magnitude = c.stages.mix_values(pattern, v.value.abs() + v.error)
        bound: Tensor = bounds.fused(value, magnitude, delta, keys=scores.shape[-1], dtype=c.dtype)
        return bound + v.error_through(lambda error: c.stages.mix_values(pattern, error))  # type: ignore[no-any-return]

    return value, error


def unseen_scores(c: Context) -> tuple[Tensor, Callable[[], Tensor]]:
    """Return the scores that a pattern which nobody saw was made of, and what gives their error: of
    recorded ones what rounding took, which softmax may have been spared (PAT-1)."""
    if "hook_attn_scores" not in c.values:
        value = c.stages.score_keys(c.query.value, c.keys.value, c.score_bias, c.variant)
        return value, lambda: score_bound(c, value, c.dtype)
    shown = c.values["hook_attn_scores"]
    if c.dtype not in HALF:
        return shown, lambda: torch.zeros_like(shown)

    def rounding() -> Tensor:
        scores, off = scores_before_rounding(c)
        return (scores - shown).nan_to_num(nan=0.0).abs() + off

    return shown, rounding


def expected_z_after_mix(
    c: Context, mix: Tensor, mix_bound: Callable[[], WithError]
) -> Expectation:
    """Return the mix of values, subtracted, normed and gated where the family does so, by the gate
    that its hook held."""
    kind, lambdas = c.variant.differential, c.weights.lambdas
    g = None if c.variant.gate is None else c.seen("hook_gate")
    value, alpha = mix, c.weights.alpha
    if kind is not None and lambdas is not None:
        value = c.stages.subtract(value, lambdas, kind)
    own = c.all_values.map(lambda v: v[:, -mix.shape[1] :])
    if alpha is not None:
        value = c.stages.exclude(value, own.value, alpha)
    gate = None if g is None else g.value
    value = c.stages.norm_and_gate(value, gate, c.weights.z_norm, c.variant.z_norm)

    def bound() -> Tensor:
        error = mix_bound()
        if kind is not None and lambdas is not None:
            error = carry_difference(error, lambdas, kind, c.dtype)
        if alpha is not None:
            error = carry_exclusion(error, own, alpha, c.dtype)
        done = carry_norm_and_gate(error, g, c.weights.z_norm, c.variant.z_norm, c.dtype)
        return carry_factor(done, c.variant.z_multiplier, c.dtype).error

    return Expectation(c.stages.multiply(value, c.variant.z_multiplier), bound)


def carry_mix(p: WithError, v: WithError, dtype: str, value: Tensor | None = None) -> WithError:
    """Return the mix of values by a pattern; either may itself be off."""
    value = mix_values(p.value, v.value) if value is None else value
    largest = v.value.abs() + v.error
    magnitude = mix_values(p.value + p.error, largest)
    of_pattern = p.error_through(lambda error: mix_values(error, largest))
    of_values = v.error_through(lambda error: mix_values(p.value, error))
    bound = bounds.linear(value, magnitude, terms=p.value.shape[-1], dtype=dtype)
    return WithError(value, of_pattern + of_values + bound)


def carry_exclusion(x: WithError, v: WithError, alpha: Tensor, dtype: str) -> WithError:
    """Carry value and error through MIX-3: the unit value, the part along it and what is taken of
    it may each be rounded."""
    value, u = exclude(x.value, v.value, alpha), bounds.UNIT[dtype]
    group = x.value.shape[2] // v.value.shape[2]
    length = v.value.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    unit = (v.value / length).abs().repeat_interleave(group, 2)
    unit_off = (
        (2 * (v.error / length)).repeat_interleave(group, 2)
        + bounds.growth(v.value.shape[-1] + 4, dtype) * unit
        + 2 * u * unit
    )
    size = x.value.abs() + x.error
    along = (size * (unit + unit_off)).sum(-1, keepdim=True)
    along_off = (x.error * unit + size * unit_off).sum(-1, keepdim=True) + (
        bounds.growth(x.value.shape[-1] + 2, dtype) + 2 * u
    ) * along
    much = alpha.tanh().abs()[:, None]
    taken_off = much * (along_off * (unit + unit_off) + along * unit_off) + bounds.rounded(
        much * along * (unit + unit_off), times=4, dtype=dtype
    )
    return WithError(
        value,
        x.error
        + taken_off
        + bounds.rounded(size + much * along * unit, times=1, dtype=dtype)
        + bounds.UNDERFLOW[dtype],
    )


def carry_difference(x: WithError, lambdas: Tensor, kind: Differential, dtype: str) -> WithError:
    """Carry value and error through DIFF-1: the strength may be rounded at each of its steps, and
    so are product and difference."""
    value, half = subtract(x.value, lambdas, kind), x.value.shape[2] // 2
    q1, k1, q2, k2 = lambdas
    terms = [
        math.exp(float(q @ k)) * (1 + float((q * k).abs().sum())) for q, k in ((q1, k1), (q2, k2))
    ]
    strong = abs(float(strength(lambdas, kind)))
    off = 4 * bounds.UNIT[dtype] * (sum(terms) + abs(kind.init))
    size = x.value.abs() + x.error
    first, second = size[:, :, :half], size[:, :, half:]  # each (batch, pos, pair, d_pair)
    carried = x.error[:, :, :half] + strong * x.error[:, :, half:] + off * second
    return WithError(
        value, carried + bounds.rounded(first + (strong + off) * second, times=2, dtype=dtype)
    )


def carry_norm_and_gate(
    x: WithError, g: WithError | None, affine: Affine, norm: Norm | None, dtype: str
) -> WithError:
    """Carry value and error through MIX-1: what is mixed, normed and then gated where the family
    does so."""
    x = x if norm is None else carry_norm(x, affine, norm, dtype)
    if g is None:
        return x
    none = Affine()
    value = norm_and_gate(x.value, g.value, none, None)
    carried = norm_and_gate(x.error, g.value.abs() + g.error, none, None) + norm_and_gate(
        x.value.abs(), g.error, none, None
    )
    return WithError(
        value, carried + bounds.rounded(value, times=1, dtype=dtype) + bounds.UNDERFLOW[dtype]
    )


# Faults that prove the judge at this stage.


def gate_forgotten(mixed: Tensor, g: Tensor | None, affine: Affine, norm: Norm | None) -> Tensor:
    return norm_and_gate(mixed, None, affine, norm)


def gate_of_next_head(mixed: Tensor, g: Tensor | None, affine: Affine, norm: Norm | None) -> Tensor:
    return norm_and_gate(mixed, None if g is None else g.roll(1, 2), affine, norm)


def z_norm_forgotten(mixed: Tensor, g: Tensor | None, affine: Affine, norm: Norm | None) -> Tensor:
    return norm_and_gate(mixed, g, affine, None)


def z_norm_after_gate(mixed: Tensor, g: Tensor | None, affine: Affine, norm: Norm | None) -> Tensor:
    return norm_and_gate(norm_and_gate(mixed, g, affine, None), None, affine, norm)


def mix_of_tiled_values(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(p, tiled(v, p.shape[1] // v.shape[2]))


def mix_with_heads_rolled(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(p, v).roll(1, 2)


def mix_of_late_values(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(p, v.roll(1, 1))


def mix_of_the_first_value_head(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(p, v[:, :, :1].expand_as(v))


def mix_of_value_heads_reversed(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(p, v.flip(2))


def mix_of_the_next_row(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(p, v.roll(1, 0))


def mix_evenly(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(torch.full_like(p, 1 / p.shape[-1]), v)


def mix_in_bfloat16(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(p.bfloat16(), v.bfloat16()).to(p.dtype)


def mix_rescaled(p: Tensor, v: Tensor) -> Tensor:
    """Make a fault: values are divided by the largest there is, which forbidden keys have a part
    in, and multiplied again: the same but for rounding."""
    size = 1.7 * v.detach().abs().amax()
    return mix_values(p, v / size) * size


def gated_twice(mixed: Tensor, g: Tensor | None, affine: Affine, norm: Norm | None) -> Tensor:
    return norm_and_gate(norm_and_gate(mixed, g, affine, norm), g, Affine(), None)


def gated_by_one_more(mixed: Tensor, g: Tensor | None, affine: Affine, norm: Norm | None) -> Tensor:
    return norm_and_gate(mixed, None if g is None else g + 1, affine, norm)


def subtract_nothing(z: Tensor, lambdas: Tensor, kind: Differential) -> Tensor:
    return subtract(z, lambdas, kind) * 0 + z[:, :, : z.shape[2] // 2]


def subtract_neighbours(z: Tensor, lambdas: Tensor, kind: Differential) -> Tensor:
    return subtract(
        rearrange(z, "batch query (pair two) d -> batch query (two pair) d", two=2), lambdas, kind
    )


def subtract_as_strongly_as_it_began(z: Tensor, lambdas: Tensor, kind: Differential) -> Tensor:
    return subtract(z, torch.zeros_like(lambdas), kind)


def exclude_nothing(z: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
    return exclude(z, v, torch.zeros_like(alpha))


def exclude_of_the_next_position(z: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
    return exclude(z, v.roll(1, 1), alpha)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "nothing_excluded",
        "z keeps the part along its own value",
        "hook_z",
        has("exclusive"),
        change(exclude=exclude_nothing),
        clause="MIX-3",
    ),
    Mutant(
        "next_value_excluded",
        "z loses the part along the value of the next position",
        "hook_z",
        has("exclusive"),
        change(exclude=exclude_of_the_next_position),
        clause="MIX-3",
        foil=False,
    ),
    Mutant(
        "gate_forgotten",
        "z is not gated",
        "hook_z",
        has("gate"),
        change(norm_and_gate=gate_forgotten),
    ),
    Mutant(
        "gate_of_next_head",
        "z of head h is gated by head h-1's gate",
        "hook_z",
        has_gate_of_several_heads,
        change(norm_and_gate=gate_of_next_head),
    ),
    Mutant(
        "z_norm_forgotten",
        "z is not normed",
        "hook_z",
        has("z_norm"),
        change(norm_and_gate=z_norm_forgotten),
    ),
    Mutant(
        "z_norm_after_gate",
        "z is gated before its norm",
        "hook_z",
        norms_and_gates_z,
        change(norm_and_gate=z_norm_after_gate),
    ),
    Mutant(
        "values_tiled",
        "query head h mixes value head h mod kv heads",
        "hook_z",
        shares_kv_heads,
        change(mix_values=mix_of_tiled_values),
    ),
    Mutant(
        "mixed_heads_rolled",
        "z of head h stands at head h + 1",
        "hook_z",
        many_heads,
        change(mix_values=mix_with_heads_rolled),
    ),
    Mutant(
        "values_one_late",
        "each pattern entry mixes the value one place before",
        "hook_z",
        stages=change(mix_values=mix_of_late_values),
        foil=False,
    ),
    Mutant(
        "first_value_head",
        "every query head mixes the first value head",
        "hook_z",
        many_kv_heads,
        change(mix_values=mix_of_the_first_value_head),
        foil=False,
    ),
    Mutant(
        "value_heads_reversed",
        "value heads come last first",
        "hook_z",
        many_kv_heads,
        change(mix_values=mix_of_value_heads_reversed),
        foil=False,
    ),
    Mutant(
        "values_of_next_row",
        "the values of another row of the batch are mixed",
        "hook_z",
        stages=change(mix_values=mix_of_the_next_row),
        foil=False,
    ),
    Mutant(
        "mixed_evenly",
        "every value counts the same",
        "hook_z",
        stages=change(mix_values=mix_evenly),
        foil=False,
    ),
    Mutant(
        "mixed_in_bfloat16",
        "values are mixed in bfloat16",
        "hook_z",
        all_of(precise, no_z_norm),
        change(mix_values=mix_in_bfloat16),
        foil=False,
    ),
    Mutant(
        "forbidden_keys_count",
        "forbidden keys have a part in how values are rounded",
        "hook_z",
        all_of(in_dtypes("float32", "float64"), has_no_softcap),
        change(mix_values=mix_rescaled),
        clause="MASK-7",
        arms=("a_forbidden_key_changes_nothing",),
        foil=False,
    ),
    Mutant(
        "gated_twice",
        "z is gated twice",
        "hook_z",
        has("gate"),
        change(norm_and_gate=gated_twice),
        foil=False,
    ),
    Mutant(
        "gated_by_one_more",
        "z is multiplied by 1 and the gate",
        "hook_z",
        has("gate"),
        change(norm_and_gate=gated_by_one_more),
        foil=False,
    ),
    Mutant(
        "nothing_subtracted",
        "the second head of a pair is not subtracted",
        "hook_z",
        has("differential"),
        change(subtract=subtract_nothing),
        clause="DIFF-1",
        foil=False,
    ),
    Mutant(
        "neighbours_subtracted",
        "pairs are neighbours, not halves",
        "hook_z",
        has("differential"),
        change(subtract=subtract_neighbours),
        clause="DIFF-1",
        foil=False,
    ),
    Mutant(
        "strength_unlearned",
        "the strength of the subtraction is what it began with",
        "hook_z",
        has("differential"),
        change(subtract=subtract_as_strongly_as_it_began),
        clause="DIFF-1",
        foil=False,
    ),
    Mutant(
        "z_flat",
        "hook_z is shown with heads and their dimensions in one axis",
        "hook_z",
        opts_in_to_nothing,
        show=shows_as("hook_z", lambda z: z.flatten(2), lambda z: z.unflatten(2, (6, -1))),
        clause="MIX-2",
        arms=AXES,
    ),
)
