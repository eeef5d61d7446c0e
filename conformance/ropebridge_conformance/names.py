"""The names a run can be narrowed to."""

from __future__ import annotations

from collections.abc import Sequence

from ropebridge_conformance.zoo import CASES


class UnknownFamily(Exception):
    """A family that the zoo does not have; the message lists what there is."""


def refuse_unknown_families(chosen: Sequence[str] | None) -> None:
    """Refuse a name that is neither a case nor a model type.

    Raises:
        UnknownFamily: with the names there are.
    """
    known = sorted({name for case in CASES for name in (case.id, case.model_type)})
    unknown = [name for name in chosen or () if name not in known]
    if unknown:
        raise UnknownFamily(f"no family {', '.join(map(repr, unknown))} in the zoo; there are: {', '.join(known)}")
