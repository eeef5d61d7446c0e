"""How the judge's processes are started: from one that has imported everything, where there can be
one, so that a process that takes the place of another is there at once."""

from __future__ import annotations

import sys
from multiprocessing import get_context
from multiprocessing.context import BaseContext

IMPORTED = ("ropebridge_conformance.judging.worker", "transformers.models.llama.modeling_llama")
"""What that one imports: one model of transformers brings along what all of them share."""


def processes() -> BaseContext:
    """Return the context in which processes are started: forked from a server on Linux, new
    interpreters elsewhere."""
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


def prepare() -> None:
    """Start the process that others are forked from; it imports while this one goes on."""
    if sys.platform == "linux":
        from multiprocessing import forkserver  # not every system has it

        processes()
        forkserver.ensure_running()
