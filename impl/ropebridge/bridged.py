"""`BridgedModel`: run a model whose attention layers are bridged, with hooks and caches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ropebridge import owners
from ropebridge.batching import allow_batching
from ropebridge.bridge import PositionEmbeddingsAttentionBridge
from ropebridge.caching import ActivationCache, Keep, Positions, Recording, keep_once
from ropebridge.explaining import Explanation, explain_layers
from ropebridge.finding import innermost_around
from ropebridge.hooks import Direction, HookFunction, HookHandle, HookPoint, Look
from ropebridge.kernels.buffers import Buffers
from ropebridge.model_arguments import accepted_names, refuse_unnamed
from ropebridge.once import Once
from ropebridge.requests import (
    Hooks,
    NamesFilter,
    Narrowing,
    Wanted,
    find_watches,
    narrow_all,
    one_for_each_name,
    refuse_unfired,
    requests,
)
from ropebridge.takeover import bridge_in_force, give_back, origin_of, replacement
from ropebridge.watch import Watch
from ropebridge_spec import AttachError, ContractError, Numbers, Variant
from ropebridge_spec import Watch as Part


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
        self._memory, self._once = Buffers(), Once()
        variants: dict[Variant, Variant] = {}
        for layer in layers:
            layer.memory = self._memory  # the pattern of one layer in that of the last
            layer.once = self._once  # the tables of all layers
            # layers that compute the same share one: equality is then seen at a glance
            layer.variant = variants.setdefault(layer.variant, layer.variant)

    def __repr__(self) -> str:
        classes = Counter(type(layer.original_component).__name__ for layer in self.layers)
        kinds = ", ".join(f"{count} {name}" for name, count in classes.items())
        points = self.hook_points
        watched = sum(point.watched for point in points.values())
        state = "" if self._in_force else ", detached"
        return (
            f"BridgedModel({type(self.model).__name__}: {kinds}; {len(points)} hook points,"
            f" {watched} watched{state})"
        )

    def __getattr__(self, name: str) -> Any:
        hint = NAMES_ELSEWHERE.get(name)
        raise AttributeError(
            f"{type(self).__name__} has no attribute {name!r}" + (f"; {hint}" if hint else "")
        )

    @property
    def hook_points(self) -> dict[str, HookPoint]:
        """Return full name -> hook point: `blocks.0.attn.hook_q`, ..."""
        return {point.name: point for layer in self.layers for point in layer.hook_points.values()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, with the hooks that are in it.

        Raises:
            ContractError: an argument that the model's forward does not name.
        """
        return self._call(args, kwargs, None)

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
        self._memory.release()
        self._once.release()
        self._in_force = [layer for layer in self._in_force if not give_back(layer)]
        if not any(bridge_in_force(module) for module in self.model.modules()):
            allow_batching(self.model)
        if self._in_force:
            by = sorted({origin_of(replacement(layer.wrapped)) for layer in self._in_force})
            raise AttachError(
                f"the forward of {', '.join(layer.name for layer in self._in_force)} was wrapped"
                f" after attach, by {' and '.join(by)}, which still runs the bridge\n  take the"
                " wrapper away, then call detach() again"
            )

    def add_hook(
        self,
        names_filter: Wanted,
        fn: HookFunction,
        dir: Direction = "fwd",
        *,
        prepend: bool = False,
    ) -> list[HookHandle]:
        """Hook a function until its handles are removed, or the bridge is detached.

        Args:
            names_filter: a full hook name, a predicate of names, or a `Watch` of either.
            fn, dir, prepend: as in `HookPoint.add_hook`.

        Returns:
            a handle for each hook point.

        Raises:
            AttachError, ContractError, UnknownHook: as `hooks`.
        """
        self._refuse_detached()
        points = self.hook_points
        return [
            points[str(watch.name)].add_hook(
                fn,
                dir,
                prepend=prepend,
                heads=watch.heads,
                query=watch.query,
                key=watch.key,
                reduce=watch.reduce if isinstance(watch, Watch) else None,
            )
            for watch in find_watches(points, names_filter)
        ]

    def reset_hooks(self) -> None:
        """Take every hook away, whoever added it; the bridges stay."""
        for point in self.hook_points.values():
            point.remove_hooks()
        self._memory.release()

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        *,
        heads: Numbers = None,
        query: Numbers = None,
        key: Numbers = None,
    ) -> Iterator[BridgedModel]:
        """Keep hooks for the length of a `with` block; whatever happens inside, they are gone after
        it. They fire for what runs in this block, and in no other thread or task.

        Args:
            fwd_hooks: pairs of a full hook name (or a predicate of names, or a `Watch` of either,
                for a part) and `fn(tensor, hook)`.
            bwd_hooks: the same for gradients.
            heads, query, key: give all these hooks a part alone, as in `Watch`, those of hook
                points that have such an axis; `hook.selection` says which (PART-1). Of scores and
                pattern nothing else is then held in memory.

        Raises:
            AttachError: the bridge was detached.
            ContractError: what was given is no list of pairs, no function of (tensor, hook), or
                no part that there is.
            UnknownHook: no hook point of that name; the message lists the nearest.
            HookNeverFired: a hook never fired within the block (FIRE-3).
        """
        self._refuse_detached()
        points = self.hook_points
        asked = [*requests(points, fwd_hooks, "fwd"), *requests(points, bwd_hooks, "bwd")]
        part: Narrowing = {"heads": heads, "query": query, "key": key}
        watches = narrow_all(points, [one.watch for one in asked], part)
        with owners.block() as owner:
            handles = [
                points[one.name].place(one, one.dir, owner, watch=watch, looks=one.looks)
                for one, watch in zip(asked, watches, strict=True)
            ]
            try:
                yield self
            finally:
                for handle in handles:
                    handle.remove()
                self._memory.release()
        refuse_unfired(asked)

    def run_with_hooks(
        self,
        *args: Any,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        heads: Numbers = None,
        query: Numbers = None,
        key: Numbers = None,
        model_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the model once with hooks; the output is the model's. Backward hooks: use `hooks()`
        around the backward pass too.

        Args:
            args, kwargs: what the model's forward names.
            fwd_hooks, bwd_hooks, heads, query, key: as in `hooks`.
            model_kwargs: what it does not name and reads all the same.

        Raises:
            AttachError, ContractError, UnknownHook, HookNeverFired: as `hooks`; ContractError for
                an argument that the model's forward does not name too.
        """
        with self.hooks(fwd_hooks, bwd_hooks, heads=heads, query=query, key=key):
            return self._call(args, kwargs, model_kwargs)

    def run_with_cache(
        self,
        *args: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        pos_slice: Positions = None,
        remove_batch_dim: bool = False,
        heads: Numbers = None,
        query: Numbers = None,
        key: Numbers = None,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        incl_bwd: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ActivationCache]:
        """Run the model once and keep what the hook points held.

        Args:
            args, kwargs: what the model's forward names.
            names_filter: a full hook name, a predicate of names, a `Watch` of either, several of
                those, or None for all.
            device, dtype: where to keep the tensors, and in which floating-point dtype; None leaves
                them as they are.
            pos_slice: which positions to keep; the axis `pos`, or `query`, of what has one. It is
                `query`, but that one number takes the axis away.
            remove_batch_dim: take away the batch axis, of length 1.
            heads, query, key: keep a part alone, as in `Watch`, of what has such an axis. Of scores
                and pattern nothing else is then held in memory.
            fwd_hooks, bwd_hooks: as in `hooks`; the cache holds what they left.
            incl_bwd: run `output.loss.backward()` too (pass labels=), and keep the gradient at each
                hook point that has one, as `{name}_grad`.
            model_kwargs: what the model's forward does not name and reads all the same.

        Returns:
            the model's output, and full name -> tensor, detached from the graph.

        Raises:
            AttachError: the bridge was detached.
            ContractError: an argument that the model's forward does not name; a hook point that
                fired several times in the run: `caching` keeps all; two parts of one; no loss to
                begin the backward pass with.
            UnknownHook: no hook point of that name.
            HookNeverFired: a hook point never fired (FIRE-3).
        """
        cache = ActivationCache()
        keep = Keep(device, dtype, pos_slice, remove_batch_dim)
        looking = Look(keep_once(cache, keep, gradients=incl_bwd))
        if pos_slice is not None and query is not None:
            raise ContractError(
                f"run_with_cache was given pos_slice={pos_slice!r} and query={query!r}, which both"
                " say which positions to keep; give one of them"
            )
        watches = self._to_keep([names_filter], {"heads": heads, "query": query, "key": key})
        with self.hooks([*fwd_hooks, *((watch, looking) for watch in watches)], bwd_hooks):
            output = self._call(args, kwargs, model_kwargs)
            if incl_bwd:
                loss_of(output).backward()
        return output, cache

    @contextmanager
    def caching(
        self,
        names_filter: NamesFilter = None,
        *more: NamesFilter,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        heads: Numbers = None,
        query: Numbers = None,
        key: Numbers = None,
    ) -> Iterator[Recording]:
        """Keep every firing of hook points for the length of a `with` block, whatever runs in it:
        `model.generate`, a trainer, a pipeline, a model of which this one is a part.

        Args:
            names_filter, more: full hook names, predicates of names, a `Watch` of either, several
                of those; None for all.
            device, dtype: where to keep the tensors, and in which floating-point dtype; None leaves
                them as they are.
            heads, query, key: keep a part alone, as in `run_with_cache`; the numbers are those of
                each pass, so -1 is the position that a step of decoding adds.

        Returns:
            A mapping of full name -> the tensors in the order of firing, with `steps(name)`,
            `joined(name)` and `firings`. A step is a forward pass of the module that holds all
            layers; recomputation under gradient checkpointing is no firing of its own.

        Raises:
            AttachError, UnknownHook, HookNeverFired, ContractError: as `hooks`; two parts of one
                hook point.
        """
        part: Narrowing = {"heads": heads, "query": query, "key": key}
        watches = self._to_keep([names_filter, *more], part)
        _, around = innermost_around(self.model, self._paths())
        with owners.block() as owner:
            recording = Recording(Keep(device, dtype), owner)
            counter = around.register_forward_pre_hook(recording.begin_pass)
            try:
                with self.hooks([(watch, Look(recording.look)) for watch in watches]):
                    yield recording
            finally:
                counter.remove()

    def explain(self, pos: int = 1024, *, padding: bool = False) -> Explanation:
        """Return, and where printed say, what each layer would do in a pass as things are now: what
        is watched in it, by which kernel it attends, and why.

        Args:
            pos: positions of the pass; 1 is a step of decoding.
            padding: whether the batch is padded.
        """
        return explain_layers(self.layers, pos, padding)

    def accepts(self, name: str) -> bool:
        """Return whether the model's forward names an argument, or transformers reads it."""
        return name in accepted_names(self.model, self._first_path())

    def _call(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], more: Mapping[str, Any] | None
    ) -> Any:
        """Run the model with what its forward names, and with what was passed on explicitly."""
        refuse_unnamed(self.model, self._first_path(), args, kwargs)
        more = {} if more is None else more
        if not isinstance(more, Mapping):
            raise ContractError(f"model_kwargs is {more!r}; it must map names to values")
        twice = sorted(set(more) & set(kwargs))
        if twice:
            raise ContractError(f"{twice[0]!r} is given twice, by itself and in model_kwargs")
        return self.model(*args, **kwargs, **more)

    def _to_keep(self, names_filters: Sequence[NamesFilter], part: Narrowing) -> list[Part]:
        """Return what a cache keeps, one watch for each hook point that the filters select."""
        points = self.hook_points
        watches = [watch for wanted in names_filters for watch in find_watches(points, wanted)]
        return one_for_each_name(narrow_all(points, watches, part))

    def _first_path(self) -> str:
        """Return the path of the first attention module in the model."""
        first: nn.Module = self.layers[0].wrapped
        found: str = next(path for path, part in self.model.named_modules() if part is first)
        return found

    def _paths(self) -> list[str]:
        """Return the path of each attention module in the model."""
        path_of = {id(module): path for path, module in self.model.named_modules()}
        return [path_of[id(layer.wrapped)] for layer in self.layers]

    def _refuse_detached(self) -> None:
        if len(self._in_force) < len(self.layers) or self.layers[0].hook("hook_in").detached:
            raise AttachError(
                "the bridge was detached, by detach() or at the end of its with block, and its"
                " hooks cannot fire\n  attach again: bridged = attach(model)"
            )


def loss_of(output: Any) -> Tensor:
    """Return the loss that a backward pass begins with."""
    loss = getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        raise ContractError(
            "incl_bwd=True runs the backward pass from output.loss, and the model returned none;"
            " pass labels=input_ids, or keep gradients yourself: with"
            " bridged.hooks(bwd_hooks=[...]): metric(bridged(input_ids)).backward()"
        )
    if not loss.requires_grad:
        raise ContractError(
            "incl_bwd=True runs the backward pass, and no gradient flows to output.loss: leave"
            " torch.no_grad(), and let a weight require a gradient"
        )
    return loss


NAMES_ELSEWHERE = {
    "hook_dict": "bridged.hook_points maps each name to its hook point",
    "mod_dict": "dict(bridged.model.named_modules())",
    "cfg": "the model's configuration is bridged.model.config",
    "config": "the model's configuration is bridged.model.config",
    "generate": "call bridged.model.generate, in bridged.hooks(...) where hooks are wanted",
    "to_tokens": "tokens come from the tokenizer: tokenizer(text, return_tensors='pt').input_ids",
    "to_string": "text comes from the tokenizer: tokenizer.decode(tokens)",
    "to_str_tokens": "tokenizer.convert_ids_to_tokens(tokens)",
    "blocks": "the bridges are bridged.layers; hook points are found by name in hook_points",
    "tokenizer": "a bridged model has none: keep the one you loaded",
    **dict.fromkeys(
        ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"),
        "weights are those of a layer: bridged.layers[0].W_Q, one axis of heads first",
    ),
    "W_U": "the unembedding is bridged.model.get_output_embeddings().weight",
    "W_E": "the embedding is bridged.model.get_input_embeddings().weight",
    "forward": "call it: bridged(input_ids)",
    "parameters": "bridged.model.parameters()",
    "eval": "bridged.model.eval()",
    "train": "bridged.model.train()",
    "to": "bridged.model.to(...)",
}
"""What users of TransformerLens and of torch look for on a model, and where it is."""
