"""Model's logits with a bridge, beside those of Hugging Face alone, by their distance from a
float64 run."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.checks.parity import MAX_RATIO, RMS_RATIO
from ropebridge_conformance.judging.findings import Finding, failed, passed

ROWS = 64
"""Positions compared at a time: a vocabulary is wide."""


@dataclass(frozen=True)
class Distance:
    """Hold how far logits are from the float64 ones.

    rms, worst: root mean square and largest error, in logits.
    turned: positions whose best token is another one than in float64, though float64 prefers its
    own by more than twice the worst error.
    """

    rms: float
    worst: float
    turned: int


@torch.no_grad()
def logits_of(model: Any, ids: Tensor) -> Tensor:
    """Return (pos, vocabulary) of one forward without a cache."""
    logits: Tensor = model(ids, use_cache=False).logits[0]
    return logits


@torch.no_grad()
def exact_logits(model: Any, ids: Tensor) -> Tensor:
    """Return the logits of a float64 copy of the model, by Hugging Face alone; its norms and tables
    still round to float32."""
    return logits_of(copy.deepcopy(model).double(), ids)


def distance(logits: Tensor, exact: Tensor) -> Distance:
    """Return how far logits (pos, vocabulary) are from exact ones."""
    blocks = [slice(i, i + ROWS) for i in range(0, len(exact), ROWS)]
    errors = [(logits[rows].double() - exact[rows]) for rows in blocks]
    worst = max(float(error.abs().max()) for error in errors)
    square = sum(float(error.square().sum()) for error in errors)
    turned = sum(turned_rows(logits[rows], exact[rows], 2 * worst) for rows in blocks)
    return Distance((square / exact.numel()) ** 0.5, worst, turned)


def turned_rows(logits: Tensor, exact: Tensor, margin: float) -> int:
    """Return rows whose best token differs from a clear choice."""
    best = exact.topk(2, dim=-1)
    clear = best.values[:, 0] - best.values[:, 1] > margin
    return int((clear & (logits.argmax(-1) != best.indices[:, 0])).sum())


def judge_logits(ours: Distance, theirs: list[Distance]) -> Finding:
    """Judge whether logits are as near the float64 ones as Hugging Face's own implementations are
    (PAR-2's ratios)."""
    rms, worst = ours.rms / max(d.rms for d in theirs), ours.worst / max(d.worst for d in theirs)
    if rms <= RMS_RATIO and worst <= MAX_RATIO and not ours.turned:
        return passed()
    return failed(
        f"error {rms:.3f} times Hugging Face's in root mean square (allowed {RMS_RATIO}),"
        f" {worst:.2f} at worst ({MAX_RATIO}); {ours.turned} positions with another best token"
        " (allowed 0)"
    )


def judge_restored(now: Tensor, before: Tensor) -> Finding:
    """Judge whether a model gives the very bits it gave before hooks were put into it and taken
    away."""
    return (
        passed()
        if torch.equal(now, before)
        else failed("after detach() the logits are not those of before, bit for bit")
    )
