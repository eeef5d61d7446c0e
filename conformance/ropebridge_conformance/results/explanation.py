"""Define what the contract says of one hook point or clause, for the terminal. Every word comes
from `ropebridge_spec`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ropebridge_spec import (
    CLAUSE_BY_ID,
    CLAUSES,
    HOOK_BY_NAME,
    RESERVED,
    SPEC_VERSION,
    Clause,
    HookSpec,
    UnknownHook,
)
from ropebridge_spec.document import EXISTS

FULL = re.compile(r"(?:\w+\.)*blocks\.\d+\.attn\.(?P<short>\w+)")
"""The full name of a hook in a model; what tells two stacks of blocks apart stands before it."""


def explanation(name: str) -> RenderableType:
    """Return what there is to say of a hook point, by its short or its full name, or of a clause,
    by its id.

    Raises:
        UnknownHook: there is no such hook point and no such clause; the message has the nearest
            names.
    """
    full = FULL.fullmatch(name)
    short = full["short"] if full else name
    if short in HOOK_BY_NAME:
        return of_hook(HOOK_BY_NAME[short])
    if name in CLAUSE_BY_ID:
        return of_clause(CLAUSE_BY_ID[name])
    if short in RESERVED:
        return Text(
            f"{short} is reserved in ropebridge spec {SPEC_VERSION}, and no layer has it yet:"
            f" {RESERVED[short]}"
        )
    raise UnknownHook(refusal(name, short))


def refusal(name: str, short: str) -> str:
    """Return what was given, what is nearest to it, and what there is."""
    known = (*HOOK_BY_NAME, *RESERVED, *CLAUSE_BY_ID)
    near = get_close_matches(short.rsplit(".", 1)[-1], known, n=3, cutoff=0.4)
    return (
        f"there is no hook point {name!r}\n  nearest: {', '.join(near) or 'none'}\n  hook points:"
        f" {', '.join(HOOK_BY_NAME)}\n  a full name is blocks.{{layer}}.attn.{{hook point}}; the id"
        " of a clause (ROT-1) is explained too"
    )


def of_hook(hook: HookSpec) -> RenderableType:
    """Return the stage, value, axes, condition and clauses of a hook point."""
    grid = two_columns()
    for label, value in (
        ("full name", f"blocks.{{layer}}.attn.{hook.name}"),
        ("stage", hook.stage),
        ("holds", hook.meaning),
        ("axes", hook.axes),
        ("exists when", EXISTS[hook.exists]),
    ):
        grid.add_row(label, Text(value))
    for id in (hook.value_clause, hook.axes_clause):
        grid.add_row(f"clause {id}", Group(*sentences(CLAUSE_BY_ID[id])))
    others = [
        clause.id
        for clause in naming(hook)
        if clause.id not in (hook.value_clause, hook.axes_clause)
    ]
    if others:
        grid.add_row("also named in", Text(", ".join(others)))
    return Group(Text(hook.name, style="bold"), grid, cited())


def of_clause(clause: Clause) -> RenderableType:
    """Return the sentence of a clause, its formula, and the hook points it is about."""
    grid = two_columns()
    grid.add_row("says", Group(*sentences(clause)))
    about = [
        hook.name
        for hook in HOOK_BY_NAME.values()
        if clause.id in (hook.value_clause, hook.axes_clause)
    ]
    if about:
        grid.add_row("hook points", Text(", ".join(about)))
    return Group(Text(f"clause {clause.id}", style="bold"), grid, cited())


def two_columns() -> Table:
    """Return labels, and what they label."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    return grid


def sentences(clause: Clause) -> Iterator[Text]:
    """Yield the text of a clause, and each part of its formula on a line of its own."""
    yield Text(clause.text)
    yield from (
        Text(f"  {part}", style="cyan") for part in filter(None, clause.formula.split(";  "))
    )


def naming(hook: HookSpec) -> list[Clause]:
    """Return the clauses whose text has the name of the hook point."""
    word = re.compile(rf"\b{hook.name}\b")
    return [clause for clause in CLAUSES if word.search(clause.text) or word.search(clause.formula)]


def cited() -> Text:
    """Return which contract that was."""
    return Text(f"ropebridge spec {SPEC_VERSION}", style="dim")
