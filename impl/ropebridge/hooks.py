"""`HookPoint`: a named place in the forward pass where functions may look at a tensor, replace it,
or edit it in place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from ropebridge import compiled
from ropebridge.checkpointing import Edits, recomputing
from ropebridge.owners import Owner, present, this_thread
from ropebridge.parts import Index, index_of, read_part, write_part
from ropebridge.readable import under_transform, unreadable, version
from ropebridge.reductions import Reduced, Reduction, reduce_whole
from ropebridge.refusals import refuse_reduced_gradient, refuse_uncallable, remedy
from ropebridge.watch import Watch
from ropebridge_spec import (
    AttachError,
    ContractError,
    HookNeverFired,
    HookSpec,
    Numbers,
    Selection,
    axis_names,
)
from ropebridge_spec import Watch as Part

HookFunction = Callable[..., Any]
Direction = Literal["fwd", "bwd"]


@dataclass(frozen=True, eq=False)
class Hook:
    """Hold a function that was hooked, with its hook point bound, whose it is, what it is to be
    given, a part or a reduction, None for the whole, and whether it is known to look alone."""

    fn: HookFunction
    owner: Owner
    watch: Part | None = None
    looks: bool = False

    @property
    def reduce(self) -> Reduction | None:
        """Return the reduction that it is to be given; None for a part or the whole."""
        return self.watch.reduce if isinstance(self.watch, Watch) else None


class Look:
    """Wrap a function that is known to look alone: a cache that keeps what it is shown."""

    def __init__(self, fn: HookFunction) -> None:
        self.fn = fn

    def __call__(self, tensor: Any, hook: Any) -> None:
        self.fn(tensor, hook)


class Notes(threading.local):
    """Hold what hooks of one point keep between their calls, for each thread; a copy holds
    nothing."""

    def __init__(self) -> None:
        self.mine: dict[Any, Any] = {}

    def __reduce__(self) -> tuple[type[Notes], tuple[()]]:
        return Notes, ()


class PartOfHookPoint:
    """Stand for a hook point where a hook is given a part of what it holds, or a reduction.

    It has the attributes of the hook point; `selection` says which part that is (PART-1), and
    `spec` has the axes of what is given.
    """

    def __init__(self, point: HookPoint, selection: Selection, axes: str) -> None:
        self.point, self.selection = point, selection
        self.spec = replace(point.spec, axes=axes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.point, name)


class HookHandle:
    """Take the hook that `add_hook` added away again, by `remove()` or at the end of a `with`
    block."""

    def __init__(self, hooks: list[Hook], hook: Hook) -> None:
        self._hooks, self._hook = hooks, hook

    def remove(self) -> None:
        """Take the hook away; a second call does nothing."""
        with suppress(ValueError):  # one call, that no other thread can come between
            self._hooks.remove(self._hook)

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


class HookPoint(nn.Module):
    """Show one hook point of one layer to its hooks.

    It keeps its own list of functions: torch's forward hooks, added after `torch.compile`, silently
    never fire. A hook belongs to the thread that added it, or to the `hooks()` block that holds it,
    and fires in no run of another; a compiled graph that takes in the code of hooks, because a
    gradient flows through it, alone does not tell threads from each other.

    Attributes:
        name: the full name, `blocks.{layer}.attn.hook_pattern`.
        spec: the contract's entry for this hook point.
        selection: None: a hook is given the whole; a part has another (`PartOfHookPoint`).
        detached: whether its bridge was taken off its model, so that nothing can fire here.
    """

    def __init__(self, spec: HookSpec, name: str, edits: Edits | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.name = name
        self._edits = edits if edits is not None else Edits()
        self._fwd: list[Hook] = []
        self._bwd: list[Hook] = []
        self._notes = Notes()
        self.selection: Selection | None = None
        self.detached = False
        self._number = compiled.register(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._number = compiled.register(self)  # a copy is another point

    if TYPE_CHECKING:

        def __call__(
            self, tensor: Tensor, *, fresh: bool = False
        ) -> Tensor: ...  # nn.Module's own gives Any

    def layer(self) -> int:
        """Return the number of the layer: 3 at `blocks.3.attn.hook_pattern`.

        Raises:
            ContractError: the name says no number.
        """
        parts = self.name.split(".")
        if "blocks" not in parts[:-1] or not parts[parts.index("blocks") + 1].isdigit():
            raise ContractError(
                f"hook {self.name!r} has no layer number; a full name is blocks.3.attn.hook_q"
            )
        return int(parts[parts.index("blocks") + 1])

    @property
    def ctx(self) -> dict[Any, Any]:
        """Return a dict in which hooks of this point keep what they like between their calls, as in
        TransformerLens; each thread has its own, and `remove_hooks` empties it."""
        return self._notes.mine

    @property
    def watched(self) -> bool:
        """Return whether anything is hooked here that concerns the running thread: what nobody
        watches need not be made."""
        if not self._fwd and not self._bwd:
            return False
        return torch.compiler.is_compiling() or bool(self._mine(self._fwd) or self._mine(self._bwd))

    @property
    def watched_whole(self) -> bool:
        """Return whether a hook that concerns the running thread is given all that this point
        holds, or a gradient there."""
        if torch.compiler.is_compiling():
            return self.watched  # parts are then made of the whole
        return self.watched and (
            bool(self._mine(self._bwd)) or any(not hook.watch for hook in self._mine(self._fwd))
        )

    @property
    def looked_at(self) -> bool:
        """Return whether the hooks that concern the running thread are known to look alone: what
        follows need not wait for them."""
        looking = all(hook.looks for hook in self._mine(self._fwd))
        return looking and not self._mine(self._bwd)

    @property
    def parts(self) -> list[Hook]:
        """Return the hooks that concern the running thread and are given a part."""
        return [hook for hook in self._mine(self._fwd) if hook.watch and not hook.reduce]

    @property
    def reductions(self) -> list[Hook]:
        """Return the hooks that concern the running thread and are given a reduction."""
        return [hook for hook in self._mine(self._fwd) if hook.reduce]

    def _mine(self, hooks: list[Hook]) -> list[Hook]:
        """Return the hooks that fire for whoever runs the layer now.

        Raises:
            ContractError: `add_hook` put one here in another thread; whoever did may wait for it to
                fire.
        """
        if torch.compiler.is_compiling():
            return list(hooks)
        here, hooks = present(), list(hooks)  # other threads may add and remove theirs meanwhile
        mine = [hook for hook in hooks if hook.owner in here]
        if any(hook.owner.thread and hook.owner not in here for hook in hooks):
            raise ContractError(
                f"hook {self.name!r} was added in another thread than the one that runs the layer;"
                " a hook fires in the thread that added it\n  add it in the thread that runs the"
                " model, or hold it there: with bridged.hooks(fwd_hooks=[...]):; remove it:"
                " hook_point.remove_hooks()"
            )
        return mine

    @property
    def recomputing(self) -> bool:
        """Return whether this firing repeats one already seen: gradient checkpointing recomputes in
        the backward pass (FIRE-2)."""
        return recomputing()

    def add_hook(
        self,
        fn: HookFunction,
        dir: Direction = "fwd",
        *,
        prepend: bool = False,
        heads: Numbers = None,
        query: Numbers = None,
        key: Numbers = None,
        reduce: Reduction | None = None,
    ) -> HookHandle:
        """Hook a function here (clause FIRE-4).

        Args:
            fn: called as `fn(tensor, hook=self)`; with dir "bwd" it is given the gradient. Returns
                None to look, or a tensor of the same shape, dtype and device to replace what it was
                given. It may edit in place.
            dir: "fwd" or "bwd".
            prepend: call it before the hooks that are already there.
            heads, query, key, reduce: narrow what it is given, or reduce it, as in `Watch`
                (PART-1).

        Raises:
            AttachError: the bridge was taken off its model.
            ContractError: fn is not callable so, dir is neither, or there is no such part.
        """
        refuse_uncallable(self.name, fn)
        if self.detached:
            raise AttachError(
                f"hook {self.name!r} cannot fire: its bridge was detached from the model\n  attach"
                " again: bridged = attach(model)"
            )
        if dir not in ("fwd", "bwd"):
            raise ContractError(
                f"hook {self.name!r} was given dir={dir!r}; it must be 'fwd' or 'bwd'"
            )
        watch = Watch(self.name, heads, query, key, reduce)
        watch.refuse_other_axes(self.spec.axes, self.name)
        refuse_reduced_gradient(watch, dir)
        return self.place(fn, dir, this_thread(), prepend=prepend, watch=watch)

    def place(
        self,
        fn: HookFunction,
        dir: Direction,
        owner: Owner,
        *,
        prepend: bool = False,
        watch: Part | None = None,
        looks: bool = False,
    ) -> HookHandle:
        """Hook a function that was checked, for an owner, to be given what a watch asks for;
        `looks`: it is known to look alone."""
        hooks = self._fwd if dir == "fwd" else self._bwd
        part = None if watch is None or watch.whole else watch
        # not a closure: a deep copy of the model then calls its own hook points
        hook = Hook(partial(fn, hook=self), owner, part, looks)
        hooks.insert(0 if prepend else len(hooks), hook)
        return HookHandle(hooks, hook)

    def remove_hooks(self) -> None:
        """Take every hook away, whoever added it, and what they kept in `ctx`."""
        self._fwd.clear()
        self._bwd.clear()
        self._notes = Notes()

    def forward(self, tensor: Tensor, *, fresh: bool = False) -> Tensor:
        """Show a contiguous tensor of their own to the hooks; the layer goes on with what this
        returns.

        Args:
            tensor: the stage's value.
            fresh: nobody else holds this tensor, and autograd did not save it: where it is
                contiguous, the hooks are shown it and no copy (EDIT-2).
        """
        if not self.watched:
            return tensor
        if torch.compiler.is_compiling() and not self._inlined(tensor):
            left: Tensor = compiled.show(tensor, self._number)
            return left
        own = fresh and tensor.is_contiguous()
        shown = tensor = (
            without_base(tensor) if own else tensor.clone(memory_format=torch.contiguous_format)
        )
        before = version(shown)
        mine = self._mine(self._fwd)
        for hook in mine:
            if hook.watch is None:
                tensor = self._accept(hook.fn(tensor), tensor)
            elif hook.reduce is None:
                tensor = self._show_part(hook, tensor)
        for hook in mine:
            if hook.reduce is not None:
                part = self.selection_of(hook, tensor.shape)
                self.show_reduced(
                    hook, part, reduce_whole(tensor, part.heads, part.query, hook.reduce)
                )
        if tensor is not shown or version(tensor) != before:
            self.note_edit()
        backward = self._mine(self._bwd)
        if backward:
            self._hook_gradient(tensor, backward)
        return tensor

    def _inlined(self, tensor: Tensor) -> bool:
        """Return whether a compiled graph takes the code of the hooks in: where a gradient flows
        through it, which must flow through what they do."""
        return bool(self._bwd) or (torch.is_grad_enabled() and tensor.requires_grad)

    def note_edit(self) -> None:
        """Note that a hook edited here, which a recomputation must do too (FIRE-2)."""
        self._edits.note(self.name)

    @property
    def idle(self) -> bool:
        """Return whether nothing at all is hooked here, by torch's own means either: then the
        point need not be called."""
        return not (self._fwd or self._bwd or self._forward_hooks or self._forward_pre_hooks)

    def show(self, tensor: Tensor) -> tuple[Tensor, bool]:
        """Return what the hooks left of a contiguous tensor that nobody else holds, and whether
        they edited it: replaced it, or wrote into it; where nobody counts that, True."""
        tensor = without_base(tensor)
        before = version(tensor)
        left = self(tensor, fresh=True)
        return left, left is not tensor or before is None or version(left) != before

    def _show_part(self, hook: Hook, whole: Tensor, what: str = "a replacement") -> Tensor:
        """Return a tensor with what a hook left of its part of it: another tensor where it edited,
        or where a gradient is taken at what it was given (PART-1, GRAD-1)."""
        selection = self.selection_of(hook, whole.shape)
        indices = self.indices(selection)
        part = read_part(whole, indices).clone(memory_format=torch.contiguous_format)
        left, edited = self.show_part(hook, selection, part, what)
        if not edited and not left.requires_grad:
            return whole
        whole = whole.clone()
        write_part(whole, indices, left)
        return whole

    def selection_of(self, hook: Hook, shape: Sequence[int]) -> Selection:
        """Return which part of a tensor of this shape a hook is given.

        Raises:
            ContractError: there is no such part (PART-1).
        """
        assert hook.watch is not None
        return hook.watch.selection(self.spec.axes, shape, self.name)

    def indices(self, selection: Selection) -> list[Index]:
        """Return a part as torch indexes it, for each axis of this point."""
        return [index_of(numbers) for numbers in selection.along(self.spec.axes)]

    def show_part(
        self, hook: Hook, selection: Selection, part: Tensor, what: str = "a replacement"
    ) -> tuple[Tensor, bool]:
        """Return what a hook left of its part, which nobody else holds, and whether it edited that;
        True where nobody can know.

        A part is small, so it is compared with what it was: torch does not count what is written
        through `.data` or numpy. A hook that is known to look alone left it as it was.
        """
        told = PartOfHookPoint(self, selection, self.spec.axes)
        if hook.looks:
            hook.fn(part, hook=told)
            return part, False
        readable = not unreadable(part) and part.device.type == "cpu"
        before, count = part.detach().clone() if readable else part, version(part)
        left = self._accept(hook.fn(part, hook=told), part, what)
        if left is not part:
            return left, True
        if readable:
            return left, not torch.equal(left.detach(), before)
        return left, count is None or version(left) != count

    def show_reduced(self, hook: Hook, selection: Selection, reduced: Reduced) -> None:
        """Show a hook a reduction of what all other hooks left.

        Raises:
            ContractError: it returned something: of a reduction there is no way back.
        """
        assert hook.reduce is not None
        told = PartOfHookPoint(self, selection, hook.reduce.axes)
        returned = hook.fn(reduced, hook=told)
        if returned is not None:
            raise ContractError(
                f"hook {self.name!r} was given {hook.reduce!r} of the pattern and returned"
                f" {type(returned).__name__}; a reduction is to look at\n  edit the pattern by a"
                " part: Watch(name, heads=..., query=...)"
            )

    def _accept(self, replacement: Any, shown: Tensor, what: str = "a replacement") -> Tensor:
        """Return the replacement if there is one and it keeps clause EDIT-3, else what was
        shown."""
        if replacement is None:
            return shown
        if not isinstance(replacement, Tensor):
            raise ContractError(
                f"hook {self.name!r} returned {type(replacement).__name__}; clause FIRE-4 requires"
                " None (to look) or a tensor (to replace)"
            )
        for kind, clause in (
            ("shape", self.spec.axes_clause),
            ("dtype", "EDIT-3"),
            ("device", "EDIT-3"),
        ):
            given, required = getattr(replacement, kind), getattr(shown, kind)
            if given != required:
                raise ContractError(self._complaint(what, kind, given, clause, required, shown))
        return replacement

    def _complaint(
        self, what: str, kind: str, given: object, clause: str, required: object, shown: Tensor
    ) -> str:
        """Return the message of a broken clause: what was given, what is required, and the axes
        with their lengths."""
        given, required = (
            tuple(cast("Any", x)) if kind == "shape" else x for x in (given, required)
        )
        lengths = zip(axis_names(self.spec.axes), shown.shape, strict=True)
        return (
            f"hook {self.name!r} was given {what} of {kind} {given}; clause {clause} requires"
            f" {required}\n  axes: {self.spec.axes}\n  with:"
            f" {', '.join(f'{axis}={length}' for axis, length in lengths)}"
        )

    def _hook_gradient(self, tensor: Tensor, hooks: list[Hook]) -> None:
        """Let the backward hooks see, and replace, the gradient at this tensor (GRAD-1)."""
        if not tensor.requires_grad:
            raise HookNeverFired(
                f"the backward hook at {self.name!r} cannot fire: no gradient flows through this"
                f" tensor\n{remedy()}"
            )

        def show(gradient: Tensor) -> Tensor:
            # those removed since the forward pass are gone
            for hook in (hook for hook in hooks if hook in self._bwd):
                if hook.watch is None:
                    gradient = self._accept(hook.fn(gradient), gradient, "a gradient")
                else:
                    gradient = self._show_part(hook, gradient, "a gradient")
            return gradient

        tensor.register_hook(show)

    def extra_repr(self) -> str:
        return f"{self.name}: {self.spec.axes}"


def without_base(tensor: Tensor) -> Tensor:
    """Return a tensor that is no view of another: of a view that was made without gradients
    autograd forbids an edit that has one."""
    known = not torch.compiler.is_compiling() and tensor._is_view()
    return tensor.detach() if known and not (tensor.requires_grad or under_transform()) else tensor
