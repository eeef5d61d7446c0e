"""`HookPoint`: a named place in the forward pass where functions may look at a tensor, replace it,
or edit it in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from ropebridge.checkpointing import Edits, recomputing
from ropebridge_spec import ContractError, HookNeverFired, HookSpec, axis_names

HookFunction = Callable[..., Any]
Direction = Literal["fwd", "bwd"]


class HookHandle:
    """Take the hook that `add_hook` added away again, by `remove()` or at the end of a `with`
    block."""

    def __init__(self, hooks: list[HookFunction], fn: HookFunction) -> None:
        self._hooks, self._fn = hooks, fn

    def remove(self) -> None:
        """Take the hook away; a second call does nothing."""
        self._hooks[:] = [fn for fn in self._hooks if fn is not self._fn]

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
    never fire.

    Attributes:
        name: the full name, `blocks.{layer}.attn.hook_pattern`.
        spec: the contract's entry for this hook point.
    """

    def __init__(self, spec: HookSpec, name: str, edits: Edits | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.name = name
        self._edits = edits if edits is not None else Edits()
        self._fwd: list[HookFunction] = []
        self._bwd: list[HookFunction] = []

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
    def watched(self) -> bool:
        """Return whether anything is hooked here: what nobody watches need not be made."""
        return bool(self._fwd or self._bwd)

    @property
    def recomputing(self) -> bool:
        """Return whether this firing repeats one already seen: gradient checkpointing recomputes in
        the backward pass (FIRE-2)."""
        return recomputing()

    def add_hook(
        self, fn: HookFunction, dir: Direction = "fwd", *, prepend: bool = False
    ) -> HookHandle:
        """Hook a function here (clause FIRE-4).

        Args:
            fn: called as `fn(tensor, hook=self)`; with dir "bwd" it is given the gradient. Returns
                None to look, or a tensor of the same shape, dtype and device to replace what it was
                given. It may edit in place.
            dir: "fwd" or "bwd".
            prepend: call it before the hooks that are already there.

        Raises:
            ContractError: fn is not callable, or dir is neither.
        """
        refuse_uncallable(self.name, fn)
        if dir not in ("fwd", "bwd"):
            raise ContractError(
                f"hook {self.name!r} was given dir={dir!r}; it must be 'fwd' or 'bwd'"
            )
        hooks = self._fwd if dir == "fwd" else self._bwd
        # not a closure: a deep copy of the model then calls its own hook points
        call = partial(fn, hook=self)
        hooks.insert(0 if prepend else len(hooks), call)
        return HookHandle(hooks, call)

    def remove_hooks(self) -> None:
        """Take every hook away."""
        self._fwd.clear()
        self._bwd.clear()

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
        own = fresh and tensor.is_contiguous()
        shown = tensor = tensor if own else tensor.clone(memory_format=torch.contiguous_format)
        before = version(shown)
        for fn in tuple(self._fwd):
            tensor = self._accept(fn(tensor), tensor)
        if tensor is not shown or version(tensor) != before:
            self._edits.note(self.name)
        if self._bwd:
            self._hook_gradient(tensor)
        return tensor

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

    def _hook_gradient(self, tensor: Tensor) -> None:
        """Let the backward hooks see, and replace, the gradient at this tensor (GRAD-1)."""
        if not tensor.requires_grad:
            raise HookNeverFired(
                f"the backward hook at {self.name!r} cannot fire: no gradient flows through this"
                f" tensor\n{remedy()}"
            )
        hooks = tuple(self._bwd)

        def show(gradient: Tensor) -> Tensor:
            # those removed since the forward pass are gone
            for fn in (fn for fn in hooks if fn in self._bwd):
                gradient = self._accept(fn(gradient), gradient, "a gradient")
            return gradient

        tensor.register_hook(show)

    def extra_repr(self) -> str:
        return f"{self.name}: {self.spec.axes}"


def remedy() -> str:
    """Return what to do so that a gradient flows, which depends on whether gradients are on."""
    if torch.is_grad_enabled():
        return "  let the model's input, or a weight before this point, require a gradient"
    return (
        "  gradients are off here: run the model outside of torch.no_grad(); gradient checkpointing"
        " with use_reentrant=True runs it without them too, so pass\n "
        " model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant':"
        " False})"
    )


def refuse_uncallable(name: str, fn: object) -> None:
    """Refuse a hook that cannot be called, where it is given and not where it would fire
    (FIRE-4)."""
    if not callable(fn):
        raise ContractError(
            f"hook {name!r} was given {type(fn).__name__} {fn!r}; clause FIRE-4 requires a function"
            " fn(tensor, hook)"
        )


def unreadable(tensor: Tensor) -> bool:
    """Return whether values cannot be looked at: on meta, and while a graph is compiled."""
    return torch.compiler.is_compiling() or tensor.is_meta


def version(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to; inference tensors and compiled graphs keep no
    count."""
    return None if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version
