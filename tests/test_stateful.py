"""The public API in any order: attach, hook, run, raise, detach, copy, pickle, set the
implementation. Nothing stays behind, and no value is wrong.

`make sequences` tries 1,000 sequences, `make test` 15.
"""

from __future__ import annotations

import copy
import os
import pickle
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor, nn

from ropebridge import AttachError, ContractError, attach, get_bridged_model
from ropebridge.hooks import HookHandle
from ropebridge_conformance.zoo.builder import build_model
from ropebridge_conformance.zoo.specimens import randomise

pytestmark = pytest.mark.slow

SEQUENCES = int(os.environ.get("ROPEBRIDGE_SEQUENCES", "15"))
TOKENS = torch.tensor([[5, 17, 40, 8, 23, 61], [9, 9, 30, 77, 12, 4]])
LAYERS = (0, 1)
PLACES = {"hook_z": "o_proj", "hook_q": "q_proj"}
"""Hook points, and the projection at which raw hooks of torch make the same edit."""


class Scale:
    """A hook that multiplies what it is shown, and can be pickled."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, tensor: Tensor, hook: Any) -> Tensor:
        return tensor * self.factor


class Fails:
    """A hook that raises."""

    def __call__(self, tensor: Tensor, hook: Any) -> Tensor:
        raise OSError("mine")


Edit = tuple[int, str, float]
"""Layer, hook point, factor."""

edits = st.tuples(
    st.sampled_from(LAYERS), st.sampled_from(sorted(PLACES)), st.sampled_from([0.0, 0.5, -2.0])
)


def name_of(edit: Edit) -> str:
    return f"blocks.{edit[0]}.attn.{edit[1]}"


def pairs_of(chosen: list[Edit]) -> list[tuple[str, Scale]]:
    return [(name_of(edit), Scale(edit[2])) for edit in chosen]


def expected(model: Any, chosen: list[Edit]) -> Tensor:
    """The logits that transformers and raw hooks of torch give, with these edits."""
    with ExitStack() as stack:
        for layer, point, factor in chosen:
            projection: nn.Module = getattr(model.model.layers[layer].self_attn, PLACES[point])
            if point == "hook_z":
                handle = projection.register_forward_pre_hook(
                    lambda module, args, factor=factor: (args[0] * factor,)
                )
            else:
                handle = projection.register_forward_hook(
                    lambda module, args, output, factor=factor: output * factor
                )
            stack.callback(handle.remove)
        logits: Tensor = model(TOKENS, use_cache=False).logits
    return logits


PRISTINE: Any = build_model("llama")
"""The model alone: nothing is ever attached to it."""
randomise(PRISTINE)
PRISTINE.eval()


class Sequences(RuleBasedStateMachine):
    """Hold a model, and what should be in force on it."""

    def __init__(self) -> None:
        super().__init__()
        self.model: Any = copy.deepcopy(PRISTINE)
        self.bridged: Any = None
        self.kept: list[tuple[Edit, HookHandle]] = []
        self.implementation = "eager"
        self.causal = True

    @property
    def runs(self) -> bool:
        """Whether a bridged model may run now."""
        return self.implementation != "paged|eager" and self.causal

    def agree(self, got: Tensor, chosen: list[Edit]) -> None:
        wanted = expected(PRISTINE, chosen)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)

    # ---- attach and detach ----

    @rule(verify=st.booleans())
    @precondition(lambda self: self.bridged is None and self.runs)
    def attach(self, verify: bool) -> None:
        self.bridged = attach(self.model, verify=verify)

    @rule()
    @precondition(lambda self: self.bridged is not None)
    def attach_twice(self) -> None:
        with pytest.raises(AttachError, match="attached to already"):
            attach(self.model)

    @rule()
    @precondition(lambda self: self.bridged is None and not self.runs and self.causal)
    def attach_to_what_is_not_served(self) -> None:
        with pytest.raises(AttachError, match="attends by"):
            attach(self.model)

    @rule()
    @precondition(lambda self: self.bridged is not None)
    def detach(self) -> None:
        point = self.bridged.hook_points["blocks.0.attn.hook_z"]
        self.bridged.detach()
        with pytest.raises(AttachError):
            self.bridged.run_with_cache(TOKENS)
        with pytest.raises(AttachError):
            point.add_hook(Scale(0.0))
        self.bridged, self.kept = None, []

    # ---- hooks ----

    @rule(edit=edits)
    @precondition(lambda self: self.bridged is not None)
    def add_hook(self, edit: Edit) -> None:
        handle = self.bridged.hook_points[name_of(edit)].add_hook(Scale(edit[2]))
        self.kept.append((edit, handle))

    @rule(data=st.data())
    @precondition(lambda self: self.kept)
    def remove_hook(self, data: Any) -> None:
        _, handle = self.kept.pop(data.draw(st.integers(0, len(self.kept) - 1)))
        handle.remove()
        handle.remove()

    @rule()
    @precondition(lambda self: self.bridged is not None)
    def reset_hooks(self) -> None:
        self.bridged.reset_hooks()
        self.kept = []

    # ---- runs ----

    @rule(chosen=st.lists(edits, max_size=3))
    @precondition(lambda self: self.bridged is not None and self.runs)
    def run_with_hooks(self, chosen: list[Edit]) -> None:
        output = self.bridged.run_with_hooks(TOKENS, fwd_hooks=pairs_of(chosen), use_cache=False)
        self.agree(output.logits, [*self.in_force(), *chosen])

    @rule(chosen=st.lists(edits, max_size=2))
    @precondition(lambda self: self.bridged is not None and self.runs)
    def run_with_cache(self, chosen: list[Edit]) -> None:
        output, cache = self.bridged.run_with_cache(TOKENS, fwd_hooks=pairs_of(chosen))
        self.agree(output.logits, [*self.in_force(), *chosen])
        assert len(cache) == len(self.bridged.hook_points)
        for edit in chosen:
            if edit[2] == 0:
                last = [other for other in chosen if name_of(other) == name_of(edit)]
                assert not cache[name_of(edit)].any() or last[-1][2] != 0

    @rule(chosen=st.lists(edits, min_size=1, max_size=2))
    @precondition(lambda self: self.bridged is not None and self.runs)
    def record_two_runs_in_a_block(self, chosen: list[Edit]) -> None:
        name = name_of(chosen[0])
        with self.bridged.hooks(pairs_of(chosen)), self.bridged.caching(name) as recording:
            for _ in range(2):
                self.agree(self.model(TOKENS).logits, [*self.in_force(), *chosen])
        assert recording.steps(name) == (0, 1)
        assert torch.equal(*recording[name])

    @rule(chosen=st.lists(edits, max_size=2), layer=st.sampled_from(LAYERS))
    @precondition(lambda self: self.bridged is not None and self.runs)
    def a_hook_raises(self, chosen: list[Edit], layer: int) -> None:
        failing = (f"blocks.{layer}.attn.hook_z", Fails())
        with pytest.raises(OSError, match="mine"):
            self.bridged.run_with_hooks(TOKENS, fwd_hooks=[*pairs_of(chosen), failing])

    @rule(chosen=st.lists(edits, max_size=2))
    @precondition(lambda self: self.bridged is not None)
    def a_block_raises(self, chosen: list[Edit]) -> None:
        with pytest.raises(OSError, match="mine"), self.bridged.hooks(pairs_of(chosen)):
            Fails()(TOKENS, None)

    @rule(edit=edits)
    @precondition(lambda self: self.bridged is not None)
    def a_slip_in_an_argument(self, edit: Edit) -> None:
        with pytest.raises(ContractError, match="nearest: fwd_hooks"):
            self.bridged.run_with_hooks(TOKENS, fw_hooks=pairs_of([edit]))

    @rule()
    @precondition(lambda self: self.bridged is not None and not self.runs)
    def run_what_is_no_longer_what_was_proved(self) -> None:
        with pytest.raises(AttachError):
            self.model(TOKENS)

    # ---- the model changes ----

    @rule(name=st.sampled_from(["eager", "sdpa", "paged|eager"]))
    def set_implementation(self, name: str) -> None:
        self.model.set_attn_implementation(name)
        self.implementation = name

    @rule()
    @precondition(lambda self: self.bridged is not None)
    def turn_a_switch(self) -> None:
        self.causal = not self.causal
        for layer in self.model.model.layers:
            layer.self_attn.is_causal = self.causal

    @rule(by=st.sampled_from([copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]))
    def copy_the_model(self, by: Any) -> None:
        """The copy brings bridges and hooks of its own; the original goes."""
        self.model = by(self.model)
        if self.bridged is not None:
            self.bridged = get_bridged_model(self.model)
            handles = self.handles_of_the_copy()
            self.kept = [(edit, handles[place]) for place, (edit, _) in enumerate(self.kept)]
        else:
            with pytest.raises(AttachError, match="holds no layer that is attached to"):
                get_bridged_model(self.model)

    def handles_of_the_copy(self) -> list[HookHandle]:
        """A handle for each hook that a copy brought along, in the order of `kept`."""
        seen: dict[str, int] = {}
        handles = []
        for edit, _ in self.kept:
            name = name_of(edit)
            hooks = self.bridged.hook_points[name]._fwd
            handles.append(HookHandle(hooks, hooks[seen.get(name, 0)]))
            seen[name] = seen.get(name, 0) + 1
        return handles

    def in_force(self) -> list[Edit]:
        return [edit for edit, _ in self.kept]

    # ---- always ----

    @invariant()
    def nothing_is_left_of_what_is_gone(self) -> None:
        attention = [layer.self_attn for layer in self.model.model.layers]
        if self.bridged is None:
            assert not any("forward" in vars(module) for module in attention)
            assert "generate_batch" not in vars(self.model)
        else:
            points = self.bridged.hook_points.values()
            assert {point.name for point in points if point.watched} == {
                name_of(edit) for edit in self.in_force()
            }
            held = [hook for point in points for hook in (*point._fwd, *point._bwd)]
            assert len(held) == len(self.kept)
        assert list(self.model.state_dict()) == list(PRISTINE.state_dict())
        assert not self.model.model._forward_pre_hooks

    @invariant()
    def what_runs_gives_the_right_value(self) -> None:
        if not self.runs:
            return
        got = self.model(TOKENS, use_cache=False).logits
        self.agree(got, self.in_force())
        if self.bridged is None and self.implementation == "eager":
            assert torch.equal(got, PRISTINE(TOKENS, use_cache=False).logits)

    def teardown(self) -> None:
        if self.bridged is not None:
            self.bridged.detach()


Sequences.TestCase.settings = settings(
    max_examples=SEQUENCES,
    stateful_step_count=20,
    deadline=None,
    derandomize=SEQUENCES <= 50,
    suppress_health_check=list(HealthCheck),
)
TestSequences = Sequences.TestCase
