"""Terminal tables of a run on the real model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from ropebridge_conformance.judging.verdicts import BAD, Verdict
from ropebridge_conformance.real.layers import VALUES
from ropebridge_conformance.real.logits import Distance


def stage_table(verdicts: Sequence[Verdict]) -> Table:
    """Return a table with a row per stage: how many verdicts, how many bad, and the value furthest
    from the oracle, as a share of its bound."""
    table = Table(title="every layer, stage by stage", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("hook point", no_wrap=True)
    for column in ("verdicts", "bad", "worst error / bound"):
        table.add_column(column, justify="right")
    table.add_column("where", no_wrap=True)
    for hook in dict.fromkeys(v.hook for v in verdicts):
        own = [v for v in verdicts if v.hook == hook]
        worst = max((v for v in own if v.check == VALUES), key=share, default=None)
        bad = sum(v.outcome in BAD for v in own)
        shown = (
            ("-", "")
            if worst is None
            else (f"{share(worst):.3f}", f"{worst.case} {worst.dtype}" if share(worst) else "")
        )
        table.add_row(
            hook or "order of hooks", str(len(own)), f"[red]{bad}[/red]" if bad else "0", *shown
        )
    return table


def share(verdict: Verdict) -> float:
    """Return error over bound; 0 where both are 0, infinite where the bound is 0 and missed, or
    nothing could be compared."""
    if verdict.error is None or verdict.bound is None:
        return float("inf") if verdict.outcome in BAD else 0.0
    if verdict.error == 0:
        return 0.0
    return verdict.error / verdict.bound if verdict.bound else float("inf")


def logits_table(distances: Mapping[str, Distance]) -> Table:
    """Return a table: how far the logits of each are from those in float64."""
    table = Table(title="logits: distance from float64", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("who", no_wrap=True)
    for column in ("root mean square", "largest", "best tokens changed"):
        table.add_column(column, justify="right")
    for who, d in distances.items():
        table.add_row(who, f"{d.rms:.3g}", f"{d.worst:.3g}", str(d.turned))
    return table
