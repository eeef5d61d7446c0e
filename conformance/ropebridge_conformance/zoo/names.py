"""Names a run can be narrowed to."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from ropebridge_conformance.zoo.specimens import CASES


class UnknownFamily(Exception):
    """Report a family that the zoo does not have; the message lists what there is."""


def refuse_unknown_families(chosen: Sequence[str] | None) -> None:
    """Refuse a name that is neither a case nor a family nor "all".

    Raises:
        UnknownFamily: with the nearest names, and every family there is.
    """
    families = sorted({case.family for case in CASES})
    known = ["all", *families, *(case.id for case in CASES)]
    for name in chosen or ():
        if name not in known:
            near = ", ".join(get_close_matches(name, known, n=3, cutoff=0.3)) or "none"
            raise UnknownFamily(
                f"no family {name!r} in the zoo\n  nearest: {near}\n  families: all,"
                f" {', '.join(families)}"
            )
