"""Hooks that somebody asks for by name: found, checked before anything runs, and held to have fired
(clauses FIRE-3, FIRE-4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from ropebridge.hooks import Direction, HookFunction, HookPoint, refuse_uncallable
from ropebridge_spec import RESERVED, ContractError, HookNeverFired, UnknownHook

NamesFilter = str | Sequence[str] | Callable[[str], bool] | None
Hooks = Sequence[tuple[str | Callable[[str], bool], HookFunction]]


class Request:
    """Hold a hook that somebody asked for, and whether it fired."""

    def __init__(self, name: str, fn: HookFunction, dir: Direction) -> None:
        self.name, self.fn, self.dir = name, fn, dir
        self.fired = False

    def __call__(self, tensor: Tensor, hook: HookPoint) -> Any:
        self.fired = True
        return self.fn(tensor, hook=hook)


def requests(points: Mapping[str, HookPoint], hooks: Hooks, dir: Direction) -> Iterator[Request]:
    """Yield a request for each hook point that each pair selects.

    Raises:
        ContractError: what was given is no list of pairs, or a function cannot be called as a hook.
        UnknownHook: no hook point of that name.
    """
    for names_filter, fn in pairs_of(hooks, dir):
        names = find_names(points, names_filter)
        refuse_uncallable(names[0], fn)
        yield from (Request(name, fn, dir) for name in names)


def find_names(points: Mapping[str, HookPoint], names_filter: NamesFilter) -> list[str]:
    """Return the hook names a filter selects; never none.

    Raises:
        UnknownHook: no hook point of that name.
    """
    if names_filter is None:
        return list(points)
    if callable(names_filter):
        names = [name for name in points if names_filter(name)]
    else:
        several = isinstance(names_filter, Iterable) and not isinstance(names_filter, str)
        names = list(names_filter) if several else [names_filter]  # type: ignore[list-item]
    for name in names:
        if name not in points:
            raise UnknownHook(unknown_hook(name, list(points)))
    if not names:
        raise UnknownHook(
            "the names filter selects no hook point; print(list(bridged.hook_points)) shows"
            " what there is"
        )
    return names


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
