"""Two metrics that are asked for most."""

from __future__ import annotations

from torch import Tensor

from ropebridge.methods.running import Metric


def answer_logit(answers: Tensor, position: int = -1) -> Metric:
    """Return the logit of an answer token at one position, averaged over the batch.

    Args:
        answers: (batch,) token ids.
        position: where the answer is asked for.
    """
    return lambda logits: at(logits, answers, position).mean()


def logit_difference(answers: Tensor, wrong: Tensor, position: int = -1) -> Metric:
    """Return how far the answer's logit lies above that of a wrong token, averaged over the batch.

    Args:
        answers, wrong: (batch,) token ids.
        position: where the answer is asked for.
    """
    return lambda logits: (at(logits, answers, position) - at(logits, wrong, position)).mean()


def at(logits: Tensor, tokens: Tensor, position: int) -> Tensor:
    """Return (batch,) the logits of tokens (batch,) at a position, in float32 or finer."""
    chosen = logits[:, position].gather(-1, tokens.to(logits.device).unsqueeze(-1)).squeeze(-1)
    return chosen.double() if chosen.dtype.itemsize > 4 else chosen.float()
