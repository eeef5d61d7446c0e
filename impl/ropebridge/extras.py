"""Packages that only an extra brings: imported when they are needed, and missed with the line that
installs them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ropebridge_spec import RopebridgeError


class MissingExtra(RopebridgeError, ImportError):
    """Report that a package that an extra brings is not installed."""


def need(package: str, extra: str, what: str) -> Any:
    """Import a package that an extra brings, and return it.

    Args:
        package: its import name.
        extra: the extra of ropebridge that brings it.
        what: what needs it, for the message.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        top = package.partition(".")[0]
        if (error.name or "").partition(".")[0] != top:
            raise
        raise MissingExtra(
            f"{what} needs {top}, which the extra brings: pip install 'ropebridge[{extra}]'",
            name=top,
        ) from error
