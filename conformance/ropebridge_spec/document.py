"""SPEC.md and the README's hook table, made from the contract; `python -m ropebridge_spec` writes the former."""

from __future__ import annotations

import dataclasses
import hashlib
import json

from ropebridge_spec import bounds
from ropebridge_spec.clauses import CLAUSES
from ropebridge_spec.families import FAMILIES, Family
from ropebridge_spec.hooks import HOOKS, RESERVED
from ropebridge_spec.variant import Norm, Rotary, Variant

SPEC_VERSION = "1.0"
"""Version of the contract. A clause added is a minor step, a clause withdrawn or changed in meaning a major one."""

EXISTS = {
    "always": "always",
    "normed": "the family norms q and k",
    "rotates": "the layer rotates",
    "attn_in": "opted in: `use_attn_in`",
    "split_qkv_input": "opted in: `use_split_qkv_input`",
    "attn_result": "opted in: `use_attn_result`",
}


def spec_hash() -> str:
    """Twelve hexadecimal digits that change when a hook point or a clause does."""
    content = [[dataclasses.asdict(item) for item in table] for table in (HOOKS, CLAUSES)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def hook_table() -> str:
    """The hook points in firing order, as a Markdown table."""
    header = ["stage", "hook point", "axes", "what it holds", "exists when", "clauses"]
    return table(
        header,
        [[h.stage, f"`{h.name}`", h.axes, h.meaning, EXISTS[h.exists], f"{h.value_clause}, {h.axes_clause}"] for h in HOOKS],
    )


def clause_table() -> str:
    """The numbered clauses, as a Markdown table."""
    return table(["clause", "text", "formula"], [[c.id, c.text, f"`{c.formula}`" if c.formula else ""] for c in CLAUSES])


def family_table() -> str:
    """The families this version serves, as a Markdown table."""
    rows = []
    for name, family in FAMILIES.items():
        if isinstance(family, Family):
            rotary = f"{family.rotary.pairing}, {family.rotary.table} tables, {family.rotary.precision}"
            norm = f"{family.norm.kind} over {family.norm.over}" if family.norm else "-"
            extras = [name for name in ("window", "softcap", "sinks") if getattr(family, name)]
            rows.append([f"`{name}`", rotary, norm, ", ".join(extras) or "-", f"`{family.source}`"])
    return table(["attention class", "rotation", "q/k norm", "also", "read from transformers'"], rows)


def unit_table() -> str:
    """The constants of the bounds, as a Markdown table."""
    rows = [[name, f"2^{power(bounds.UNIT[name])}", f"2^{power(bounds.ACCUMULATION[name])}"] for name in bounds.UNIT]
    return table(["dtype", "unit roundoff u", "accumulation a"], rows)


def power(value: float) -> int:
    """The exponent of a power of two."""
    return int(value.hex().partition("p")[2])


def spec_document() -> str:
    """The text of SPEC.md."""
    return SPEC.format(
        version=SPEC_VERSION,
        hash=spec_hash(),
        hooks=hook_table(),
        clauses=clause_table(),
        families=family_table(),
        units=unit_table(),
        reserved=table(["name", "kept for"], [[f"`{name}`", text] for name, text in RESERVED.items()]),
        fields=field_table(Variant) + "\n\n`Norm`\n\n" + field_table(Norm) + "\n\n`Rotary`\n\n" + field_table(Rotary),
        bounds=bound_table(),
    )


def field_table(kind: type) -> str:
    """The fields of a dataclass with the lines of its docstring that explain them, as a Markdown table."""
    text = " ".join((kind.__doc__ or "").split())
    names = [f.name for f in dataclasses.fields(kind)]
    starts = sorted((text.find(f" {name}: "), name) for name in names if text.find(f" {name}: ") >= 0)
    ends = [start for start, _ in starts[1:]] + [len(text)]
    rows = [[f"`{name}`", text[start + len(name) + 3 : end].strip()] for (start, name), end in zip(starts, ends, strict=True)]
    return table(["field", "meaning"], rows)


def bound_table() -> str:
    """The bound functions with their docstrings, as a Markdown table."""
    functions = (bounds.linear, bounds.norm, bounds.rotate, bounds.scores, bounds.softmax, bounds.fused)
    return table(["bound", "what it allows"], [[f"`{f.__name__}`", " ".join((f.__doc__ or "").split())] for f in functions])


SPEC = """\
# ropebridge spec {version}

The contract of hooks on rotary attention. This page is generated from `ropebridge_spec` by `python -m ropebridge_spec`; do not edit it.
Cite a clause as "ropebridge spec {version}, clause ROT-1". Contract hash `{hash}`.

A layer is the composition of the stages below, in this order. Each ends in its hooks: a hook is shown the stage's value, may look at it,
replace it or edit it in place, and the next stage goes on with what the hooks left.

## Hook points, in firing order

The full name in a model is `blocks.{{layer}}.attn.{{hook point}}`. `query` is `pos`; `key` counts cached keys too; a product in parentheses is one
flattened axis; `table_batch` is batch or 1; `d_head_v` is `d_head` unless the family's values are wider or narrower.

{hooks}

## Clauses

{clauses}

## What a layer computes: `Variant`

{fields}

## Families this version serves

{families}

Any other class is refused with `UnsupportedAttention`, which names the class and the way to add it.

## Bounds

Each stage is recomputed in float64 from the values recorded one stage up, and compared under an a-priori rounding bound (`ropebridge_spec.bounds`):
g(n) = n a / (1 - n a).

{units}

{bounds}

## Reserved names

{reserved}
"""
