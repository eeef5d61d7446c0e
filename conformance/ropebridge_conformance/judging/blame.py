"""Blame: which stages are wrong before anybody edits anything, and which of those only follow an
earlier one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ropebridge_conformance.judging.compare import fits
from ropebridge_conformance.stages.context import Context, expect
from ropebridge_conformance.subjects.traces import Trace

STAGE_CHECK = "a_stage_gives_the_value_of_its_clause"
"""The check of one stage's values."""
OF_ONE_STAGE = (
    "hooks_fire_once_in_contract_order",
    "a_hook_watched_alone_fires_once",
    "a_hook_has_the_axes_of_the_contract",
)
"""Checks whose failures are roots: they look at one hook point, or at which of them fire."""


def broken_stages(traces: Sequence[Trace], contexts: Sequence[Context]) -> dict[str, str]:
    """Return hook point -> the hook point whose fault it follows, itself where it is the root; of
    every stage that did not fire, or is not what the reference makes of the values before it, in
    calls that nobody edited.

    A hook that shows something wrong makes the stages wrong that are judged by what it showed.
    """
    roots: dict[str, str] = {}
    for hook in contexts[0].hooks:
        if all(is_right(hook, t, c) for t, c in zip(traces, contexts, strict=True)):
            continue
        read = set.union(*(context.reads.get(hook, set()) for context in contexts))
        earlier = [name for name in contexts[0].hooks if name in read and name in roots]
        roots[hook] = roots[earlier[0]] if earlier else hook
    return roots


def is_right(hook: str, trace: Trace, context: Context) -> bool:
    """Return whether a stage of a recorded call is what the reference makes of the values before
    it."""
    if hook not in trace.values:
        return False
    expected = expect(hook, context)
    _ = expected.bound  # whatever it is made of has been read
    return fits(trace.values[hook], expected)


def followed(named: str | None, roots: Mapping[str, str], order: Sequence[str]) -> str | None:
    """Return the hook point whose fault a failure follows; None where it is a cause of its own.

    A failure that names no stage, or one that is wrong without any edit or comes after one that is,
    follows the first of those; one that names an earlier stage does not.

    Args:
        named: the hook point that the failure names, or None.
        roots: hook point -> root, of the stages that are wrong in the clean run (`broken_stages`).
        order: the hook points of the layer, in contract order.
    """
    if not roots:
        return None
    if named is not None and named in roots:
        return roots[named]
    first = next(name for name in order if name in roots)
    if named is None or named not in order:
        return roots[first]
    return roots[first] if order.index(named) > order.index(first) else None
