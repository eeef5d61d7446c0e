"""Isolation: layers never see each other, a hook that raises leaves nothing behind, and the module
stays what it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.compare import Difference, compare
from ropebridge_conformance.judging.findings import Finding, failed, passed, vacuous
from ropebridge_conformance.judging.questions import Question, any_hook, check
from ropebridge_conformance.subjects.answers import NotShown
from ropebridge_conformance.subjects.traces import record
from ropebridge_conformance.subjects.witness import carried_bounds, hugging_face
from ropebridge_conformance.zoo.calls import CallInputs, calls
from ropebridge_conformance.zoo.specimens import Specimen

ROUNDS = 4
EDITED = "hook_z"


class Raised(Exception):
    """Report what a hook of the judge raises."""


@dataclass(frozen=True)
class Twin:
    """Hold a layer around a copy of a module, with weights of its own, and a call of it."""

    specimen: Specimen
    layer: Any
    call: CallInputs

    def run(self) -> Tensor:
        """Return the output of its call."""
        out: Tensor = self.layer.run(self.call.inputs)[0]
        return out

    def run_edited(self) -> Tensor:
        """Return the output of its call with an edit.

        Raises:
            NotShown: the hook did not fire.
        """
        (trace,) = record(self.layer, [self.call], [EDITED], {EDITED: lambda tensor: tensor * 2})
        assert trace.out is not None
        return trace.out

    def difference(self, out: Tensor) -> Difference:
        """Return how far an output is from what its own weights give."""
        dtype = str(self.specimen.dtype).removeprefix("torch.")
        return compare(out, carried_bounds(self.specimen, self.call, dtype).out)


def twin(bench: Bench, q: Question, seed: int) -> Twin:
    """Return a layer that is a copy of the question's, and a call of its own; each seed has other
    weights, and 0 those of the module."""
    own = replace(q.specimen, module=copy.deepcopy(q.specimen.module))
    with torch.no_grad():
        for parameter in own.module.parameters():
            parameter.mul_(1 + seed / 4)
    layer = bench.build(own, q.situation.opted_in)
    return Twin(own, layer, calls(q.situation, own, layer, seed)[0])


@check("ISO-1", scenarios=("prefill", "no_mask"), dtypes=("float32",))
def layers_do_not_see_each_other(bench: Bench, q: Question) -> Finding:
    """ISO-1: two layers of other weights, one of them edited, called by turns, one inside the other
    and side by side in threads, give what each gives alone, and what its weights say."""
    edited, plain = (twin(bench, q, seed) for seed in (0, 1))
    unedited, alone = edited.run(), (edited.run_edited(), plain.run())
    if torch.equal(alone[0], unedited):
        return vacuous("the edit changed nothing")
    for own, out in ((edited, unedited), (plain, alone[1])):
        difference = own.difference(out)
        if not difference.fits:
            words = "of two layers one does not give what its own weights say"
            return failed(words, difference, divergent=EDITED)
    pairs = {
        "called by turns": [(edited.run_edited(), plain.run()) for _ in range(2)],
        "one called within the other's hook": one_within_the_other(edited, plain),
        "called in two threads": side_by_side(edited, plain),
    }
    for how, outs in pairs.items():
        if not all(torch.equal(a, alone[0]) and torch.equal(b, alone[1]) for a, b in outs):
            words = f"of two layers, {how}, one gave something else than alone"
            return failed(words, divergent=EDITED)
    return passed()


def one_within_the_other(edited: Twin, plain: Twin) -> list[tuple[Tensor, Tensor]]:
    """Return what two layers give of which one is called in a hook of the other.

    Raises:
        NotShown: the hook did not fire once.
    """
    within: list[Tensor] = []

    def call_the_other(tensor: Tensor, hook: Any) -> Tensor:
        within.append(plain.run())
        return tensor * 2

    inside, _ = edited.layer.run(edited.call.inputs, [(EDITED, call_the_other)])
    if len(within) != 1:
        raise NotShown(EDITED)
    return [(inside, within[0])]


def side_by_side(edited: Twin, plain: Twin) -> list[tuple[Tensor, Tensor]]:
    """Return what two layers give, each called several times in a thread of its own."""
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(repeat, run) for run in (edited.run_edited, plain.run)]
        return list(zip(*(future.result() for future in runs), strict=True))


def repeat(run: Callable[[], Tensor]) -> list[Tensor]:
    """Return what several calls give, one after another."""
    return [run() for _ in range(ROUNDS)]


@check("ISO-1", scenarios=("prefill",), hooks=any_hook, dtypes=("float32",))
def a_hook_that_raises_leaves_nothing_behind(bench: Bench, q: Question) -> Finding:
    """ISO-1: the exception comes out of the call, and the next call, with a hook elsewhere, is what
    it was before: the raising hook is gone."""
    assert q.hook is not None
    own = twin(bench, q, 0)
    layer, call = own.layer, own.call
    names = bench.watched(q.specimen, q.situation, "all")
    before = record(layer, [call], names)[0]

    def raise_it(tensor: Tensor, hook: Any) -> None:
        raise Raised(q.hook)

    try:
        layer.run(call.inputs, [(q.hook, raise_it)])
    except Raised:
        pass
    else:
        return failed(f"a hook at {q.hook} raised, and the call went on", divergent=q.hook)
    after = record(layer, [call], names)[0]
    same = after.fired == before.fired and all(
        torch.equal(after.values[name], before.values[name]) for name in before.fired
    )
    return (
        passed()
        if same
        else failed(f"a hook at {q.hook} raised, and the next call was another", divergent=q.hook)
    )


@check("BACK-1", scenarios=("prefill", "decode"), dtypes=("float32", "bfloat16"))
def the_module_is_left_as_it_is(bench: Bench, q: Question) -> Finding:
    """BACK-1: keys, tensors, submodules, attributes, hooks and mode of the module, and what its own
    forward gives to the bit, outlive a layer around it."""
    own = replace(q.specimen, module=copy.deepcopy(q.specimen.module))
    before = portrait(own, q)
    layer = bench.build(own, q.situation.opted_in)
    record(
        layer,
        calls(q.situation, own, layer),
        bench.watched(own, q.situation, "all"),
        {EDITED: lambda tensor: tensor * 2},
    )
    after = portrait(own, q)
    for what, was in before.items():
        same = torch.equal(was, after[what]) if isinstance(was, Tensor) else was == after[what]
        if not same:
            return failed(
                f"a layer around the module changed its {what}; clause BACK-1 requires that it"
                " leaves it as it is",
                divergent="hook_in",
            )
    return passed()


def portrait(own: Specimen, q: Question) -> dict[str, Any]:
    """Return everything of a module that a layer around it could change."""
    layer_calls = calls(q.situation, own, None)
    out, _ = hugging_face(own, layer_calls)
    state = own.module.state_dict()
    return {
        "output": out,
        "state_dict keys": list(state),
        "tensors": [
            (id(tensor), tensor.dtype, tensor.requires_grad) for tensor in own.module.parameters()
        ],
        "weights": torch.cat([tensor.detach().double().flatten() for tensor in state.values()]),
        "submodules": [
            (name, id(module), type(module)) for name, module in own.module.named_modules()
        ],
        "attributes": [sorted(vars(module)) for module in own.module.modules()],
        "hooks": [hooks_on(module) for module in own.module.modules()],
        "mode": [module.training for module in own.module.modules()],
    }


def hooks_on(module: nn.Module) -> int:
    """Return how many raw hooks a module has."""
    kinds = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
    )
    return sum(len(getattr(module, kind)) for kind in kinds)
