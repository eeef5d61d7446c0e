"""Releases of transformers that this ropebridge was tested with, and a warning where a newer one is
installed."""

from __future__ import annotations

import warnings

import transformers
from packaging.version import Version

OLDEST_TESTED, NEWEST_TESTED = "5.17", "5.24"


def sdpa_refuses_softcaps(installed: str = transformers.__version__) -> bool:
    """Return whether the installed transformers' sdpa attention raises where a layer caps its
    scores; before 5.21 it left the cap out."""
    return Version(installed).release[:2] >= (5, 21)


class UntestedTransformers(UserWarning):
    """Report that the installed transformers is newer than the newest that was tested."""


def warn_if_untested(installed: str = transformers.__version__) -> None:
    """Warn where the installed transformers is newer than `NEWEST_TESTED`; Python shows it once in
    a process, unless told otherwise.

    A newer release may call attention in another way: in 5.24 the cache had another name, and
    bridges went on without it.
    """
    if Version(installed).release[:2] > Version(NEWEST_TESTED).release[:2]:
        warnings.warn(
            f"transformers {installed} is newer than {NEWEST_TESTED}, the newest that this"
            " ropebridge was tested with\n  what attach does not understand it refuses; to be"
            f" sure: pip install 'transformers=={NEWEST_TESTED}.*', or a newer ropebridge",
            UntestedTransformers,
            stacklevel=1,
        )
