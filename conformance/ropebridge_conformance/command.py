"""The command `ropebridge`. Without the extra `[conformance]` it says how to install it, and exits 2."""

from __future__ import annotations

import sys
from importlib.util import find_spec

NEEDS = ("typer", "rich", "pytest")


def main() -> None:
    """Run the command line, or say what is missing."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        sys.stderr.write(f"ropebridge needs {', '.join(missing)}, which the extra brings: pip install 'ropebridge[conformance]'\n")
        raise SystemExit(2)
    from ropebridge_conformance.cli import app

    app()
