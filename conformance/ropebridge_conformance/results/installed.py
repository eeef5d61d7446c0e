"""Rotary attention classes of the installed transformers, read from its source without importing a
model."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ropebridge_spec import FAMILIES, LEFT_ALONE

TABLES = "position_embeddings"
ROTARY = re.compile(r"rotary|\bcos\b")
"""The argument, and what the class does with it, that make an attention class one of ours:
detectors add tables of another kind."""

SIGNS: Mapping[str, str] = {
    "vision": "a vision tower: bidirectional, over patches",
    "image": "a vision tower: bidirectional, over patches",
    "audio": "an audio tower: bidirectional, over frames",
    "speech": "an audio tower: bidirectional, over frames",
    "exaone4_5_attention": "no model of transformers is built with it",
    "mistrallarge4": "latents that layers share, and each brings up by itself",
    "compress": "a learned compressor makes keys beside its own",
    "experts.map": "experts in place of a query projection",
    "self.sqk": "learned scales on the rotated query and on the gate, and norms of unit length",
    "qkv_proj(hidden_states, past": "a convolution over earlier positions before its heads",
    "key_value_states": "cross-attention",
    "encoder_hidden_states": "cross-attention",
    "qkv": "query, key and value fused in a projection of another form",
    "is_causal = False": "a bidirectional tower",
}
"""What stands in a class's file name, or in its source, and so keeps it from the table; the first
that is found counts."""


@dataclass(frozen=True)
class Found:
    """Hold an attention class whose forward is given rotary tables.

    file: below transformers' own folder. fingerprint: changes when the source of the class does,
        comments and layout aside.
    """

    name: str
    file: str
    source: str
    fingerprint: str

    @property
    def status(self) -> str:
        """Return "served", "left alone" or "refused"."""
        if self.name in FAMILIES:
            return "served"
        return "left alone" if self.name in LEFT_ALONE else "refused"

    @property
    def reason(self) -> str:
        """Return why a class that is refused is."""
        if self.status != "refused":
            return ""
        head = f"{self.name} {self.file}".lower()
        signs = (why for sign, why in SIGNS.items() if sign in head or sign in self.source)
        return next(signs, "not described yet")


@cache
def installed_classes() -> tuple[Found, ...]:
    """Return every attention class of the installed transformers whose forward takes rotary tables,
    by name; its files are read once."""
    spec = find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    found = [
        found
        for path in sorted(root.glob("models/*/modeling_*.py"))
        for found in classes_of(path, root)
    ]
    return tuple(sorted(found, key=lambda entry: (entry.name, entry.file)))


def classes_of(path: Path, root: Path) -> Iterator[Found]:
    """Yield the rotary attention classes of one file."""
    text = path.read_text(encoding="utf-8")
    if TABLES not in text and not any(name in text for name in FAMILIES):
        return
    lines = text.splitlines()
    for node in (
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef) and ("Attention" in node.name or node.name in FAMILIES)
    ):
        source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        if ROTARY.search(source) and (takes_tables(node) or node.name in FAMILIES):
            digest = hashlib.sha256(ast.unparse(without_docstrings(node)).encode()).hexdigest()[:12]
            yield Found(node.name, str(path.relative_to(root)), source, digest)


def takes_tables(node: ast.ClassDef) -> bool:
    """Return whether the forward of a class has an argument for rotary tables."""
    forwards = (
        item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "forward"
    )
    return any(
        argument.arg == TABLES
        for forward in forwards
        for argument in (*forward.args.args, *forward.args.kwonlyargs)
    )


def without_docstrings(node: ast.ClassDef) -> ast.ClassDef:
    """Return the class, its bare strings left out."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.ClassDef | ast.FunctionDef):
            inner.body = [
                item
                for item in inner.body
                if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
            ]
    return node
