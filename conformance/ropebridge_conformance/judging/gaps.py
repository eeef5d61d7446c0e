"""Gaps: what a subject declares not to have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

Reason = str | Callable[[Any], str]
"""Why something is not had; or a function of the attention module that says so of its layer, and
gives "" where the layer has it."""


def gaps_of(unsupported: Mapping[str, Reason], module: Any) -> dict[str, str]:
    """Return name -> reason, of what a subject declares not to have in the layer of a module."""
    reasons = {
        name: reason(module) if callable(reason) else reason for name, reason in unsupported.items()
    }
    return {name: reason for name, reason in reasons.items() if reason}


def unknown_gaps(unsupported: Iterable[str], known: Iterable[str]) -> str:
    """Return what is wrong with the names of declared gaps; nothing if nothing is."""
    there = sorted(known)
    for name in unsupported:
        if name not in there:
            near = ", ".join(get_close_matches(name, there, n=3, cutoff=0.4)) or "none"
            return (
                f"unsupported has {name!r}, which is no hook point, clause, check, opt-in, family,"
                f" case or scenario\n  nearest: {near}"
            )
    return ""
