"""Page of the reference with some of its functions replaced: how a mutant is run.

The reference knows nothing of mutants. Its page `attention.py` is loaded once more, as a module of
its own, and the names of that module are bound to the mutant's functions; the page that everybody
else imports stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from importlib.util import module_from_spec
from typing import cast

from ropebridge_conformance.stages.functions import STAGES, Stages
from ropebridge_reference import Output, attention, attention_layer


@lru_cache(maxsize=512)
def layer_of(stages: Stages) -> Callable[..., Output]:
    """Return the reference's `attention_layer` made of these functions; the very one where none is
    replaced."""
    if stages == STAGES:
        return attention_layer
    spec = attention.__spec__
    assert spec.loader is not None
    page = module_from_spec(spec)
    spec.loader.exec_module(page)
    for field in fields(stages):
        if hasattr(page, field.name):
            setattr(page, field.name, getattr(stages, field.name))
    return cast("Callable[..., Output]", page.attention_layer)
