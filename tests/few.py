"""Say which of many alike `make test` tries: a few. `make every` tries the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

FAMILIES = ("llama", "mistral", "gemma2", "gemma3", "qwen3", "olmo2", "cohere", "gpt_oss")
"""Families that together do one of everything that the core of the zoo does."""

FOUR = ("llama", "gemma2", "gemma3", "gpt_oss")
"""Of them a plain one, and such as have a softcap, norms and sinks; three have windows."""


def few(chosen: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Return the values of a parametrised test, all but the chosen ones marked `every`.

    Raises:
        LookupError: a chosen one is not among them.
    """
    values = list(values)
    every = pytest.mark.every
    missing = [one for one in chosen if one not in values]
    if missing:
        raise LookupError(f"{missing} are none of the {len(values)} values that there are")
    return [
        one
        if one in chosen
        else pytest.param(*one, marks=every)
        if isinstance(one, tuple)
        else pytest.param(one, marks=every)
        for one in values
    ]
