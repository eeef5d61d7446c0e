"""Keep what hook points held: of one run by name, or every firing of whatever runs, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from ropebridge.hooks import HookPoint
from ropebridge.owners import Owner, present
from ropebridge.reductions import TopWeights
from ropebridge_spec import HOOK_BY_NAME, ContractError

Positions = int | slice | Sequence[int] | Tensor | None
"""Which positions to keep, as TransformerLens' `pos_slice`: one (its axis goes), a slice, several,
or None for all."""

OVER_POSITIONS = ("pos", "query")
OVER_KEYS = "key"
UNSEEN = {"hook_attn_scores": -torch.inf}
"""What stands, in joined tensors, at keys that did not exist yet; 0 at other hook points."""


@dataclass(frozen=True)
class Keep:
    """Say what is kept of a tensor that a hook point was shown.

    device, dtype: where, and in which dtype if it is a floating-point one; None as it is.
    positions: which positions, of hook points that have them.
    remove_batch: take a batch axis of length 1 away.
    """

    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    positions: Positions = None
    remove_batch: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and not isinstance(self.dtype, torch.dtype):
            raise ContractError(
                f"dtype={self.dtype!r} is no dtype of torch; give torch.float16 or its like"
            )
        chosen = self.positions
        if not isinstance(chosen, (int, slice, Sequence, Tensor, type(None))) or isinstance(
            chosen, str
        ):
            raise ContractError(
                f"pos_slice={chosen!r} names no positions; it is a number, a slice, a list of"
                " numbers, or None for all"
            )

    def __call__(self, tensor: Any, hook: HookPoint) -> Any:
        """Return what is kept, detached from the graph; of a reduction that gives several tensors,
        all of them.

        Raises:
            ContractError: the batch axis is to go, and is longer than 1; or there is no such
                position.
        """
        if isinstance(tensor, TopWeights):
            return TopWeights(*(self(each, hook) for each in tensor))
        tensor, axes = tensor.detach(), hook.spec.axes.split()
        along = [at for at, axis in enumerate(axes) if axis in OVER_POSITIONS]
        if self.positions is not None and along:
            refuse_absent_position(self.positions, tensor.shape[along[0]], hook.name)
            tensor = take_positions(tensor, self.positions, along[0])
        if self.remove_batch:
            tensor = without_batch(tensor, hook.name)
        floating = tensor.is_floating_point()
        return tensor.to(device=self.device, dtype=self.dtype if floating else None)


def refuse_absent_position(positions: Positions, length: int, name: str) -> None:
    """Refuse the number of a position that a hook point does not have."""
    if isinstance(positions, int) and not -length <= positions < length:
        raise ContractError(
            f"pos_slice={positions} names a position that {name!r} does not have: it holds"
            f" {length}, counted from 0, or from -1 at the end"
        )


def take_positions(tensor: Tensor, positions: Positions, axis: int) -> Tensor:
    """Return a copy of some positions of a tensor, so that the rest of it need not live on; the
    axis goes where one number selects."""
    if isinstance(positions, int):
        return tensor.select(axis, positions).clone()
    if isinstance(positions, slice):
        return tensor[(slice(None),) * axis + (positions,)].clone()
    chosen = torch.as_tensor(positions, device=tensor.device)
    return tensor[(slice(None),) * axis + (chosen,)]


def without_batch(tensor: Tensor, name: str) -> Tensor:
    """Return a tensor without its first axis, which must be 1 long."""
    if tensor.shape[0] != 1:
        raise ContractError(
            f"remove_batch_dim=True takes away a batch axis of length 1, and {name!r} holds a batch"
            f" of {tensor.shape[0]}; run one row at a time, or leave it off"
        )
    return tensor[0]


class ActivationCache(dict[str, Tensor]):
    """Map full hook name -> tensor. `cache["pattern", 0]`, as in TransformerLens, is
    `cache["blocks.0.attn.hook_pattern"]`."""

    def __missing__(self, key: object) -> Tensor:
        name = full_name(key)
        if name in self:
            return self[name]
        near = get_close_matches(name, self, n=3, cutoff=0.5)
        raise KeyError(
            f"the cache does not hold {key!r}; nearest: {', '.join(near) or 'none'}; it holds what"
            " names_filter selected"
        )


def full_name(key: object) -> str:
    """Return the full name of a hook point: ("pattern", 0) is blocks.0.attn.hook_pattern."""
    if isinstance(key, tuple) and len(key) >= 2 and isinstance(key[1], int):
        return f"blocks.{key[1]}.attn.hook_{str(key[0]).removeprefix('hook_')}"
    return str(key)


def keep_once(cache: ActivationCache, keep: Keep, gradients: bool) -> Callable[..., None]:
    """Return a hook that keeps what it is shown under the hook's name, and where asked the gradient
    there under `{name}_grad`.

    It raises ContractError where a hook point is shown a second tensor in one run.
    """

    def look(tensor: Tensor, hook: HookPoint) -> None:
        if hook.recomputing:
            return
        if hook.name in cache:
            raise ContractError(
                f"hook {hook.name!r} fired twice in this run, and a cache keeps one tensor for each"
                " name: the model runs this layer several times in one pass\n  keep them all: with"
                f" bridged.caching({hook.name!r}) as cache: bridged(input_ids)"
            )
        cache[hook.name] = keep(tensor, hook)
        if gradients and isinstance(tensor, Tensor) and tensor.requires_grad:
            tensor.register_hook(lambda gradient: keep_gradient(gradient, hook))

    def keep_gradient(gradient: Tensor, hook: HookPoint) -> None:
        cache[f"{hook.name}_grad"] = keep(gradient, hook)

    return look


@dataclass(frozen=True)
class Firing:
    """Hold one firing of a hook point.

    name: the full name of the hook point. step: the number of the model's forward pass, from 0.
    tensor: what it held.
    """

    name: str
    step: int
    tensor: Tensor


class Recording(Mapping[str, tuple[Tensor, ...]]):
    """Map full hook name -> the tensors that it held, one for each firing, in order.

    Attributes:
        firings: every firing of every hook point, in order.
    """

    def __init__(self, keep: Keep, owner: Owner) -> None:
        self.firings: list[Firing] = []
        self._keep, self._owner = keep, owner
        self._passes = 0

    def __getitem__(self, name: str) -> tuple[Tensor, ...]:
        return tuple(firing.tensor for firing in self._of(name))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(firing.name for firing in self.firings))

    def __len__(self) -> int:
        return len({firing.name for firing in self.firings})

    def __repr__(self) -> str:
        steps = len({firing.step for firing in self.firings})
        return f"Recording({len(self.firings)} firings of {len(self)} hook points in {steps} steps)"

    def steps(self, name: str) -> tuple[int, ...]:
        """Return the number of the forward pass, from 0, of each firing of a hook point."""
        return tuple(firing.step for firing in self._of(name))

    def joined(self, name: str) -> Tensor:
        """Return what a hook point held in all steps, joined along positions: of z (batch, pos,
        head, d_head_v), of a pattern (batch, head, query, key).

        Keys that did not exist yet in an earlier step have weight 0, and scores -inf.

        Raises:
            ContractError: it has no axis of positions, fired several times in one step, or its
                tensors differ in another axis.
        """
        tensors, steps = self[name], self.steps(name)
        spec = HOOK_BY_NAME[name.rsplit(".", 1)[-1]]
        axes = spec.axes.split()
        along = [at for at, axis in enumerate(axes) if axis in OVER_POSITIONS]
        reduced = isinstance(tensors[0], TopWeights)
        if not along or reduced or tensors[0].ndim != len(axes):
            raise ContractError(
                f"what {name!r} keeps has no axis of positions to join along: {spec.axes}"
            )
        if len(set(steps)) < len(steps):
            raise ContractError(
                f"hook {name!r} fired several times in one step, so its positions are not one"
                f" sequence; choose among cache[{name!r}], with cache.steps({name!r})"
            )
        if axes[-1] == OVER_KEYS:
            tensors = with_all_keys(tensors, UNSEEN.get(spec.name, 0.0))
        refuse_other_sizes(name, tensors, along[0])
        return torch.cat(tensors, dim=along[0])

    def begin_pass(self, *_: Any) -> None:
        """Count a forward pass of the model; those of other threads and tasks are not the
        block's."""
        self._passes += self._owner in present()

    def look(self, tensor: Tensor, hook: HookPoint) -> None:
        """Keep a firing; one that a recomputation repeats is kept already."""
        if not hook.recomputing:
            step = max(self._passes - 1, 0)
            self.firings.append(Firing(hook.name, step, self._keep(tensor, hook)))

    def _of(self, name: str) -> list[Firing]:
        """Return the firings of a hook point; never none."""
        found = [firing for firing in self.firings if firing.name == name]
        if not found:
            near = get_close_matches(name, list(self), n=3, cutoff=0.5)
            raise KeyError(f"{name!r} was not recorded; nearest: {', '.join(near) or 'none'}")
        return found


def with_all_keys(tensors: Sequence[Tensor], unseen: float) -> tuple[Tensor, ...]:
    """Return tensors (batch, head, query, key) of as many keys as the longest has."""
    keys = max(tensor.shape[-1] for tensor in tensors)
    return tuple(
        torch.nn.functional.pad(tensor, (0, keys - tensor.shape[-1]), value=unseen)
        for tensor in tensors
    )


def refuse_other_sizes(name: str, tensors: Sequence[Tensor], along: int) -> None:
    """Refuse tensors that differ in another axis than the one they are joined along."""
    shapes = {tuple(n for at, n in enumerate(tensor.shape) if at != along) for tensor in tensors}
    if len(shapes) > 1:
        raise ContractError(
            f"what {name!r} held cannot be joined along positions: its shapes are"
            f" {sorted({tuple(tensor.shape) for tensor in tensors})}\n  record one sequence at a"
            f" time, or take the tensors apart: cache[{name!r}]"
        )
