"""Recognising a class that the table does not name: a subclass that keeps its base's forward, or a
copy under another name.

A copy is one whose source, and that of the functions and classes it uses beside it, is the same but
for names.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ropebridge_spec.family import Family
from ropebridge_spec.variant import Variant

Lookup = Callable[[str], ast.AST | None]
"""Gives the definition of a name, where it is a function or class that stands beside the class in
question."""

SUFFIXES = ("TextAttention", "SelfAttention", "Attention", "MLA")
"""What a family's name is followed by in the name of its attention class."""


def known_as(kind: type, families: Mapping[str, Family | Variant]) -> list[str]:
    """Return the names in the table that a class may stand under: a base's whose forward it keeps;
    or those whose source is its own but for names.

    More than one only where copies of one source have different families: nothing in the class then
    tells them apart.
    """
    for base in kind.__mro__:
        if base.__name__ in families and getattr(base, "forward", None) is getattr(
            kind, "forward", None
        ):
            return [base.__name__]
    wanted = source_of(kind)
    twins = [
        name
        for name, family in families.items()
        if wanted and isinstance(family, Family) and source_in(family.source, name) == wanted
    ]
    distinct = {
        repr({key: value for key, value in vars(families[name]).items() if key != "source"}): name
        for name in reversed(twins)
    }
    return sorted(distinct.values())


def source_of(kind: type) -> str:
    """Return the source of a live class, but for names; nothing where it cannot be had."""
    around = vars(sys.modules.get(kind.__module__, sys))

    def look_up(name: str) -> ast.AST | None:
        found = inspect.unwrap(around[name]) if callable(around.get(name)) else None
        home = getattr(found, "__module__", "") or ""
        return (
            definition_of(found)
            if home == kind.__module__ or home.startswith("transformers.models.")
            else None
        )

    return bare(kind.__name__, look_up)


def definition_of(found: Any) -> ast.AST | None:
    """Return the source of a live function or class as a tree; None where it has none."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(found))).body[0]
    except (OSError, TypeError, SyntaxError):
        return None


@lru_cache(maxsize=512)
def source_in(path: str, name: str) -> str:
    """Return the source of a class in a file of the installed transformers, but for names; nothing
    where there is no such class."""
    spec = find_spec("transformers")
    file = Path(spec.origin).parent / path if spec and spec.origin else Path()
    if not file.is_file():
        return ""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    beside = {node.name: node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    return bare(name, beside.get)


def bare(name: str, look_up: Lookup) -> str:
    """Return a class and all it uses, but for docstrings, annotations, decorators, and its family's
    name in other names; nothing where it is not there."""
    stem = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
    dumped: dict[str, str] = {}
    waiting = [name]
    while waiting:
        used = waiting.pop()
        node = look_up(used)
        if node is not None and used not in dumped:
            plain = Plain().visit(node)
            waiting += [inner.id for inner in ast.walk(plain) if isinstance(inner, ast.Name)]
            dumped[used] = ast.dump(plain).replace(stem, "") if stem else ast.dump(plain)
    return "\n".join(sorted(dumped.values()))


class Plain(ast.NodeTransformer):
    """Take away what a copy may change without computing anything else."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Return a node without docstrings, annotations and decorators."""
        for field in ("annotation", "returns"):
            if getattr(node, field, None) is not None:
                setattr(node, field, None)
        if isinstance(node, ast.AnnAssign) and node.value is None:
            return ast.Pass()
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            node.decorator_list = []
            node.body = [
                item
                for item in node.body
                if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
            ] or [ast.Pass()]
        return super().generic_visit(node)
