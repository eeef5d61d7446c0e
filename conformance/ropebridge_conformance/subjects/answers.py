"""Define what a layer may answer: a subject that gives back another kind of thing is told which,
and what is required."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


@contextmanager
def asking() -> Iterator[None]:
    """Mark what is raised within the block as the subject's own (`is_of_subject`): an exception of
    the judge is no failure of the subject."""
    try:
        yield
    except NotShown:
        raise
    except (Exception, SystemExit) as error:
        error.__dict__[OF_SUBJECT] = True
        raise


OF_SUBJECT = "raised while a subject was asked"


def is_of_subject(error: BaseException) -> bool:
    """Return whether an exception came out of a subject that was asked."""
    return isinstance(error, WrongAnswer) or OF_SUBJECT in error.__dict__


class WrongAnswer(TypeError):
    """Report that a layer gave back, or showed a hook, something that is not what the protocol
    says; the message says both."""


class WrongShape(WrongAnswer):
    """Report a tensor of another shape than the contract requires."""


class NotShown(LookupError):
    """Report that a question needs the value of a hook point that did not fire; `hook` is its
    name."""

    WORDS = "did not fire, and this question needs its value"

    def __init__(self, hook: str) -> None:
        super().__init__(f"{hook} {self.WORDS}")
        self.hook = hook


class Values(dict[str, Tensor]):
    """Hold what each hook point held, by name."""

    def __missing__(self, hook: str) -> Tensor:
        raise NotShown(hook)


def answered(result: Any) -> tuple[Tensor, Tensor | None]:
    """Return the output and the weights of `Layer.run`.

    Raises:
        WrongAnswer: it is not a pair, the output is not a tensor, or the weights are neither a
            tensor nor None.
    """
    required = "ropebridge_spec.Layer.run gives (output tensor, weights tensor or None)"
    if not isinstance(result, tuple | list) or len(result) != 2:
        size = f" of {len(result)}" if isinstance(result, tuple | list) else ""
        raise WrongAnswer(f"run gave back {type(result).__name__}{size}; {required}")
    out, weights = result
    if not isinstance(out, Tensor):
        raise WrongAnswer(f"run gave back an output of kind {type(out).__name__}; {required}")
    if not isinstance(weights, Tensor | None):
        raise WrongAnswer(f"run gave back weights of kind {type(weights).__name__}; {required}")
    return out, weights


def shown(name: str, value: Any) -> Tensor:
    """Return the tensor a hook was shown.

    Raises:
        WrongAnswer: it is no tensor.
    """
    if not isinstance(value, Tensor):
        raise WrongAnswer(
            f"{name} was shown {type(value).__name__}; a hook is shown a tensor (clause FIRE-4)"
        )
    return value
