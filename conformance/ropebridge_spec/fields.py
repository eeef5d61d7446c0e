"""Define what the fields of a dataclass mean, read from its docstring."""

from __future__ import annotations

import dataclasses
import re
from inspect import cleandoc

ENTRY = re.compile(r"(?P<indent> *)(?P<names>\w+(?:, \w+)*): (?P<text>.*)")


def field_meanings(kind: type) -> dict[str, str]:
    """Return field -> what the docstring of a dataclass says of it, in the order of the fields.

    An entry is a line `name: text`, or `name, other: text` for several fields; lines that are
    indented further go on with it.

    Raises:
        ValueError: the docstring says nothing of a field, or speaks of it twice.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    found: dict[str, list[str]] = {}
    current: list[str] = []
    indent = 0
    for line in cleandoc(kind.__doc__ or "").splitlines():
        entry = ENTRY.fullmatch(line)
        own = entry["names"].split(", ") if entry else []
        if entry and set(own) <= set(names):
            current, indent = [entry["text"]], len(entry["indent"])
            for name in own:
                if name in found:
                    raise ValueError(f"the docstring of {kind.__name__} speaks of {name!r} twice")
                found[name] = current
        elif line.strip() and len(line) - len(line.lstrip()) > indent:
            current.append(line.strip())
        else:
            current = []
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"the docstring of {kind.__name__} says nothing of {', '.join(missing)}; each field"
            " needs a line `name: what it is`"
        )
    return {name: " ".join(found[name]) for name in names}
