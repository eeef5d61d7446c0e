"""Recognising a class that the table does not name: a subclass that keeps its base's forward, or a
copy under another name.

A copy is one whose source, and that of the functions and classes it uses beside it, is the same but
for names.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
import tokenize
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
    """Return the names in the table that a class may stand under: its own, or a base's whose
    methods it keeps, where that class is what transformers wrote; or those whose source is its own
    but for names.

    More than one only where copies of one source have different families: nothing in the class then
    tells them apart.
    """
    for base in kind.__mro__:
        name = base.__name__
        if name in families and keeps_methods(kind, base) and is_as_told(base, families[name]):
            return [name]
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


def keeps_methods(kind: type, base: type) -> bool:
    """Return whether a class computes by the methods of a base: those of its own can only make
    it."""
    return all(
        getattr(kind, name) is method
        for name, method in vars(base).items()
        if inspect.isfunction(method) and name != "__init__"
    )


def is_as_told(kind: type, family: Family | Variant) -> bool:
    """Return whether a class is the one that its family speaks of: it, and what it calls, have the
    source that stands in the family's file of transformers. A family without a file, and one whose
    file cannot be read, leave it to the proof."""
    if not isinstance(family, Family) or not file_of(family.source).is_file():
        return True
    return live_source(kind, identities(kind)) == source_in(family.source, kind.__name__)


def source_of(kind: type) -> str:
    """Return the source of a live class, but for names; nothing where it cannot be had."""
    return live_source(kind, identities(kind))


@lru_cache(maxsize=512)
def live_source(kind: type, functions: tuple[object, ...]) -> str:
    """Return the source of a class and of what it calls, as long as the functions around it are
    these."""
    around = vars(sys.modules.get(kind.__module__, sys))

    def look_up(name: str) -> ast.AST | None:
        found = kind if name == kind.__name__ else around.get(name)
        home = getattr(found, "__module__", "") or ""
        ours = home == kind.__module__ or home.startswith("transformers.models.")
        return definition_of(found) if callable(found) and ours else None

    return bare(kind.__name__, look_up)


def identities(kind: type) -> tuple[object, ...]:
    """Return the functions of a class, and the functions and classes, with their methods, beside it
    in its file: whatever of them is replaced, is another."""
    beside = vars(sys.modules.get(kind.__module__, sys)).values()
    classes = [kind, *(found for found in beside if isinstance(found, type))]
    functions = [found for found in beside if inspect.isfunction(found)]
    for each in classes:
        functions += [method for method in vars(each).values() if inspect.isfunction(method)]
    return (*classes, *functions)


def definition_of(found: Any) -> ast.AST | None:
    """Return the source of a live function or class as a tree, a class with the methods that it has
    now; None where it has none."""
    if not isinstance(found, type):
        return definition_of_function(found)
    node = parse_source(found)
    if isinstance(node, ast.ClassDef):
        node.body = [
            live_method(found, item) if isinstance(item, ast.FunctionDef) else item
            for item in node.body
        ]
    return node


def live_method(kind: type, written: ast.FunctionDef) -> ast.stmt:
    """Return a method of a class as it is now, whatever the class's source says; nothing to compute
    where its source cannot be had."""
    method = vars(kind).get(written.name)
    function = getattr(method, "__func__", getattr(method, "fget", method))
    node = definition_of_function(function)
    if not isinstance(node, ast.FunctionDef):
        return ast.Pass()
    node.name = written.name
    return node


def definition_of_function(function: Any) -> ast.AST | None:
    """Return the source of a live function, under the decorators of transformers and of Python, as
    a tree."""
    while hasattr(function, "__wrapped__") and is_decorators(function):
        function = function.__wrapped__
    return parse_source(getattr(function, "__code__", function))


def is_decorators(function: Any) -> bool:
    """Return whether a wrapper is what transformers, torch or Python put around a function; anybody
    else's is what a call would run."""
    file = Path(getattr(getattr(function, "__code__", None), "co_filename", ""))
    known = [folder_of(package) for package in ("transformers", "torch")]
    return any(folder in file.parents for folder in known) or str(file) == functools.__file__


def parse_source(found: Any) -> ast.AST | None:
    """Return the source of an object as a tree; None where it has none."""
    try:
        source = source_of_class(found) if isinstance(found, type) else inspect.getsource(found)
        return ast.parse(textwrap.dedent(source)).body[0]
    except (OSError, TypeError, SyntaxError):
        return None


def source_of_class(kind: type) -> str:
    """Return what `inspect.getsource` does, which reads the whole file for each class; this reads a
    file once for all that stand at its top."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    written = definitions(file) if file.endswith(".py") else {}
    return written.get(kind.__qualname__) or inspect.getsource(kind)


def definitions(file: str) -> Mapping[str, str]:
    """Return the source of each class and function that stands at the top of a file, as the file is
    now; nothing where there is no such file."""
    path = Path(file)
    return definitions_at(path, path.stat().st_mtime_ns) if path.is_file() else {}


@lru_cache(maxsize=32)
def definitions_at(path: Path, changed: int) -> Mapping[str, str]:
    """Return the source of each class and function of a file that was changed at this time."""
    with tokenize.open(path) as file:  # in the encoding that the file says it has
        text = file.read()
    lines = text.split("\n")  # as ast counts them: a form feed ends no line
    return {
        node.name: "\n".join(lines[node.lineno - 1 : node.end_lineno])
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }


def file_of(path: str) -> Path:
    """Return a file of the installed transformers; one that is not there where nothing is."""
    return folder_of("transformers") / path


@lru_cache(maxsize=2)
def folder_of(package: str) -> Path:
    """Return the folder of an installed package; one that is not there where it is not
    installed."""
    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else Path("nowhere")


@lru_cache(maxsize=512)
def source_in(path: str, name: str) -> str:
    """Return the source of a class in a file of the installed transformers, but for names; nothing
    where there is no such class."""
    written = definitions(str(file_of(path)))

    def look_up(name: str) -> ast.AST | None:
        return ast.parse(written[name]).body[0] if name in written else None

    return bare(name, look_up)


def bare(name: str, look_up: Lookup) -> str:
    """Return a class and all it uses, but for docstrings, annotations, decorators, and its family's
    name in other names; nothing where it is not there."""
    stem = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
    dumped: list[str] = []
    met, waiting = {name}, [name]
    while waiting:
        node = look_up(waiting.pop())
        if node is not None:
            plain = Plain().visit(node)
            used = {inner.id for inner in ast.walk(plain) if isinstance(inner, ast.Name)} - met
            met |= used
            waiting += used
            dumped.append(ast.dump(plain).replace(stem, "") if stem else ast.dump(plain))
    return "\n".join(sorted(dumped))


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
