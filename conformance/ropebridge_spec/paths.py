"""Paths of attributes on a module, as the table of families writes them.

`config.layer_types[layer_idx]=sliding_attention`: names joined by dots, of attributes or of keys;
in brackets the path, from the module again, of what picks an item; after "=" what the value must be
for a condition to hold, otherwise it must be true; "!" before a condition negates it; "?" after a
path allows that it leads nowhere, and gives None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def read_path(module: Any, path: str | None) -> Any:
    """Return the value at a path; None where there is no path.

    Raises:
        AttributeError: the path leads nowhere, and does not end in "?".
    """
    if path is None:
        return None
    value, may_end = module, path.endswith("?")
    for name, index in steps(path.removesuffix("?")):
        value = step(value, name, may_end)
        value = value[read_path(module, index)] if index and value is not None else value
    return value


def step(value: Any, name: str, may_end: bool) -> Any:
    """Return the attribute, or the key, of this name."""
    if isinstance(value, Mapping):
        return value.get(name)
    return getattr(value, name, None) if may_end else getattr(value, name)


def steps(path: str) -> Iterator[tuple[str, str]]:
    """Yield each name of a path, with what stands in brackets after it."""
    depth, start = 0, 0
    for at, letter in enumerate(f"{path}."):
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "." and depth == 0:
            name, _, index = path[start:at].partition("[")
            yield name, index.removesuffix("]")
            start = at + 1


def holds(module: Any, condition: str) -> bool:
    """Return whether a condition holds on a module."""
    if condition.startswith("!"):
        return not holds(module, condition[1:])
    path, equals, wanted = condition.partition("=")
    value = read_path(module, path)
    return str(value) == wanted if equals else bool(value)


def any_holds(module: Any, conditions: tuple[str, ...]) -> bool:
    """Return whether any condition holds; true where there is none."""
    return not conditions or any(holds(module, condition) for condition in conditions)
