"""`attach(model)`: a bridge over every attention layer of a live model; `detach()` leaves it
exactly as it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import zip_longest
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ropebridge.bridge import PositionEmbeddingsAttentionBridge
from ropebridge.hooks import Direction, HookFunction, HookPoint, refuse_uncallable
from ropebridge.verify import verify_layers
from ropebridge.versions import warn_if_untested
from ropebridge_spec import (
    FAMILIES,
    LEFT_ALONE,
    RESERVED,
    AttachError,
    ContractError,
    Family,
    HookNeverFired,
    UnknownHook,
    UnsupportedAttention,
    Variant,
)
from ropebridge_spec.paths import holds

NamesFilter = str | Sequence[str] | Callable[[str], bool] | None
Hooks = Sequence[tuple[str | Callable[[str], bool], HookFunction]]


def attach(
    model: nn.Module,
    *,
    verify: bool = True,
    use_attn_in: bool = False,
    use_split_qkv_input: bool = False,
    use_attn_result: bool = False,
    families: Mapping[str, Family | Variant] = FAMILIES,
) -> BridgedModel:
    """Put a bridge over every attention layer of a Hugging Face model that is given position
    embeddings.

    The attention modules stay where they are, with their class, weights and hooks; only their
    `forward` is taken over, each on its own instance, so that `state_dict` keys, `save_pretrained`
    and recorded outputs do not change.

    Args:
        model: a model, or any module that holds rotary attention layers.
        verify: prove each distinct layer against the module it wraps, in float64, before going on.
        use_attn_in, use_split_qkv_input, use_attn_result: opt in to the hook points of clauses
        SPLIT-1 and RES-1.
        families: class name -> `Family` or `Variant`; add to it to serve a class this version does
            not know.

    Returns: The bridged model. `detach()` it, or use it as a context manager. Warns
        (UntestedTransformers) under a transformers newer than was tested.

    Raises:
        UnsupportedAttention: a rotary attention class that no family serves, or whose forward has a
            parameter that is not known.
        AttachError: the model is attached to already, holds no rotary attention, or no numbers to
            verify with (the meta device).
        VerificationError: a layer did not reproduce the module it wraps; the model is left as it
            was.
    """
    warn_if_untested()
    options = {
        "use_attn_in": use_attn_in,
        "use_split_qkv_input": use_split_qkv_input,
        "use_attn_result": use_attn_result,
    }
    found = list(rotary_attention(model, families))
    names = hook_names([(path, layer_number(path, module)) for path, module in found])
    bridges = [
        build(module, path, name, model, options, families)
        for (path, module), name in zip(found, names, strict=True)
    ]
    if not bridges:
        raise AttachError(
            f"{type(model).__name__} holds no attention layer whose forward takes"
            " position_embeddings\n  attach() serves rotary attention: pass the language model, or"
            " the module that holds its layers"
        )
    if verify:
        verify_layers(bridges)
    for bridge in bridges:
        take_over(bridge)
    return BridgedModel(model, bridges)


def get_bridged_model(model: nn.Module) -> BridgedModel:
    """Return the bridges that a model has already: a deep copy of a bridged model, or one out of a
    pickle, brings its own along.

    Raises:
        AttachError: no layer is bridged.
    """
    bridges = [
        bridge for module in model.modules() if (bridge := bridge_in_force(module)) is not None
    ]
    if not bridges:
        raise AttachError(
            f"{type(model).__name__} holds no layer that is attached to; call attach(model)"
        )
    return BridgedModel(model, bridges)


def bridge_in_force(module: nn.Module) -> PositionEmbeddingsAttentionBridge | None:
    """Return the bridge that a module runs in place of its own forward."""
    owner = getattr(vars(module).get("forward"), "__self__", None)
    return owner if isinstance(owner, PositionEmbeddingsAttentionBridge) else None


def rotary_attention(
    model: nn.Module, families: Mapping[str, Family | Variant]
) -> Iterator[tuple[str, nn.Module]]:
    """Yield every attention module that is given rotary tables, or that a family is known of, with
    its path in the model."""
    for path, module in model.named_modules():
        name = type(module).__name__
        given_tables = (
            name.endswith("Attention")
            and "position_embeddings" in inspect.signature(type(module).forward).parameters
        )
        known = any(base.__name__ in families for base in type(module).__mro__)
        entry = families.get(name)
        if isinstance(entry, Family) and entry.only is not None and not holds(module, entry.only):
            continue
        if known or (given_tables and name not in LEFT_ALONE):
            yield path, module


def layer_number(path: str, module: nn.Module) -> int:
    """Return the number of a layer: its own `layer_idx`, or the last number in its path."""
    own: Any = getattr(module, "layer_idx", None)
    numbers = [int(part) for part in path.split(".") if part.isdigit()]
    own = None if own is not None and own < 0 else own  # a module that layers share
    if own is None and not numbers:
        raise UnsupportedAttention(
            f"{path!r} has no layer_idx, so its hooks would have no name; set module.layer_idx to"
            " the number of its block"
        )
    return int(numbers[-1] if own is None else own)


def hook_names(layers: Sequence[tuple[str, int]]) -> list[str]:
    """Return `blocks.{layer}.attn` of each layer; where two would share a name, what tells their
    paths apart stands before it: `encoder.blocks.0.attn`.

    Raises:
        AttachError: the layers of one name cannot be told apart by the part of the model they stand
            in.
    """
    names = [f"blocks.{number}.attn" for _, number in layers]
    if len(set(names)) == len(names):
        return names
    prefixes = distinguishing_prefixes([path for path, _ in layers])
    full = [".".join([*prefix, name]) for prefix, name in zip(prefixes, names, strict=True)]
    twice = sorted({name for name in full if full.count(name) > 1})
    if twice:
        raise AttachError(
            f"several attention layers share the names {twice}; attach to each part of the model"
            " by itself: attach(model.model)"
        )
    return full


def distinguishing_prefixes(paths: Sequence[str]) -> list[tuple[str, ...]]:
    """Return for each path the words before its layer number that are not the same in all paths.

    `model.encoder.layers.0.attn` and `model.decoder.layers.0.attn` give ("encoder",) and
    ("decoder",).
    """
    stacks = [path.split(".")[: last_number(path)] for path in paths]
    differ = [len(set(words)) > 1 for words in zip_longest(*stacks)]
    return [
        tuple(word for word, different in zip(stack, differ, strict=False) if different)
        for stack in stacks
    ]


def last_number(path: str) -> int:
    """Return where in a path its last number stands; its end where it has none."""
    parts = path.split(".")
    return next((at for at in range(len(parts) - 1, -1, -1) if parts[at].isdigit()), len(parts))


def build(
    module: nn.Module,
    path: str,
    name: str,
    model: nn.Module,
    options: Mapping[str, Any],
    families: Mapping[str, Family | Variant],
) -> PositionEmbeddingsAttentionBridge:
    """Return a bridge around one attention module, not yet in force."""
    if bridge_in_force(module) is not None:
        raise AttachError(
            f"{path!r} is attached to already; call detach() on the earlier bridge first\n  a deep"
            " copy, or a model out of a pickle, brought bridges of its own along:"
            " ropebridge.get_bridged_model(model).detach()"
        )
    if "forward" in module.__dict__:
        raise AttachError(
            f"the forward of {path!r} was replaced on the instance (accelerate's dispatch hooks do"
            " that)\n  attach before dispatching, or load the model on one device without"
            " device_map"
        )
    refuse_other_attention(module, path)
    bridge = PositionEmbeddingsAttentionBridge(
        name, getattr(module, "config", None), families=families, **options
    )
    bridge.set_original_component(module)
    rotary = nearest_rotary(model, path)
    if rotary is not None:
        bridge.set_rotary_emb(rotary)
    return bridge


def refuse_other_attention(module: nn.Module, path: str) -> None:
    """Refuse a model that attends by another function than transformers' own eager, sdpa and flex:
    the bridge would compute something else."""
    chosen = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if chosen not in (None, "eager", "sdpa", "flex_attention"):
        raise AttachError(
            f"{path!r} attends by {chosen!r}, and the bridge stands for 'eager', 'sdpa' and"
            " 'flex_attention'; call model.set_attn_implementation('sdpa') first"
        )


def nearest_rotary(model: nn.Module, path: str) -> nn.Module | None:
    """Return the rotary embedding that the closest module around an attention layer holds."""
    parts = path.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        around = model.get_submodule(".".join(parts[:depth]))
        rotary = [
            child
            for name, child in around.named_children()
            if name == "rotary_emb" or type(child).__name__.endswith(ROTARY)
        ]
        if rotary:
            return rotary[0]
    return None


ROTARY = ("RotaryEmbedding", "SinusoidalPositionalEmbedding")
"""How the classes are named that make rotary tables."""


def take_over(bridge: PositionEmbeddingsAttentionBridge) -> None:
    """Let the wrapped module run the bridge. The class stays untouched: only this instance changes
    (law: no patching)."""
    assert bridge.original_component is not None
    bridge.original_component.forward = bridge.forward


def give_back(bridge: PositionEmbeddingsAttentionBridge) -> bool:
    """Let the wrapped module run its own forward again; False where another's lies over the
    bridge's, and nothing can be done."""
    module = bridge.original_component
    if module is None or "forward" not in vars(module):
        return True
    if bridge_in_force(module) is not bridge:
        return False
    del module.forward
    return True


class BridgedModel:
    """Run a model whose attention layers are bridged: hooks, caches, and the way back.

    Attributes:
        model: the model itself; call it, generate with it, train it as before.
        layers: the bridges, in the order in which the model holds them.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[PositionEmbeddingsAttentionBridge]
    ) -> None:
        self.model = model
        self.layers = tuple(layers)
        self._in_force = list(layers)

    @property
    def hook_points(self) -> dict[str, HookPoint]:
        """Return full name -> hook point: `blocks.0.attn.hook_q`, ..."""
        return {point.name: point for layer in self.layers for point in layer.hook_points.values()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, with the hooks that are in it."""
        return self.model(*args, **kwargs)

    def __enter__(self) -> BridgedModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def detach(self) -> None:
        """Take every hook and every bridge away; the model is then as it was. A second call does
        nothing.

        Raises:
            AttachError: the forward of a layer was wrapped after attach. The other layers are as
                they were, and no hook is left.
        """
        for point in self.hook_points.values():
            point.remove_hooks()
        self._in_force = [layer for layer in self._in_force if not give_back(layer)]
        if self._in_force:
            raise AttachError(
                f"the forward of {', '.join(layer.name for layer in self._in_force)} was wrapped"
                " after attach, and what wrapped it still runs the bridge\n  take the wrapper away"
                " (accelerate's: accelerate.hooks.remove_hook_from_submodules(model)), then call"
                " detach() again"
            )

    @contextmanager
    def hooks(self, fwd_hooks: Hooks = (), bwd_hooks: Hooks = ()) -> Iterator[BridgedModel]:
        """Keep hooks for the length of a `with` block; whatever happens inside, they are gone after
        it.

        Args:
            fwd_hooks: pairs of a full hook name (or a predicate of names) and `fn(tensor, hook)`.
            bwd_hooks: the same for gradients.

        Raises:
            AttachError: the bridge was detached.
            ContractError: what was given is no list of pairs.
            UnknownHook: no hook point of that name; the message lists the nearest.
            HookNeverFired: a hook never fired within the block (FIRE-3).
        """
        self._refuse_detached()
        asked = [*self._requests(fwd_hooks, "fwd"), *self._requests(bwd_hooks, "bwd")]
        handles = [
            self.hook_points[request.name].add_hook(request, request.dir) for request in asked
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
        refuse_unfired(asked)

    def run_with_hooks(
        self, *args: Any, fwd_hooks: Hooks = (), bwd_hooks: Hooks = (), **kwargs: Any
    ) -> Any:
        """Run the model once with hooks; the output is the model's. Backward hooks: use `hooks()`
        around the backward pass too.

        Raises:
            AttachError, ContractError, UnknownHook, HookNeverFired: as `hooks`.
        """
        with self.hooks(fwd_hooks, bwd_hooks):
            return self.model(*args, **kwargs)

    def run_with_cache(
        self,
        *args: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Run the model once and keep what the hook points held.

        Args:
            names_filter: a full hook name, several, a predicate of names, or None for all.
            device: where to keep the tensors; None leaves them where they are.

        Returns:
            the model's output, and full name -> tensor, detached from the graph.

        Raises:
            AttachError: the bridge was detached.
            UnknownHook: no hook point of that name.
            HookNeverFired: a hook point never fired (FIRE-3).
        """
        cache: dict[str, Tensor] = {}

        def keep(tensor: Tensor, hook: HookPoint) -> None:
            cache[hook.name] = tensor.detach() if device is None else tensor.detach().to(device)

        with self.hooks([(name, keep) for name in self._names(names_filter)]):
            output = self.model(*args, **kwargs)
        return output, cache

    def _refuse_detached(self) -> None:
        if len(self._in_force) < len(self.layers):
            raise AttachError(
                "the bridge was detached, by detach() or at the end of its with block, and its"
                " hooks cannot fire\n  attach again: bridged = attach(model)"
            )

    def _requests(self, hooks: Hooks, dir: Direction) -> Iterator[Request]:
        for names, fn in pairs_of(hooks, dir):
            yield from (Request(name, fn, dir) for name in self._names(names))

    def _names(self, names_filter: NamesFilter) -> list[str]:
        """Return the hook names a filter selects; never none."""
        points = self.hook_points
        if names_filter is None:
            return list(points)
        if callable(names_filter):
            names = [name for name in points if names_filter(name)]
        else:
            names = [names_filter] if isinstance(names_filter, str) else list(names_filter)
        for name in names:
            if name not in points:
                raise UnknownHook(unknown_hook(name, list(points)))
        if not names:
            raise UnknownHook(
                "the names filter selects no hook point; print(list(bridged.hook_points)) shows"
                " what there is"
            )
        return names


class Request:
    """Hold a hook that somebody asked for, and whether it fired."""

    def __init__(self, name: str, fn: HookFunction, dir: Direction) -> None:
        refuse_uncallable(name, fn)
        self.name, self.fn, self.dir = name, fn, dir
        self.fired = False

    def __call__(self, tensor: Tensor, hook: HookPoint) -> Any:
        self.fired = True
        return self.fn(tensor, hook=hook)


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
            " through all its layers"
        )


def unknown_hook(name: str, points: Sequence[str]) -> str:
    """Return the message for a name that no hook point has: the nearest names, and the opt-in where
    it needs one."""
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
    return (
        f"there is no hook point {name!r}\n{hint}  nearest: {', '.join(near) or 'none'}\n  all:"
        " print(list(bridged.hook_points))"
    )
