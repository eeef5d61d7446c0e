"""Loading: a subject by its import path, refused where it is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from ropebridge_conformance.checks import CHECK_BY_NAME
from ropebridge_conformance.judging.gaps import unknown_gaps
from ropebridge_conformance.zoo.recipes import RECIPES
from ropebridge_conformance.zoo.scenarios import SCENARIO_BY_ID
from ropebridge_conformance.zoo.specimens import CASE_BY_ID
from ropebridge_spec import CLAUSE_BY_ID, HOOK_BY_NAME, OPT_INS, RESERVED, Subject

GAPS_MAY_BE = (
    *(*HOOK_BY_NAME, *RESERVED, *CLAUSE_BY_ID, *CHECK_BY_NAME, *OPT_INS),
    *(*(recipe.name for recipe in RECIPES), *CASE_BY_ID, *SCENARIO_BY_ID),
)
"""What may stand among a subject's declared gaps."""
CONVENTIONS = {"masked_scores": ("lowest",)}
"""What a subject may do otherwise than the contract, and how."""


class SubjectError(Exception):
    """Report a subject that cannot be loaded; the message says why and what to do."""


def load_subject(path: str) -> Subject:
    """Return the subject at `package.module:Factory`.

    Raises:
        SubjectError: nothing can be imported from there, or it is not a subject.
    """
    module, _, name = path.partition(":")
    sys.path.insert(0, "")
    try:
        factory = getattr(import_module(module), name)
        subject = factory()
    except (Exception, SystemExit) as error:
        raise SubjectError(
            f"cannot load subject {path!r}: {type(error).__name__}: {error}\n  a subject is"
            " given as package.module:Factory"
        ) from error
    finally:
        sys.path.remove("")
    missing = [need for need in ("name", "unsupported", "layer") if not hasattr(subject, need)]
    if missing:
        raise SubjectError(
            f"subject {path!r} lacks {', '.join(missing)}; ropebridge_spec.Subject says what a"
            " subject has"
        )
    refuse_wrong_kinds(path, subject)
    refuse_unknown_names(path, subject)
    return subject  # type: ignore[no-any-return]


def refuse_wrong_kinds(path: str, subject: Any) -> None:
    """Refuse a subject whose name, gaps or layer are of another kind than the protocol says."""
    required = {
        "name": (str, "a string"),
        "unsupported": (Mapping, "a mapping"),
        "layer": (Callable, "a method"),
    }
    for attribute, (kind, words) in required.items():
        value = getattr(subject, attribute)
        if not isinstance(value, kind):  # type: ignore[arg-type]
            raise SubjectError(
                f"subject {path!r}: {attribute} is {type(value).__name__}, and must be {words};"
                " ropebridge_spec.Subject says what a subject has"
            )


def refuse_unknown_names(path: str, subject: Any) -> None:
    """Refuse a gap or a convention that nobody knows: it would be without effect."""
    wrong = unknown_gaps(subject.unsupported, GAPS_MAY_BE)
    for name, choice in getattr(subject, "conventions", {}).items():
        if choice not in CONVENTIONS.get(name, ()):
            allowed = "; ".join(f"{key}: {', '.join(of)}" for key, of in CONVENTIONS.items())
            wrong = wrong or (
                f"conventions has {name!r}: {choice!r}\n  the contract allows {allowed}"
            )
    if wrong:
        raise SubjectError(f"subject {path!r}: {wrong}")
