"""Command `ropebridge`. Without the extra `[conformance]` it says how to install it, and exits
2."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

NEEDS = ("typer", "rich", "jinja2", "pytest")
JUDGING = ("check", "coverage")
"""Commands whose processes are forked from one that is prepared (`processes.py`)."""


def main() -> None:
    """Run the command line, or say what is missing."""
    refuse_missing("conformance", NEEDS)
    if set(JUDGING) & set(sys.argv[1:2]):
        from ropebridge_conformance.judging.processes import prepare

        prepare()
    from ropebridge_conformance.cli import app

    app()


def refuse_missing(extra: str, needs: Sequence[str]) -> None:
    """Exit with code 2, and how to install an extra, where any package that it brings is
    missing."""
    missing = [name for name in needs if find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"ropebridge needs {', '.join(missing)}, which the extra brings: pip install"
            f" 'ropebridge[{extra}]'\n"
        )
        raise SystemExit(2)
