"""Latents that query, key and value come up from (LAT-1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ropebridge_conformance.mutants.applies import has, query_is_direct, scales_latents
from ropebridge_conformance.mutants.mutant import AXES, Mutant, change, shows_as
from ropebridge_conformance.stages.carried import WithError, carry_factor, join_parts
from ropebridge_conformance.stages.context import Context, Expectation, expects
from ropebridge_conformance.stages.norm import carry_norm
from ropebridge_conformance.stages.projection import carry_projection
from ropebridge_reference import Affine, make_latent, project_heads
from ropebridge_spec import Norm


@expects("hook_q_latent", "hook_kv_latent")
def expected_latent(hook: str, c: Context) -> Expectation:
    """Return what LAT-1 makes of the values before."""
    latent = c.variant.latent
    assert latent is not None
    role, scale = ("Q", latent.q_scale) if hook == "hook_q_latent" else ("KV", latent.kv_scale)
    affine = c.weights.q_latent_norm if role == "Q" else c.weights.kv_latent_norm
    x = c.seen("hook_in")
    W, b = getattr(c.weights, f"W_D{role}"), getattr(c.weights, f"b_D{role}")
    how = (W, b, affine, latent.norm, scale, latent.q_beside and role == "Q")
    return Expectation(
        c.stages.make_latent(x.value, *how),
        lambda: carry_latent(x, *how, c.dtype).error.squeeze(2),
    )


def carry_latent(
    x: WithError,
    W: Tensor,
    b: Tensor | None,
    affine: Affine,
    norm: Norm,
    scale: float,
    beside: bool,
    dtype: str,
) -> WithError:
    """Carry value and error through LAT-1: down, normed and scaled, and as it was beside that where
    the family brings it up too; with an axis of one head."""
    one_head = x.map(lambda value: value.unsqueeze(2))
    down = carry_projection(one_head, W[None], None if b is None else b[None], dtype)
    risen = carry_factor(carry_norm(down, affine, norm, dtype), scale, dtype)
    return join_parts(risen, down) if beside else risen


# Faults that prove the judge at this stage.


def latent_unnormed(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    affine: Affine,
    norm: Norm,
    scale: float,
    beside: bool = False,
) -> Tensor:
    down = project_heads(x.unsqueeze(2), W[None], None if b is None else b[None]).squeeze(2)
    return torch.cat([scale * down, down], -1) if beside else scale * down


def latent_unscaled(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    affine: Affine,
    norm: Norm,
    scale: float,
    beside: bool = False,
) -> Tensor:
    return make_latent(x, W, b, affine, norm, 1.0, beside)


def latent_normed_twice(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    affine: Affine,
    norm: Norm,
    scale: float,
    beside: bool = False,
) -> Tensor:
    normed = make_latent(x, W, b, affine, norm, scale)
    return torch.cat([normed, normed], -1) if beside else normed


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "latent_unnormed",
        "latents are not normed",
        "hook_q_latent",
        has("latent", "q_rank"),
        change(make_latent=latent_unnormed),
        also=("hook_kv_latent",),
    ),
    Mutant(
        "kv_latent_unnormed",
        "the one latent there is is not normed",
        "hook_kv_latent",
        query_is_direct,
        change(make_latent=latent_unnormed),
    ),
    Mutant(
        "latent_unscaled",
        "latents are not scaled",
        "hook_q_latent",
        scales_latents,
        change(make_latent=latent_unscaled),
        also=("hook_kv_latent",),
    ),
    Mutant(
        "raw_latent_forgotten",
        "the normed latent stands beside itself",
        "hook_q_latent",
        has("latent", "q_beside"),
        change(make_latent=latent_normed_twice),
    ),
    Mutant(
        "latent_by_head",
        "hook_kv_latent is shown with an axis of heads",
        "hook_kv_latent",
        has("latent"),
        show=shows_as("hook_kv_latent", lambda c: c.unsqueeze(2), lambda c: c.squeeze(2)),
        clause="LAT-2",
        arms=AXES,
    ),
)
