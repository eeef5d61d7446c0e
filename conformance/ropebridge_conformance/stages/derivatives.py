"""Oracle of gradients, stage by stage: what the gradient at a hook must be, from the subject's own
values and its gradients one stage down.

Let f_n be what the contract makes of the values before hook n, and g_n the subject's gradient at n.
The gradient at a hook h is the sum, over the stages n that read h, of J^T g_n with J the derivative
of f_n by h. It is taken by autograd in float64 of

    sum_n <f_n(values), g_n>

in which every recorded value is a leaf, so errors of one stage are not carried into the next, and
the first stage backwards that breaks its bound is the place of the fault.

The bound. An implementation that is right rounds each step of its vector-Jacobian product: its
error is at most (1 + u)^STEPS - 1 + g(terms) times |J|^T |g_n|, which is what the same product
gives of absolute values. Stages that are linear in each of their inputs give it by being run on
absolute values, weights and turns. Of the others

    softmax     p (|g| + sum_key p |g|)
    norm        (w |g| + |x^| mean(w |g| |x^|) + mean(w |g|) in a layer norm) / size,   x^ = (x -
    mean) / size
    softcap     a slope of at most 1, itself off by at most 0.77 / cap of the error of the score
    (the largest |tanh''| is 0.77)
    activation  a slope of at most 1/4 (sigmoid) or 1 (softplus)

Where nobody watches scores and pattern, the subject's own are not known. They are worked out in
float64; with scores off by at most delta a pattern is off by a factor within e^(2 delta), and so is
each product that it stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.stages.context import Context, Expectation, expect, role_of
from ropebridge_conformance.stages.functions import STAGES
from ropebridge_conformance.stages.oracle import context_of
from ropebridge_conformance.stages.scores import score_bound
from ropebridge_conformance.subjects.answers import Values, asking
from ropebridge_conformance.subjects.asked import in_contract
from ropebridge_conformance.subjects.traces import Trace
from ropebridge_conformance.zoo.calls import CallInputs
from ropebridge_conformance.zoo.scenarios import Scenario
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_reference import Affine, Weights, turns
from ropebridge_spec import Gate, Norm, Rotary, Variant, bounds, hook_before

STEPS = 10
"""No stage takes more elementwise steps backwards: the longest, from scores, unmasks, casts, uncaps
in four, scales, and casts."""
SLOPE = {"sigmoid": 0.25, "softplus": 1.0}
CURVE = 0.77
GIVEN = ("hook_in", "hook_kv_in", "hook_cos", "hook_sin")
"""Hook points that hold what the layer is given: known to the bit where they are not shown."""


@dataclass
class Backward:
    """Hold one call and its backward pass.

    gradients: at each watched hook, on the very tensor that the hook was given; None where none
        arrived.
    seen: what backward hooks were given, in the order in which they were called.
    """

    trace: Trace
    cotangent: Tensor
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    seen: list[tuple[str, Tensor]] = field(default_factory=list)
    at_input: Tensor | None = None


Replace = Callable[[Tensor], Tensor]


def run_backwards(
    layer: Any,
    call: CallInputs,
    watch: Sequence[str],
    backward: Sequence[str] = (),
    edits: Mapping[str, Replace] | None = None,
) -> Backward:
    """Run a call with hooks at `watch`, which keep what they are given and its gradient, and take
    the gradient of a random scalar.

    backward: hook points with a backward hook; edits: what some of those replace the gradient by.
    """
    x = call.given["hidden_states"].clone().requires_grad_(True)
    made, kept = Backward(Trace(call), torch.empty(0)), {}

    def look(name: str) -> Callable[..., None]:
        def fn(tensor: Tensor, hook: Any) -> None:
            made.trace.fired.append(name)
            made.trace.values[name] = in_contract(layer, name, tensor.detach().clone())
            # tables need none of their own
            kept[name] = tensor if tensor.requires_grad else tensor.requires_grad_(True)
            tensor.retain_grad()

        return fn

    hooks = [(name, look(name)) for name in watch]
    also = (
        {"backward_hooks": [(name, spy(name, made, (edits or {}).get(name))) for name in backward]}
        if backward
        else {}
    )
    out, _ = layer.run({**call.inputs, "hidden_states": x}, hooks, **also)
    made.cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(
        out.device, out.dtype
    )
    with asking():
        out.backward(made.cotangent)
    made.gradients, made.at_input = {name: tensor.grad for name, tensor in kept.items()}, x.grad
    return made


def spy(name: str, made: Backward, edit: Replace | None) -> Callable[..., Tensor | None]:
    """Return a backward hook that keeps what it sees, and replaces it where it is to."""

    def fn(gradient: Tensor, hook: Any) -> Tensor | None:
        made.seen.append((name, gradient.detach().clone()))
        return None if edit is None else edit(gradient)

    return fn


def served(variant: Variant) -> bool:
    """Return whether every stage that rounds backwards has a hook, so that its bound is known: not
    inside latents, nor between mix and z.

    Nor where values are clipped: at the bound rounding decides whether a gradient flows at all.
    """
    return not (
        variant.clip
        or variant.latent
        or variant.z_norm
        or variant.differential
        or variant.exclusive
        or variant.key_bias
        or variant.shared_kv_argument
    )


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Hold the stages of one recorded call, ready to be differentiated by what each one reads.

    Built once, it serves every backward pass over the same values.

    leaves: each recorded value, by hook point, in float64. context: the stages of the leaves.
    plain: the same stages, without derivatives. absolute: the stages of absolute values.
    fused: whether nobody watched scores and pattern.
    """

    leaves: dict[str, Tensor]
    context: Context
    plain: Context
    absolute: Context
    fused: bool

    def of(self, g: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """Return J^T g at every leaf, of all stages whose gradient g is there."""
        return transposed(self.context, self.leaves, g)

    def of_absolute_values(self, g: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return |J|^T g, at every hook, of the stages that are linear in each of their inputs:
        their gradients at absolute values."""
        shares = transposed(self.absolute, self.absolute.values, g)
        return {name: share for name, share in shares.items() if share is not None}


def derivatives_of(trace: Trace, specimen: Specimen, scenario: Scenario) -> Derivatives:
    """Return the derivatives of a recorded call's stages."""
    leaves = {name: value.double().requires_grad_() for name, value in trace.values.items()}
    context = context_of(replace(trace, values=Values(leaves)), specimen, scenario)
    given = {name: expect(name, context).value for name in context.missing if name in GIVEN}
    context = context.but(values={**context.values, **given})
    fused = "hook_pattern" not in leaves
    if fused:
        context = with_unseen(context)
    plain = context.but(values={name: value.detach() for name, value in context.values.items()})
    return Derivatives(leaves, context, plain, in_absolute_values(plain), fused)


def transposed(
    context: Context, leaves: Mapping[str, Tensor], g: Mapping[str, Tensor]
) -> dict[str, Tensor | None]:
    """Return J^T g at every leaf, summed over the stages that g has a gradient of; None where none
    of them reads the leaf."""
    terms = [
        (finite(expect(name, context).value) * share).sum()
        for name, share in g.items()
        if name not in GIVEN
    ]
    if not terms:
        return dict.fromkeys(leaves)
    shares = torch.autograd.grad(
        torch.stack(terms).sum(), list(leaves.values()), allow_unused=True, retain_graph=True
    )
    return dict(zip(leaves, shares, strict=True))


def expected_gradients(made: Backward, derivatives: Derivatives) -> dict[str, Expectation]:
    """Return what the gradient at every watched hook but the last must be, and how far off it may
    be; `derivatives` are those of the values of this very call."""
    g = {
        name: gradient.double() for name, gradient in made.gradients.items() if gradient is not None
    }
    exact = derivatives.of({name: g[name] for name in derivatives.leaves if name in g})
    bound = magnitudes(derivatives, {name: share.abs() for name, share in g.items()}, made)
    least = STEPS * bounds.UNDERFLOW[derivatives.plain.dtype]
    return {
        name: Expectation(value, bound[name] + least)
        for name, value in exact.items()
        if value is not None and name != "hook_out"
    }


def with_unseen(context: Context) -> Context:
    """Return the context with scores and pattern, which nobody watched, worked out of query and
    key; gradients flow through them."""
    scores = expect("hook_attn_scores", context).value
    with_scores = context.but(values={**context.values, "hook_attn_scores": scores})
    pattern = expect("hook_pattern", with_scores).value
    return context.but(values={**with_scores.values, "hook_pattern": pattern})


def finite(value: Tensor) -> Tensor:
    """Return forbidden scores as 0: no gradient flows there."""
    return torch.where(value.isfinite(), value, 0.0)


def magnitudes(
    derivatives: Derivatives, g: Mapping[str, Tensor], made: Backward
) -> dict[str, Tensor]:
    """Return the error that a right implementation may have at each hook."""
    context, fused = derivatives.plain, derivatives.fused
    dtype, values = context.dtype, context.values
    relative = share_lost(context, dtype)
    loose = {name: relative * share + bounds.UNDERFLOW[dtype] for name, share in g.items()}
    error: dict[str, Tensor] = {name: torch.zeros_like(value) for name, value in values.items()}
    if fused:
        through_unseen(derivatives, g, loose, relative)
    elif "hook_attn_scores" in loose:
        loose["hook_attn_scores"] = (
            loose["hook_attn_scores"] + slope_error(context) * g["hook_attn_scores"]
        )
    for name in ("hook_q_normed", "hook_k_normed", "hook_v_normed"):
        if name in loose:
            source, share = norm_share(name, context, loose.pop(name))
            error[source] = error[source] + share
    if "hook_pattern" in loose and not fused:
        error["hook_attn_scores"] = error["hook_attn_scores"] + softmax_share(
            values["hook_pattern"], loose.pop("hook_pattern")
        )
    for name, share in derivatives.of_absolute_values(loose).items():
        error[name] = error[name] + share
    return {
        name: error[name] * coarser(context, made.trace.values[name], dtype)
        for name in derivatives.leaves
    }


def share_lost(context: Context, dtype: str) -> float:
    """Return the share of the magnitude that one stage backwards may lose in a dtype."""
    return (  # type: ignore[no-any-return]
        bounds.rounded(1.0, times=STEPS, dtype=dtype)
        + bounds.growth(longest(context), dtype)
        + 64 * bounds.ORACLE
    )


def coarser(context: Context, value: Tensor, dtype: str) -> float:
    """Return how many times as much is lost at a value of a coarser dtype than the layer's: tables
    may be float32 in a float64 layer."""
    own = str(value.dtype).removeprefix("torch.")
    return max(1.0, share_lost(context, own) / share_lost(context, dtype))


def through_unseen(
    derivatives: Derivatives, g: Mapping[str, Tensor], loose: dict[str, Tensor], relative: float
) -> None:
    """Add the errors at scores that nobody saw, of the pattern's factor and of the steps from z;
    and z's own."""
    context = derivatives.plain
    scores, p = context.values["hook_attn_scores"], context.values["hook_pattern"]
    factor = (2 * score_bound(context, scores, context.dtype).amax(-1, keepdim=True)).expm1()
    at_pattern = derivatives.of_absolute_values({"hook_z": g["hook_z"]})["hook_pattern"]
    at_scores = softmax_share(p, at_pattern)
    loose["hook_attn_scores"] = (
        (relative + 2 * factor + factor**2) * at_scores
        + relative * softmax_share(p, at_pattern)
        + slope_error(context) * at_scores
    )
    loose["hook_z"] = loose["hook_z"] + factor.amax(1).unsqueeze(2) * g["hook_z"]


def longest(context: Context) -> int:
    """Return the most terms that any product of the backward pass sums."""
    variant, keys = context.variant, context.keys.value.shape[1]
    heads = variant.heads * max(variant.d_head, variant.d_head_v)
    return int(2 * max(variant.d_model, heads, 2 * keys * variant.group) + 16)


def slope_error(context: Context) -> Tensor | float:
    """Return how far the slope of the softcap may be off, the score that it is taken at being
    off."""
    cap = context.variant.softcap
    if cap is None:
        return 0.0
    bare = context.but(variant=replace(context.variant, softcap=None))
    value = bare.stages.score_keys(bare.query.value, bare.keys.value, bare.bias, bare.variant)
    return CURVE / cap * score_bound(bare, value, bare.dtype)


def softmax_share(p: Tensor, g: Tensor) -> Tensor:
    """Return |J|^T g of the softmax that gave p."""
    return p * (g + (p * g).sum(-1, keepdim=True))


def norm_share(hook: str, context: Context, g: Tensor) -> tuple[str, Tensor]:
    """Return the hook point that a norm reads, and |J|^T g of the norm."""
    role, variant, source = role_of(hook), context.variant, hook_before(hook, context.variant)
    norm, affine = variant.norm_in(f"{role}_norm"), getattr(context.weights, f"{role}_norm")
    x = context.heads(source).value
    flat = x.flatten(2) if norm.over == "flat" else x
    centre = flat - flat.mean(-1, keepdim=True) if norm.kind == "layer" else flat
    size = (centre.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    weighted, unit = weight_of(affine, norm) * g.reshape(flat.shape), (centre / size).abs()
    share = weighted + unit * (unit * weighted).mean(-1, keepdim=True)
    share = share + weighted.mean(-1, keepdim=True) if norm.kind == "layer" else share
    return source, (share / size).reshape(context.values[source].shape)


def weight_of(affine: Affine, norm: Norm) -> Tensor | float:
    """Return what a norm multiplies by, made positive."""
    if affine.weight is None:
        return 1.0
    return (affine.weight if norm.weight == "scale" else 1 + affine.weight).abs()


def in_absolute_values(context: Context) -> Context:
    """Return the context with nothing negative in it, every stage linear in each of its inputs, and
    every value a leaf."""
    variant = replace(context.variant, softcap=None, clip=None, scale=abs(context.variant.scale))
    variant = replace(
        variant, k_multiplier=abs(variant.k_multiplier), v_multiplier=abs(variant.v_multiplier)
    )
    return context.but(
        variant=variant,
        stages=replace(
            STAGES, turns=absolute_turns, open_gate=steepest, make_pattern=lambda s, sinks: s
        ),
        values={
            name: finite(value).abs().requires_grad_() for name, value in context.values.items()
        },
        weights=absolute_weights(context.weights),
        bias=torch.where(context.bias.isfinite(), 0.0, context.bias),
    )


def absolute_turns(cos: Tensor, sin: Tensor, rotary: Rotary) -> Tensor:
    """Return the rotations of non-negative tables, with no minus."""
    signs = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=cos.dtype, device=cos.device)
    return turns(cos, sin, replace(rotary, direction="forward")) * signs


def steepest(logits: Tensor, kind: Gate) -> Tensor:
    """Return an activation at its steepest."""
    return SLOPE[kind.activation] * logits


def absolute_weights(weights: Weights) -> Weights:
    """Return every learned tensor without its sign."""
    return replace(
        weights, **{f.name: absolute_of(getattr(weights, f.name)) for f in fields(weights)}
    )


def absolute_of(value: Any) -> Any:
    """Return a tensor, or those of a norm, a pair or a mapping, without sign; None as it is."""
    if isinstance(value, Affine):
        return Affine(absolute_of(value.weight), absolute_of(value.bias))
    if isinstance(value, Mapping):
        return {name: absolute_of(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map(absolute_of, value))
    return None if value is None else value.abs()
