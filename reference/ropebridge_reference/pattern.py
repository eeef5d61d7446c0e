"""Clause PAT-1: softmax over keys, with a sink where the family has one, and 0 in a row that sees
no key (MASK-6)."""

from __future__ import annotations

import math

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

Scores = Float[Tensor, "batch head query key"]
Column = Float[Tensor, "batch head query 1"]


def make_pattern(scores: Scores, sinks: Float[Tensor, " head"] | None) -> Scores:
    """Return exp(s - m) over its sum, in at least float32; a sink adds its share to the sum and to
    nothing else."""
    s = scores.to(torch.promote_types(scores.dtype, torch.float32))
    sink = sink_column(s, sinks)
    top = largest(s, sink)
    weight = torch.exp(s - top)
    total = weight.sum(-1, keepdim=True) + torch.exp(sink - top)
    return (weight / torch.where(total == 0, 1.0, total)).to(scores.dtype)


def sink_column(s: Scores, sinks: Float[Tensor, " head"] | None) -> Column:
    """Return the sink's logit in every row; -inf, a share of nothing, where there is no sink."""
    sinks = s.new_full((s.shape[1],), -math.inf) if sinks is None else sinks.to(s.dtype)
    return repeat(sinks, "head -> batch head query 1", batch=s.shape[0], query=s.shape[2])


def largest(s: Scores, sink: Column) -> Column:
    """Return the largest logit of each row, 0 where the row sees nothing; a constant for the
    gradient."""
    top = torch.cat([s, sink], dim=-1).amax(-1).detach()
    return rearrange(
        top.masked_fill(top == -math.inf, 0.0), "batch head query -> batch head query 1"
    )
