"""Whose a hook is: it fires for the thread that added it, or in the `with` block that holds it, and
never in a run of anybody else.

A block belongs to a context (`contextvars`): two tasks of one event loop do not see each other's,
and what `asyncio.to_thread` runs sees that of its caller. Nothing is held here but who is there:
hooks lie in their hook points.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Owner:
    """Stand for one thread, or one `with` block, to which hooks belong.

    A deep copy is the same owner; out of a pickle it is the thread that reads it.

    Attributes:
        thread: whether it is a thread.
    """

    def __init__(self, *, thread: bool) -> None:
        self.thread = thread

    def __deepcopy__(self, memo: object) -> Owner:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return this_thread, ()


class Here(threading.local):
    """Hold what is known of the thread that asks: the owner that stands for it, and those for whom
    it recomputes."""

    def __init__(self) -> None:
        self.owner = Owner(thread=True)
        self.recomputes_for: tuple[Owner, ...] = ()


HERE = Here()
BLOCKS: ContextVar[tuple[Owner, ...]] = ContextVar("ropebridge_blocks", default=())


def this_thread() -> Owner:
    """Return the owner that stands for the running thread."""
    return HERE.owner


def present() -> tuple[Owner, ...]:
    """Return whose hooks fire now: the thread's, those of the blocks it is in, and in a
    recomputation those of the pass that it repeats."""
    return (HERE.owner, *BLOCKS.get(), *HERE.recomputes_for)


def recompute_for(owners: tuple[Owner, ...]) -> None:
    """Let hooks of these owners fire too in the running thread, until this is said again: autograd
    may recompute in a thread of its own."""
    HERE.recomputes_for = owners


@contextmanager
def block() -> Iterator[Owner]:
    """Be in a block of one's own: hooks that belong to it fire in this context alone."""
    owner = Owner(thread=False)
    BLOCKS.set((*BLOCKS.get(), owner))
    try:
        yield owner
    finally:
        BLOCKS.set(tuple(other for other in BLOCKS.get() if other is not owner))
