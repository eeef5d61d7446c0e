"""Changes that are no faults: what they compute is the same, and each says why. No check may fail
them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from einops import repeat
from torch import Tensor

from ropebridge_conformance.mutants.applies import (
    all_of,
    has_key_head_per_query_head,
    has_mask,
    opts_in_to_nothing,
)
from ropebridge_conformance.mutants.mutant import ARMS, LEANING, Mutant, change
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


def scores_of_scaled_queries(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return score_keys((q * variant.scale).to(q.dtype), k, bias, replace(variant, scale=1.0))


def scores_of_scaled_keys(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    return score_keys(q, (k * variant.scale).to(k.dtype), bias, replace(variant, scale=1.0))


def scores_of_scaled_both(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    root = math.sqrt(abs(variant.scale))
    sign = math.copysign(1.0, variant.scale)
    return score_keys(
        q.to(wide) * (sign * root), k.to(wide) * root, bias, replace(variant, scale=1.0)
    )


def scores_in_two_parts(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    half = q.shape[-1] // 2
    bare = replace(variant, softcap=None)
    none = torch.zeros_like(bias)
    first = score_keys(q[..., :half], k[..., :half], none, bare)
    s = first + score_keys(q[..., half:], k[..., half:], none, bare)
    return (
        s if variant.softcap is None else variant.softcap * torch.tanh(s / variant.softcap)
    ) + bias


def scores_of_repeated_keys(q: Tensor, k: Tensor, bias: Tensor, variant: Variant) -> Tensor:
    for_every_head = repeat(k, "batch key kv d -> batch key (kv group) d", group=variant.group)
    return score_keys(q, for_every_head, bias, replace(variant, kv_heads=variant.heads))


def pattern_by_blocks(s: Tensor, sinks: Tensor | None) -> Tensor:
    """Return a softmax made key block by key block: what was made for earlier blocks shrinks as a
    larger score comes."""
    wide = s.to(torch.promote_types(s.dtype, torch.float32))
    shape = (*s.shape[:-1], 1)
    top = wide.new_full(shape, -math.inf)
    if sinks is not None:
        top = sinks.to(wide.dtype).reshape(1, -1, 1, 1).expand(shape)
    total = torch.where(top == -math.inf, 0.0, 1.0)
    made: list[Tensor] = []
    for block in wide.split(3, dim=-1):
        higher = torch.maximum(top, block.detach().amax(-1, keepdim=True))
        still = higher.masked_fill(higher == -math.inf, 0.0)
        shrink = (top - still).exp()
        made = [part * shrink for part in made] + [(block - still).exp()]
        total = total * shrink + made[-1].sum(-1, keepdim=True)
        top = higher
    return (torch.cat(made, dim=-1) / torch.where(total == 0, 1.0, total)).to(s.dtype)


def pattern_of_powers_of_two(s: Tensor, sinks: Tensor | None) -> Tensor:
    wide = s.to(torch.promote_types(s.dtype, torch.float32))
    sink = wide.new_full((s.shape[1],), -math.inf) if sinks is None else sinks.to(wide.dtype)
    column = sink.reshape(1, -1, 1, 1).expand(*s.shape[:-1], 1)
    both = torch.cat([wide, column], dim=-1)
    top = both.detach().amax(-1, keepdim=True)
    top = top.masked_fill(top == -math.inf, 0.0)
    weight = torch.exp2((both - top) / math.log(2))
    total = weight.sum(-1, keepdim=True)
    return (weight[..., :-1] / torch.where(total == 0, 1.0, total)).to(s.dtype)


def pattern_of_torch(s: Tensor, sinks: Tensor | None) -> Tensor:
    wide = s.to(torch.promote_types(s.dtype, torch.float32))
    nothing_seen = (s == -math.inf).all(-1, keepdim=True)
    wide = wide.masked_fill(nothing_seen, 0.0)
    if sinks is None:
        return torch.softmax(wide, -1).masked_fill(nothing_seen, 0.0).to(s.dtype)
    column = sinks.to(wide.dtype).reshape(1, -1, 1, 1).expand(*s.shape[:-1], 1)
    p = torch.softmax(torch.cat([wide, column], dim=-1), -1)[..., :-1]
    return p.masked_fill(nothing_seen, 0.0).to(s.dtype)


def mix_head_by_head(p: Tensor, v: Tensor) -> Tensor:
    wide = torch.promote_types(v.dtype, torch.float32)
    group = p.shape[1] // v.shape[2]
    heads = [p[:, h].to(wide) @ v[:, :, h // group].to(wide) for h in range(p.shape[1])]
    return torch.stack(heads, dim=2).to(v.dtype)


def output_in_two_parts(z: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    wide = torch.promote_types(z.dtype, torch.float32)
    half = z.shape[2] // 2
    first = project_output(z[:, :, :half].to(wide), W[:half].to(wide), None)
    second = project_output(
        z[:, :, half:].to(wide), W[half:].to(wide), b if b is None else b.to(wide)
    )
    return (first + second).to(z.dtype)


def output_of_one_product(z: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(z.flatten(2), W.flatten(0, 1).T.contiguous(), b)


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
    Equivalent(
        Mutant(
            "scaled_queries",
            "the query is scaled, and rounded, before the product",
            "hook_attn_scores",
            stages=change(score_keys=scores_of_scaled_queries),
            arms=(*ARMS, *LEANING),
        ),
        "(scale q) . k = scale (q . k); each product's rounding is within u scale |q| . |k|, which"
        " the bound has for a scale folded into an operand.",
    ),
    Equivalent(
        Mutant(
            "scaled_keys",
            "the key is scaled, and rounded, before the product",
            "hook_attn_scores",
            stages=change(score_keys=scores_of_scaled_keys),
            arms=(*ARMS, *LEANING),
        ),
        "q . (scale k) = scale (q . k); rounded as a scaled query is.",
    ),
    Equivalent(
        Mutant(
            "scaled_both",
            "query and key are each scaled by the root of the scale",
            "hook_attn_scores",
            stages=change(score_keys=scores_of_scaled_both),
            arms=(*ARMS, *LEANING),
        ),
        "(sqrt(scale) q) . (sqrt(scale) k) = scale (q . k), in at least float32.",
    ),
    Equivalent(
        Mutant(
            "scores_in_two_parts",
            "the terms of q . k are added up in two parts",
            "hook_attn_scores",
            opts_in_to_nothing,
            change(score_keys=scores_in_two_parts),
            arms=(*ARMS, *LEANING),
        ),
        "A sum may be taken in parts, before softcap and mask; each order is within the bound.",
    ),
    Equivalent(
        Mutant(
            "repeated_keys",
            "a key head is repeated for each query head of its group",
            "hook_attn_scores",
            stages=change(score_keys=scores_of_repeated_keys),
        ),
        "Query head h reads kv head h // group, which is copy h of the repeated heads.",
    ),
    Equivalent(
        Mutant(
            "pattern_by_blocks",
            "softmax goes from block to block of keys, with a running largest score",
            "hook_pattern",
            stages=change(make_pattern=pattern_by_blocks),
            arms=(*ARMS, *LEANING),
        ),
        "e^(s - m) e^(m - n) = e^(s - n): weights and total of earlier blocks shrink by the same"
        " factor as the largest score grows (arXiv:1805.02867).",
    ),
    Equivalent(
        Mutant(
            "powers_of_two",
            "softmax with powers of two",
            "hook_pattern",
            stages=change(make_pattern=pattern_of_powers_of_two),
            arms=(*ARMS, *LEANING),
        ),
        "2^(x / ln 2) = e^x; the quotient's rounding is within the bound's a (max - x).",
    ),
    Equivalent(
        Mutant(
            "pattern_of_torch",
            "torch.softmax, a sink as one more column, 0 where a row sees nothing",
            "hook_pattern",
            stages=change(make_pattern=pattern_of_torch),
        ),
        "It is the definition: the column of the sinks is cut off after the sum.",
    ),
    Equivalent(
        Mutant(
            "mixed_head_by_head",
            "each head mixes its values in a product of its own",
            "hook_z",
            stages=change(mix_values=mix_head_by_head),
        ),
        "No head's mix depends on another head.",
    ),
    Equivalent(
        Mutant(
            "output_in_two_parts",
            "half of the heads are added up, then the other half",
            "hook_out",
            opts_in_to_nothing,
            change(project_output=output_in_two_parts),
            arms=(*ARMS, *LEANING),
        ),
        "A sum may be taken in parts; each order is within the bound.",
    ),
    Equivalent(
        Mutant(
            "output_of_one_product",
            "all heads go through one linear map, whose bias is added before it rounds",
            "hook_out",
            opts_in_to_nothing,
            change(project_output=output_of_one_product),
        ),
        "sum over h and d of z W is the product of the heads side by side.",
    ),
)
