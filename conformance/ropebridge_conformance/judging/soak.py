"""Soak: layers that no family has are drawn and judged, one after another, until somebody stops
it."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from ropebridge_conformance.strategies import Drawn, drawn_layers, first_fault
from ropebridge_conformance.subjects.answers import is_of_subject
from ropebridge_conformance.subjects.loading import SubjectError, load_subject
from ropebridge_spec import Subject, Variant

ROUND = 50
"""How many layers hypothesis draws at once: the more, the more it varies what it drew."""
Make = Callable[[Variant], Subject]
"""What makes the subject that computes a drawn layer."""


@dataclass(frozen=True)
class Judged:
    """Hold one layer that was drawn, and what is wrong with a subject on it; None if nothing is."""

    subject: str
    drawn: Drawn
    fault: str | None

    def line(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(asdict(self), default=str)


def soak(
    subjects: Mapping[str, Make], first_seed: int = 0, seconds: float | None = None
) -> Iterator[Judged]:
    """Yield layers as they are judged, each by every subject, round by round, each round from the
    next seed, until `seconds` are over; None goes on until it is stopped."""
    began = time.monotonic()
    for number in count(first_seed):
        for drawn in draw_round(number):
            for name, make in subjects.items():
                yield Judged(name, drawn, fault_of(make, drawn))
            if seconds is not None and time.monotonic() - began >= seconds:
                return


def draw_round(number: int) -> list[Drawn]:
    """Return the layers of one round: the same for the same seed."""
    found: list[Drawn] = []

    @seed(number)
    @settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn=drawn_layers())
    def keep(drawn: Drawn) -> None:
        found.append(drawn)

    keep()
    return found


def fault_of(make: Make, drawn: Drawn) -> str | None:
    """Return what is wrong with a subject on a layer, in words; what it raises is its fault."""
    try:
        return first_fault(make(drawn.variant), drawn)
    except Exception as error:
        if not is_of_subject(error):
            raise
        return f"raised {type(error).__name__}: {error}"


def maker_of(path: str) -> Make:
    """Return what makes subjects of `package.module:Factory`, told what a drawn layer computes.

    Raises:
        SubjectError: nothing can be loaded from there, or its factory takes no `families`.
    """
    kind: Any = type(load_subject(path))
    if "families" not in inspect.signature(kind).parameters:
        raise SubjectError(
            f"subject {path!r} takes no families; a drawn layer is of no class that is known, so"
            " the factory must take families={class name: Variant}, as ropebridge.subject:Factory"
            " does"
        )
    return lambda variant: kind(families={"ToyAttention": variant})
