"""Isolation: layers never see each other, a hook that raises leaves nothing behind, and the module
stays what it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.findings import Finding, failed, passed, vacuous
from ropebridge_conformance.judging.questions import Question, any_hook, check
from ropebridge_conformance.subjects.traces import record
from ropebridge_conformance.subjects.witness import hugging_face
from ropebridge_conformance.zoo.calls import CallInputs, calls
from ropebridge_conformance.zoo.specimens import Specimen

ROUNDS = 4
EDITED = "hook_z"


class Raised(Exception):
    """Report what a hook of the judge raises."""


@check("ISO-1", scenarios=("prefill", "no_mask"), dtypes=("float32",))
def layers_do_not_see_each_other(bench: Bench, q: Question) -> Finding:
    """ISO-1: two layers, one of them edited, called one inside the other and side by side in
    threads, give what each gives alone."""
    (edited, one), (plain, other) = (twin(bench, q, seed) for seed in (0, 1))
    within: list[Tensor] = []
    alone = scaled_at_one_hook(edited, one), plain.run(other.inputs)[0]
    if torch.equal(alone[0], edited.run(one.inputs)[0]):
        return vacuous("the edit changed nothing")

    def call_the_other(tensor: Tensor, hook: Any) -> Tensor:
        within.append(plain.run(other.inputs)[0])
        return double(tensor, hook)

    inside = edited.run(one.inputs, [(EDITED, call_the_other)])[0]
    if len(within) != 1 or not (torch.equal(inside, alone[0]) and torch.equal(within[0], alone[1])):
        return failed(
            "of two layers, one called within the other's hook, one gave something else than alone",
            divergent=EDITED,
        )
    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(repeat, run)
            for run in (
                lambda: edited.run(one.inputs, [(EDITED, double)])[0],
                lambda: plain.run(other.inputs)[0],
            )
        ]
        outs = [future.result() for future in both]
    if all(
        torch.equal(out, wanted) for made, wanted in zip(outs, alone, strict=True) for out in made
    ):
        return passed()
    return failed(
        "a layer gave something else while another ran in another thread", divergent=EDITED
    )


def scaled_at_one_hook(layer: Any, call: CallInputs) -> Tensor:
    """Return the output of a call with its edit.

    Raises:
        NotShown: the hook did not fire.
    """
    (trace,) = record(layer, [call], [EDITED], {EDITED: lambda tensor: tensor * 2})
    assert trace.out is not None
    return trace.out


def repeat(run: Callable[[], Tensor]) -> list[Tensor]:
    """Return what several calls give, one after another."""
    return [run() for _ in range(ROUNDS)]


def double(tensor: Tensor, hook: Any) -> Tensor:
    """Return an edit that scales."""
    return tensor * 2


def twin(bench: Bench, q: Question, seed: int) -> tuple[Any, CallInputs]:
    """Return a layer around a copy of the module, and a call of its own."""
    own = replace(q.specimen, module=copy.deepcopy(q.specimen.module))
    layer = bench.build(own, q.situation.opted_in)
    return layer, calls(q.situation, own, layer, seed)[0]


@check("ISO-1", scenarios=("prefill",), hooks=any_hook, dtypes=("float32",))
def a_hook_that_raises_leaves_nothing_behind(bench: Bench, q: Question) -> Finding:
    """ISO-1: the exception comes out of the call, and the next call, with a hook elsewhere, is what
    it was before: the raising hook is gone."""
    assert q.hook is not None
    layer, call = twin(bench, q, 0)
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
