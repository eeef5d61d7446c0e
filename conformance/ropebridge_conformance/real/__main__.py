"""`python -m ropebridge_conformance.real`. Without the extra `[real]` it says how to install it,
and exits 2."""

from ropebridge_conformance.command import NEEDS, refuse_missing
from ropebridge_conformance.real import NEEDS as MORE

if __name__ == "__main__":
    refuse_missing("conformance,real", (*NEEDS, *MORE))
    from ropebridge_conformance.real.run import app

    app()
