"""Induction heads: found by where they look on repeated random tokens (Olsson et al. 2022), and
confirmed by ablation.

`python -m ropebridge.methods.induction` trains a tiny rotary transformer on such repeats, in
seconds, and shows its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ropebridge.bridged import BridgedModel
from ropebridge.methods.ablation import ablated, head_ablation
from ropebridge.methods.errors import MethodError
from ropebridge.methods.knockout import knocked_out
from ropebridge.methods.patching import layer_of
from ropebridge.methods.running import (
    Metric,
    keywords,
    logits_of,
    refuse_dropout,
    table_of_heads,
)
from ropebridge.methods.selection import Heads, Selection, select

FOUND = 0.4
"""The induction score from which on a head is called an induction head."""


def repeated_tokens(
    batch: int,
    period: int,
    vocabulary: int,
    *,
    seed: int = 0,
    first: int = 0,
    begin: int | None = None,
) -> Tensor:
    """Return random tokens, and the same once more.

    Args:
        batch: rows, each drawn apart.
        period: how many tokens there are before they repeat.
        vocabulary, first: tokens are drawn from [first, vocabulary).
        seed: makes them repeatable.
        begin: a token that stands once before them all, as models with a beginning-of-text token
            want it.

    Returns:
        (batch, 2 * period), or one longer with `begin`: token ids.
    """
    once = torch.randint(
        first, vocabulary, (batch, period), generator=torch.Generator().manual_seed(seed)
    )
    start = [] if begin is None else [torch.full((batch, 1), begin)]
    return torch.cat([*start, once, once], 1)


def repeats_loss(tokens: Tensor, period: int) -> Metric:
    """Return the mean cross-entropy, in nats, of the tokens of the second half that can be known:
    all but its first."""

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(
            logits[:, -period:-1].flatten(0, 1).float(),
            tokens[:, -period + 1 :].flatten().to(logits.device),
        )

    return loss


@torch.no_grad()
def induction_scores(
    bridged: BridgedModel,
    tokens: Tensor,
    period: int,
    *,
    layers: Iterable[int] | None = None,
    heads: Heads | None = None,
    positions: Iterable[int] | None = None,
) -> Tensor:
    """Return (layer, head) float32: the mean weight that queries in the second half give to what
    followed the same token before; nan where a layer has no such head, or it was not chosen.

    Args:
        tokens: as `repeated_tokens` makes them.
        period: after how many tokens they repeat.
        layers, heads, positions: which heads are scored, and at which queries of the second half;
            as in `select`.

    Raises:
        MethodError: the tokens do not repeat after `period`, or no chosen position lies in the
            second half.
    """
    refuse_unrepeated(tokens, period)
    refuse_dropout(bridged)
    chosen = select(bridged, layers, heads, positions)
    table, places = table_of_heads(bridged, chosen)
    queries = repeated_queries(chosen, tokens.shape[1], period)

    def look(pattern: Tensor, hook: Any) -> None:
        layer = layer_of(bridged, hook.name)
        on_what_followed = pattern[:, :, queries, [query - period + 1 for query in queries]]
        scores = on_what_followed.float().mean((0, -1)).cpu()  # (head,)
        for head in (head for at, head in places if at == layer):
            table[layer, head] = scores[head]

    names = [f"{bridged.layers[layer].name}.hook_pattern" for layer in chosen.layers]
    bridged.run_with_hooks(fwd_hooks=[(name, look) for name in names], **keywords(bridged, tokens))
    return table


def repeated_queries(chosen: Selection, length: int, period: int) -> list[int]:
    """Return the chosen queries whose token stood there once before, and something after it."""
    first = length - period
    queries = [position for position in chosen.positions_of(length) if position >= first]
    if not queries:
        raise MethodError(
            f"no chosen position lies in the second half, which begins at {first}; positions="
            f"{list(chosen.positions or ())}"
        )
    return queries


def refuse_unrepeated(tokens: Tensor, period: int) -> None:
    """Refuse tokens that have nothing to find."""
    if (
        period < 2
        or tokens.shape[1] < 2 * period
        or not torch.equal(tokens[:, -period:], tokens[:, -2 * period : -period])
    ):
        raise MethodError(
            f"tokens of shape {tuple(tokens.shape)} do not repeat after period={period}; make them"
            " with repeated_tokens(batch, period, vocabulary)"
        )


@dataclass(frozen=True)
class Induction:
    """Hold what a model's induction heads are, and what they are worth. Losses are those of the
    second half, in nats.

    Attributes:
        scores: (layer, head) induction scores.
        losses: (layer, head) loss with that head mean-ablated.
        heads: the induction heads (layer, head), the highest score first.
        loss: loss with every head in place.
        without: loss with all of `heads` mean-ablated together.
        blind: loss where `heads` cannot see what followed last time, and nothing else is changed.
        blind_beside: the control: loss where they cannot see the place one before that.
    """

    scores: Tensor
    losses: Tensor
    heads: list[tuple[int, int]]
    loss: float
    without: float
    blind: float
    blind_beside: float


def find_induction(
    bridged: BridgedModel, tokens: Tensor, period: int, *, found: float = FOUND, quiet: bool = False
) -> Induction:
    """Find induction heads by pattern, and confirm them by ablation and by knockout.

    Args:
        tokens, period: as for `induction_scores`.
        found: the score from which on a head is one.
        quiet: no progress bar.

    Raises:
        MethodError: no head has a score of `found`; the message names the best.
    """
    scores, metric = induction_scores(bridged, tokens, period), repeats_loss(tokens, period)
    heads = strongest(scores, found)
    places = range(tokens.shape[1] - period, tokens.shape[1])
    return Induction(
        scores,
        head_ablation(bridged, tokens, metric, by="mean", quiet=quiet),
        heads,
        loss=unhooked(bridged, tokens, metric),
        without=float(metric(ablated(bridged, tokens, heads, by="mean"))),
        blind=float(
            metric(
                knocked_out(
                    bridged, tokens, [(place, place - period + 1) for place in places], heads=heads
                )
            )
        ),
        blind_beside=float(
            metric(
                knocked_out(
                    bridged, tokens, [(place, place - period) for place in places], heads=heads
                )
            )
        ),
    )


@torch.no_grad()
def unhooked(bridged: BridgedModel, tokens: Tensor, metric: Metric) -> float:
    """Return the metric of the model as it is."""
    return float(metric(logits_of(bridged, tokens)))


def strongest(scores: Tensor, found: float) -> list[tuple[int, int]]:
    """Return the heads (layer, head) of at least this score, highest first."""
    order = scores.nan_to_num(-1).flatten().argsort(descending=True).tolist()
    width = scores.shape[1]
    heads = [(i // width, i % width) for i in order if scores.flatten()[i] >= found]
    if not heads:
        best = divmod(order[0], width)
        raise MethodError(
            f"no head has an induction score of {found}; the highest is {float(scores[best]):.2f},"
            f" of layer {best[0]} head {best[1]}"
        )
    return heads


def describe_induction(found: Induction) -> str:
    """Return the finding as a table, and what ablation and knockout say."""
    rows = [f"{'layer':>5} {'head':>4} {'induction score':>15} {'loss without it':>15}"]
    for layer, head in [
        (layer, head)
        for layer, row in enumerate(found.scores.tolist())
        for head, score in enumerate(row)
        if score == score
    ]:
        mark = "  <- induction head" if (layer, head) in found.heads else ""
        rows.append(
            f"{layer:>5} {head:>4} {float(found.scores[layer, head]):>15.3f}"
            f" {float(found.losses[layer, head]):>15.3f}{mark}"
        )
    rows.append(f"loss on the repeated half, in nats: {found.loss:.3f} as it is")
    rows.append(
        f"  {found.without:.3f} without the {len(found.heads)} induction heads (mean-ablated"
        " together)"
    )
    rows.append(
        f"  {found.blind:.3f} where they cannot see what followed last time;"
        f" {found.blind_beside:.3f} where they cannot see the place before it"
    )
    return "\n".join(rows)


def main() -> None:
    """Train the tiny model, and show its induction heads."""
    from ropebridge import attach
    from ropebridge.methods.tiny import PERIODS, VOCABULARY, train_on_repeats

    model = train_on_repeats()
    period = PERIODS[-1]
    with attach(model) as bridged:
        print(
            describe_induction(
                find_induction(bridged, repeated_tokens(16, period, VOCABULARY, seed=1), period)
            )
        )


if __name__ == "__main__":
    main()
