"""Demand of one call on attention, and the kernel that it takes: the one place that chooses, and
says why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ropebridge_spec import ContractError

Kernel = Literal["fused", "row_blocks", "parts", "gradients", "composite"]

BETTER_IN_BLOCKS = range(384, 768)
"""Query rows of a causal pass for which row blocks are faster than torch's fused kernel on a CPU:
it then takes 64 rows of one head at a time, and from 768 on 256."""

ROWS = 64
"""Query rows per block: above 256 a block leaves the cache, below 32 products grow slow."""


@dataclass(frozen=True)
class KernelSettings:
    """Say how a layer chooses its kernel, for those who judge or measure one.

    prefer: the kernel to take wherever it can do what is asked, `fused`, `row_blocks` (with
        derivatives `gradients`) or `composite`; None takes the fastest. rows: query rows per block.

    Raises:
        ContractError: there is no such kernel, or there are no rows.
    """

    prefer: Literal["fused", "row_blocks", "composite"] | None = None
    rows: int = ROWS

    def __post_init__(self) -> None:
        known = ("fused", "row_blocks", "composite", None)
        if self.prefer not in known:
            raise ContractError(
                f"KernelSettings(prefer={self.prefer!r}) names no kernel; it is one of"
                f" {', '.join(map(repr, known))}"
            )
        if self.rows < 1:
            raise ContractError(f"KernelSettings(rows={self.rows}) must be 1 or more")


@dataclass(frozen=True)
class Choice:
    """Hold which kernel a call takes, and why."""

    kernel: Kernel
    reason: str


class Demand(NamedTuple):
    """Hold what a call asks for, as far as it decides on a kernel.

    shown: scores or pattern are wanted, by hooks or by the call. scores: hooks watch them.
    parts: all that is wanted are parts of them.
    dropout, softcap, sinks: the layer has them in this call. other_width: values are wider or
        narrower than queries.
    derivatives: of the attention are taken, now or later. of_mask: of a bias in its mask too.
    of_any_order: derivatives may be second or forward ones: the model attends by eager, which has
        them.
    transformed: a graph is compiled, a transform of torch.func runs, or values cannot be read.
    on_cpu: the device is one. rows: query rows. causal: causality alone says what is visible.
    """

    shown: bool = False
    scores: bool = False
    parts: bool = False
    dropout: bool = False
    softcap: bool = False
    sinks: bool = False
    other_width: bool = False
    derivatives: bool = False
    of_mask: bool = False
    of_any_order: bool = False
    transformed: bool = False
    on_cpu: bool = True
    rows: int = ROWS
    causal: bool = False

    @property
    def unshown(self) -> Demand:
        """Return the same, where nobody wants scores or pattern."""
        return self._replace(shown=False, scores=False, parts=False)

    @property
    def between(self) -> str:
        """Return what the layer does between scores and mix that torch's kernel cannot; empty where
        there is nothing."""
        words = {
            "dropout": self.dropout,
            "a softcap": self.softcap,
            "sinks": self.sinks,
            "values of another width": self.other_width,
        }
        return " and ".join(word for word, there in words.items() if there)


def choose(demand: Demand, settings: KernelSettings = KernelSettings()) -> Choice:
    """Return the kernel for what is asked."""
    if settings.prefer == "composite":
        return Choice("composite", "it is preferred")
    if demand.shown:
        return choose_shown(demand, settings)
    if demand.between:
        return choose_explicit(demand, f"the layer has {demand.between}", settings)
    if demand.of_any_order:
        return Choice("composite", "derivatives of a model that attends by eager, of any order")
    if settings.prefer != "fused" and not demand.transformed and not demand.derivatives:
        if settings.prefer == "row_blocks":
            return Choice("row_blocks", "it is preferred")
        if demand.on_cpu and demand.causal and demand.rows in BETTER_IN_BLOCKS:
            return Choice("row_blocks", "a causal pass of a length at which blocks are faster")
    return Choice("fused", "nobody watches scores or pattern")


def choose_shown(demand: Demand, settings: KernelSettings) -> Choice:
    """Return the kernel for what shows scores or pattern, or parts of them."""
    if not demand.parts:
        return choose_explicit(demand, "the pattern is wanted", settings)
    whole = demand.transformed or demand.derivatives or demand.dropout
    if whole:
        return choose_explicit(demand, "parts are wanted, and made of the whole", settings)
    beside = choose(demand.unshown, settings).kernel
    return Choice("parts", f"parts are wanted; z by {beside}, or where they need all rows by them")


def choose_explicit(demand: Demand, why: str, settings: KernelSettings) -> Choice:
    """Return the kernel for what needs explicit scores, or shows them."""
    if demand.transformed:
        return Choice("composite", f"{why}, in a compiled graph or a transform of torch.func")
    if demand.dropout:
        return Choice("composite", f"{why}; dropout draws for whole rows")
    if not demand.on_cpu and settings.prefer != "row_blocks":
        return Choice("composite", f"{why}, on a device where few large operations are fastest")
    if not demand.derivatives:
        if demand.rows == 1 and settings.prefer != "row_blocks":
            return Choice("composite", f"{why}; of one row few operations are fastest")
        return Choice("row_blocks", why)
    plain = not demand.scores and not demand.between and not demand.of_mask
    if demand.shown and plain:
        return Choice("gradients", f"{why}, and derivatives")
    return Choice("composite", f"{why}, and derivatives")
