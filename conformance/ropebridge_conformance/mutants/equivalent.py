"""Changes that are no faults: what they compute is the same, and each says why. No check may fail
them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ropebridge_conformance.mutants.applies import (
    all_of,
    has_key_head_per_query_head,
    has_mask,
    opts_in_to_nothing,
)
from ropebridge_conformance.mutants.mutant import Mutant, change
from ropebridge_conformance.stages.scores import scores_of_tiled_keys
from ropebridge_reference import (
    bias_of_mask,
    make_pattern,
    mix_values,
    project_output,
    score_keys,
)
from ropebridge_spec import Variant


@dataclass(frozen=True)
class Equivalent:
    """Hold a change, and the proof that nothing is wrong with it."""

    mutant: Mutant
    proof: str


def pattern_of_shifted_scores(s: Tensor, sinks: Tensor | None) -> Tensor:
    return make_pattern(s.double() - 1.0, None if sinks is None else sinks.double() - 1.0).to(
        s.dtype
    )


def pattern_with_a_moving_maximum(s: Tensor, sinks: Tensor | None) -> Tensor:
    wide = s.to(torch.promote_types(s.dtype, torch.float32))
    top = wide.amax(-1, keepdim=True)
    top = top.masked_fill(top == -math.inf, 0.0)
    weight = torch.exp(wide - top)
    total = weight.sum(-1, keepdim=True) + (
        0 if sinks is None else (sinks.to(wide.dtype).reshape(1, -1, 1, 1) - top).exp()
    )
    return (weight / torch.where(total == 0, 1.0, total)).to(s.dtype)


def scores_summed_from_the_end(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return score_keys(q.flip(-1), k.flip(-1), bias, variant)


def booleans_twice(mask: Tensor) -> Tensor:
    return 2 * bias_of_mask(mask)


def mix_from_the_last_key(p: Tensor, v: Tensor) -> Tensor:
    return mix_values(p.flip(-1), v.flip(1))


def output_from_the_last_head(z: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return project_output(z.flip(2), W.flip(0), b)


EQUIVALENTS: tuple[Equivalent, ...] = (
    Equivalent(
        Mutant(
            "shifted_scores",
            "softmax of scores that are all smaller by one",
            "hook_pattern",
            stages=change(make_pattern=pattern_of_shifted_scores),
        ),
        "e^(s - 1) / sum e^(s - 1) = e^-1 e^s / (e^-1 sum e^s), a sink's term in the sum being one"
        " of them; -inf stays -inf.",
    ),
    Equivalent(
        Mutant(
            "moving_maximum",
            "the largest score is no constant for the gradient",
            "hook_pattern",
            stages=change(make_pattern=pattern_with_a_moving_maximum),
        ),
        "p does not depend on what is subtracted from a whole row, so its derivative by that is 0,"
        " and what flows back through the maximum cancels.",
    ),
    Equivalent(
        Mutant(
            "summed_from_the_end",
            "the terms of q . k are added last first",
            "hook_attn_scores",
            stages=change(score_keys=scores_summed_from_the_end),
        ),
        "A sum does not depend on its order; in floating point each order is within g(n) |q| . |k|"
        " (Higham, section 3.1), which is the bound.",
    ),
    Equivalent(
        Mutant(
            "booleans_twice",
            "what a boolean mask adds is added twice",
            "hook_attn_scores",
            has_mask("boolean"),
            change(bias_of_mask=booleans_twice),
        ),
        "A boolean mask adds 0 or -inf, and 2 * 0 = 0, 2 * -inf = -inf.",
    ),
    Equivalent(
        Mutant(
            "tiled_alone",
            "keys are tiled where each query head has a key head of its own",
            "hook_attn_scores",
            all_of(has_key_head_per_query_head, opts_in_to_nothing),
            change(score_keys=scores_of_tiled_keys),
        ),
        "With one query head a kv head, h mod kv_heads = h // group = h.",
    ),
    Equivalent(
        Mutant(
            "mixed_from_the_end",
            "values are mixed last key first",
            "hook_z",
            stages=change(mix_values=mix_from_the_last_key),
        ),
        "A sum over keys does not depend on their order; each order is within the bound.",
    ),
    Equivalent(
        Mutant(
            "heads_added_from_the_end",
            "heads are added up last first",
            "hook_out",
            opts_in_to_nothing,
            change(project_output=output_from_the_last_head),
        ),
        "A sum over heads does not depend on their order; each order is within the bound.",
    ),
)
