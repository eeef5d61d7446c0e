"""Hooks that somebody asks for by name: found, checked before anything runs, and held to have fired
(clauses FIRE-3, FIRE-4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from ropebridge.hooks import Direction, HookFunction, HookPoint, Look
from ropebridge.refusals import refuse_reduced_gradient, refuse_uncallable
from ropebridge.watch import Watch
from ropebridge_spec import (
    NARROWED,
    RESERVED,
    ContractError,
    HookNeverFired,
    Numbers,
    UnknownHook,
    axis_of,
    narrowed,
)
from ropebridge_spec import Watch as Part

Wanted = str | Part | Callable[[str], bool]
"""What names hook points: a full name, a predicate of names, or a part of either."""
NamesFilter = Wanted | Sequence[Wanted] | None
Hooks = Sequence[tuple[Wanted, HookFunction]]
Narrowing = dict[str, Numbers]
"""`heads`, `query`, `key`: as in `Watch`, for all hook points that have such an axis."""


class Request:
    """Hold a hook that somebody asked for, the full name and the part in a watch, whether it is
    known to look alone, and whether it fired."""

    def __init__(self, watch: Part, fn: HookFunction, dir: Direction) -> None:
        self.watch, self.fn, self.dir = watch, fn, dir
        self.name = str(watch.name)
        self.looks = isinstance(fn, Look)
        self.fired = False

    def __call__(self, tensor: Tensor, hook: HookPoint) -> Any:
        self.fired = True
        return self.fn(tensor, hook=hook)


def requests(points: Mapping[str, HookPoint], hooks: Hooks, dir: Direction) -> Iterator[Request]:
    """Yield a request for each hook point that each pair selects.

    Raises:
        ContractError: what was given is no list of pairs, a function cannot be called as a hook, or
            a hook point has no such part.
        UnknownHook: no hook point of that name.
    """
    for wanted, fn in pairs_of(hooks, dir):
        watches = find_watches(points, wanted)
        refuse_uncallable(str(watches[0].name), fn)
        refuse_reduced_gradient(watches[0], dir)
        yield from (Request(watch, fn, dir) for watch in watches)


def find_watches(points: Mapping[str, HookPoint], names_filter: NamesFilter) -> list[Part]:
    """Return a watch for each hook point that a filter selects, of its full name; never none.

    Raises:
        ContractError: a hook point has no such part.
        UnknownHook: no hook point of that name.
    """
    watches = []
    for one in several_of(names_filter):
        part = one if isinstance(one, Part) else Watch(one)
        for name in find_names(points, part.name):
            part.refuse_other_axes(points[name].spec.axes, name)
            watches.append(replace(part, name=name))
    if not watches:
        raise UnknownHook(NOTHING_SELECTED)
    return watches


def narrow_all(
    points: Mapping[str, HookPoint], watches: Sequence[Part], narrowing: Narrowing
) -> list[Part]:
    """Return the watches, each narrowed where its hook point has such an axis, but for what it
    narrows itself.

    Raises:
        ContractError: no hook point of them has it, or there can be no such part.
    """
    for way, numbers in narrowing.items():
        if numbers is None:
            continue
        having = [axis_of(way, points[str(watch.name)].spec.axes) is not None for watch in watches]
        if not any(having):
            raise ContractError(
                f"{way}={numbers!r} narrows nothing: no hook point that is asked for has one of the"
                f" axes {', '.join(NARROWED[way])} (clause PART-1)"
            )
        watches = [
            narrowed(watch, **{way: numbers}) if has else watch
            for watch, has in zip(watches, having, strict=True)
        ]
    return list(watches)


def one_for_each_name(watches: Sequence[Part]) -> list[Part]:
    """Return the watches without those that are there twice.

    Raises:
        ContractError: two ask for different parts of one hook point, which a cache cannot tell
            apart.
    """
    kept: dict[str, Part] = {}
    for watch in watches:
        if kept.setdefault(str(watch.name), watch) != watch:
            raise ContractError(
                f"two parts of {watch.name!r} are to be kept, and a cache keeps one tensor for each"
                " name\n  run for each of them, or keep them by hooks of your own: with"
                " bridged.hooks([(Watch(name, heads=0), fn), ...])"
            )
    return list(kept.values())


def several_of(names_filter: NamesFilter) -> list[Wanted | None]:
    """Return a filter as a list: None stands for all hook points."""
    if names_filter is None or isinstance(names_filter, (str, Part)) or callable(names_filter):
        return [names_filter]
    return list(names_filter) if isinstance(names_filter, Iterable) else [names_filter]


def find_names(
    points: Mapping[str, HookPoint], names_filter: str | Callable[[str], bool] | None
) -> list[str]:
    """Return the hook names a filter selects; never none.

    Raises:
        UnknownHook: no hook point of that name.
    """
    if names_filter is None:
        return list(points)
    if not callable(names_filter):
        if names_filter not in points:
            raise UnknownHook(unknown_hook(names_filter, list(points)))
        return [names_filter]
    names = [name for name in points if names_filter(name)]
    if not names:
        raise UnknownHook(NOTHING_SELECTED)
    return names


NOTHING_SELECTED = (
    "the names filter selects no hook point; print(list(bridged.hook_points)) shows what there is"
)


def pairs_of(hooks: Any, dir: Direction) -> list[tuple[Any, HookFunction]]:
    """Return the hooks that were given, each a pair; one pair without its list is refused
    (FIRE-4)."""
    pairs = list(hooks) if isinstance(hooks, Iterable) else [hooks]
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ContractError(
                f"{dir}_hooks was given {pair!r} for a pair (name, fn); clause FIRE-4 requires a"
                " function fn(tensor, hook) with the name of its place\n  pass a list of pairs,"
                f" for one hook too: {dir}_hooks=[('blocks.0.attn.hook_z', fn)]"
            )
    return pairs


def refuse_unfired(asked: Sequence[Request]) -> None:
    """Refuse a run in which a requested hook never fired (FIRE-3)."""
    silent = [request.name for request in asked if not request.fired]
    if silent:
        raise HookNeverFired(
            f"{len(silent)} of {len(asked)} requested hooks never fired:"
            f" {', '.join(silent[:5])}{', ...' if len(silent) > 5 else ''}\n  clause FIRE-3: run"
            " the model (and for backward hooks the backward pass) while the hooks are in place,"
            " through all its layers, and in the thread that set them"
        )


def unknown_hook(name: str, points: Sequence[str]) -> str:
    """Return the message for a name that no hook point has: the nearest names, and the opt-in where
    it needs one."""
    if not isinstance(name, str):
        return (
            f"{name!r} is no name of a hook point, which is a string: blocks.0.attn.hook_z\n  all:"
            " print(list(bridged.hook_points))"
        )
    ending = [point for point in points if point.endswith(f".{name}")]
    near = ending[:3] or get_close_matches(name, points, n=3, cutoff=0.5)
    short = name.rsplit(".", 1)[-1]
    opt_in = {
        "hook_result": "use_attn_result",
        "hook_attn_in": "use_attn_in",
        **{f"hook_{role}_input": "use_split_qkv_input" for role in "qkv"},
    }.get(short)
    hint = f"  it exists on request: attach(model, {opt_in}=True)\n" if opt_in else ""
    hint += (
        f"  a name is full; for every layer: lambda name: name.endswith({f'.{name}'!r})\n"
        if ending
        else ""
    )
    hint += (
        f"  the name is reserved ({RESERVED[short]}), and no family this version serves has it\n"
        if short in RESERVED
        else ""
    )
    hint += elsewhere(short)
    return (
        f"there is no hook point {name!r}\n{hint}  nearest: {', '.join(near) or 'none'}\n  all:"
        " print(list(bridged.hook_points))"
    )


OUTSIDE = ("hook_resid_", "hook_mlp_", "hook_embed", "hook_pos_embed", "hook_normalized")
"""How the names begin that TransformerLens gives to what lies outside of attention."""


def elsewhere(short: str) -> str:
    """Return what to do for a hook of TransformerLens that lies outside of attention; nothing for
    other names."""
    if short == "hook_attn_out":
        return "  what attention puts out is hook_out\n"
    if not short.startswith(OUTSIDE) and short not in ("hook_pre", "hook_post", "hook_scale"):
        return ""
    return (
        "  only attention has hook points here; for the residual stream, MLPs and norms use"
        " torch's own hooks, which attach leaves alone:"
        " model.model.layers[0].register_forward_pre_hook(fn)\n"
    )
