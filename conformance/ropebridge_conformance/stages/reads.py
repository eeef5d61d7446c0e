"""Which recorded values an expectation is made of, found by watching which are read.

An edit at one hook point leaves most stages of a layer with the very inputs that they had without
it. What they should hold is then known already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor

from ropebridge_conformance.subjects.answers import Values

T = TypeVar("T")


class ReadValues(Values):
    """Hold what each hook point held, by name, and the names that were read.

    read: the names read since `noting` began.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.read: set[str] = set()

    def __getitem__(self, hook: str) -> Tensor:
        self.read.add(hook)
        return super().__getitem__(hook)

    def get(self, hook: str, default: Any = None) -> Any:
        """Return the value of a hook point that fired, else the default."""
        return self[hook] if hook in self else default  # noqa: SIM401 (this is get)

    @contextmanager
    def noting(self) -> Iterator[set[str]]:
        """Give the set of names that are read within the block; who notes outside sees them too."""
        outside, inside = self.read, set[str]()
        self.read = inside
        try:
            yield inside
        finally:
            outside.update(inside)
            self.read = outside


def remembered(work_out: Callable[[Any], T]) -> property:
    """Make a property of an object with `values: ReadValues` and a dict `memory`, worked out once.

    Whoever asks for it counts as a reader of the values that it was made of, each time.
    """

    def value_of(self: Any) -> T:
        if work_out.__name__ not in self.memory:
            with self.values.noting() as read:
                value = work_out(self)
            self.memory[work_out.__name__] = (value, read)
        value, read = self.memory[work_out.__name__]
        self.values.read.update(read)
        return value

    return property(value_of, doc=work_out.__doc__)
