"""Training: dropout is drawn in training mode only, after hook_pattern, and where the family has
one for its output after hook_out."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.judging.bench import Bench, Watch
from ropebridge_conformance.judging.compare import compare
from ropebridge_conformance.judging.findings import Finding, failed, passed, vacuous
from ropebridge_conformance.judging.questions import Question, check
from ropebridge_conformance.stages.context import Expectation, expect
from ropebridge_conformance.stages.oracle import context_of
from ropebridge_conformance.subjects.answers import Values, asking
from ropebridge_conformance.subjects.traces import Trace, record
from ropebridge_conformance.subjects.witness import live_rows
from ropebridge_conformance.zoo.calls import calls
from ropebridge_conformance.zoo.scenarios import SCENARIO_BY_ID, Scenario, possible
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_spec import FAMILIES, Family, Variant, attention_inputs, describe

WATCHES: tuple[Watch, ...] = ("all", "fused")
RATE = 0.5
"""A power of two: what is kept is then doubled, to the bit."""
SURE = math.sqrt(2 * math.log(2e9))
"""By Hoeffding's inequality a share of n fair draws is this many times 1 / (2 sqrt(n)) off once in
1e9 runs."""


def drops_patterns(scenario: Scenario, variant: Variant) -> bool:
    """Accept layers whose z is the mix of values itself, wide enough to tell keys apart."""
    plain = not (
        variant.z_norm
        or variant.gate
        or variant.differential
        or variant.value_norm
        or variant.shared_kv_argument
        or variant.key_bias
    )
    return (
        possible(scenario, variant) and plain and variant.d_head_v >= SCENARIO_BY_ID["prefill"].pos
    )


def drops_outputs(scenario: Scenario, variant: Variant) -> bool:
    """Accept layers that drop out their output."""
    return possible(scenario, variant) and variant.output_dropout > 0


@check(
    "DROP-1",
    scenarios=("prefill",),
    dtypes=("float32", "bfloat16"),
    where=drops_patterns,
    also=("PAT-1",),
)
def dropout_comes_after_the_pattern_and_in_training_alone(bench: Bench, q: Question) -> Finding:
    """DROP-1, PAT-1: hook_pattern is what softmax gave; z mixes it with half its entries dropped
    and the rest doubled; in evaluation none is.

    Values are edited so that key j holds a one at place j and noughts elsewhere: z then shows what
    each key's value was multiplied by.
    """
    for watch in WATCHES:
        evaluating, own = run(bench, q, watch, train=False)
        values = {
            name: value
            for name, value in evaluating.values.items()
            if name not in ("hook_attn_scores", "hook_pattern")
        }
        whole = expect(
            "hook_z", context_of(replace(evaluating, values=Values(values)), own, q.situation)
        )
        difference = compare(evaluating.values["hook_z"], whole)
        if not difference.fits:
            return failed(
                f"in evaluation z does not mix the pattern as it is (watching {watch})",
                difference,
                divergent="hook_z",
            )
        training, own = run(bench, q, watch, train=True)
        if (
            watch == "all"
            and not compare(
                training.values["hook_pattern"],
                expect("hook_pattern", context_of(training, own, q.situation)),
            ).fits
        ):
            return failed(
                "in training hook_pattern is not what softmax gave", divergent="hook_pattern"
            )
        finding = dropped(training.values["hook_z"], whole, watch)
        if finding is not None:
            return finding
    return passed()


def dropped(z: Tensor, whole: Expectation, watch: Watch) -> Finding | None:
    """Return a finding where z shows anything but entries dropped, about as many as the rate says,
    and entries doubled."""
    there = whole.value > 4 * whole.bound
    gone, factor = (z == 0) & (whole.value > 0), 1 / (1 - RATE)
    wanted = Expectation(torch.where(gone, 0.0, factor * whole.value), factor * whole.bound)
    difference = compare(z, wanted)
    if not difference.fits:
        return failed(
            "in training z does not mix the pattern with entries dropped or doubled (watching"
            f" {watch})",
            difference,
            divergent="hook_z",
        )
    if unlikely(gone & there, int(there.sum())):
        return failed(
            f"in training {int((gone & there).sum())} of {int(there.sum())} entries are dropped,"
            f" and the rate is {RATE} (watching {watch})",
            divergent="hook_z",
        )
    return None


def unlikely(gone: Tensor, of: int) -> bool:
    """Return whether chance would not drop so many, or so few."""
    return abs(int(gone.sum()) / of - RATE) * 2 * math.sqrt(of) > SURE


def run(
    bench: Bench, q: Question, watch: Watch, *, train: bool, taking_gradients: bool = False
) -> tuple[Trace, Specimen]:
    """Return the scenario's call of a layer with dropout: its values edited, or with hidden states
    that require a gradient."""
    own = with_dropout(q.specimen, "dropout", train=train)
    layer = bench.build(own, q.situation.opted_in)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        (call,) = calls(q.situation, own, layer)
        call.given["hidden_states"].requires_grad_(taking_gradients)
        names = bench.watched(own, q.situation, watch)
        edits = {} if taking_gradients else {attention_inputs(own.variant)[2]: one_hot}
        (trace,) = record(layer, [call], names, edits)
        return trace, own


def one_hot(v: Tensor) -> Tensor:
    """Return values (batch key kv_head d_head_v): a one at its own place for each key."""
    places = torch.eye(v.shape[1], v.shape[-1], dtype=v.dtype, device=v.device)
    return places[None, :, None].expand_as(v).clone()


def with_dropout(specimen: Specimen, field: str, *, train: bool) -> Specimen:
    """Return the layer with one of its rates of dropout set, described anew."""
    module: Any = copy.deepcopy(specimen.module)
    set_path(module, path_of(module, field), RATE)
    module.train(train)
    return replace(specimen, module=module, variant=describe(module))


def path_of(module: Any, field: str) -> str:
    """Return where a family keeps a rate of dropout; nowhere is an empty path."""
    family = FAMILIES.get(type(module).__name__)
    return (getattr(family, field) or "").removesuffix("?") if isinstance(family, Family) else ""


def set_path(module: Any, path: str, value: float) -> None:
    """Set an attribute of an attribute."""
    *way, last = path.split(".")
    for name in way:
        module = getattr(module, name)
    setattr(module, last, value)


@check("MASK-6", scenarios=("left_padding",), dtypes=("float32",), where=drops_patterns)
def a_row_that_sees_no_key_is_zero_in_training(bench: Bench, q: Question) -> Finding:
    """MASK-6: pattern and z of such a row are exactly 0 under dropout too, watched or not, and the
    gradient is finite."""
    for watch in WATCHES:
        trace, own = run(bench, q, watch, train=True, taking_gradients=True)
        dead = ~live_rows(own, trace.call)
        if not dead.any():
            return vacuous("every row sees a key")
        for name, axis in (("hook_pattern", 2), ("hook_z", 1)):
            value = trace.values.get(name)
            if value is not None and value.transpose(1, axis)[dead].count_nonzero():
                return failed(
                    f"in training {name} is not 0 in a row that sees no key (watching {watch})",
                    divergent=name,
                )
        assert trace.out is not None
        with asking():
            (gradient,) = torch.autograd.grad(
                trace.out.square().sum(), trace.call.given["hidden_states"]
            )
        if not gradient.isfinite().all() or not gradient.count_nonzero():
            return failed(
                f"in training the gradient is 0 or not finite (watching {watch})",
                divergent="hook_pattern",
            )
    return passed()


@check("PAT-3", scenarios=("prefill",), dtypes=("float32", "bfloat16"), where=drops_patterns)
def returned_weights_are_the_pattern_before_dropout(bench: Bench, q: Question) -> Finding:
    """PAT-3: in training too the weights that a call returns when asked are hook_pattern."""
    own = with_dropout(q.specimen, "dropout", train=True)
    layer = bench.build(own, q.situation.opted_in)
    asked = calls(q.situation, own, layer)
    (trace,) = record(layer, asked, ["hook_pattern"], output_attentions=True)
    if trace.weights is None:
        return failed("output_attentions=True gave no weights", divergent="hook_pattern")
    if not torch.equal(trace.weights, trace.values["hook_pattern"]):
        return failed(
            "in training the returned weights are not hook_pattern", divergent="hook_pattern"
        )
    return passed()


@check("DROP-2", scenarios=("prefill",), dtypes=("float32",), where=drops_outputs)
def output_dropout_comes_after_hook_out(bench: Bench, q: Question) -> Finding:
    """DROP-2: in training mode the layer returns hook_out with half its entries dropped and the
    rest doubled; in evaluation hook_out."""
    for train in (True, False):
        own = with_dropout(q.specimen, "output_dropout", train=train)
        layer = bench.build(own, q.situation.opted_in)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            trace = record(layer, calls(q.situation, own, layer), ["hook_out"])[0]
        out, shown = trace.out, trace.values["hook_out"]
        assert out is not None
        gone = (out == 0) & (shown != 0)
        if not train and not torch.equal(out, shown):
            return failed("in evaluation the layer does not return hook_out", divergent="hook_out")
        if train and not torch.equal(
            out, torch.where(gone, torch.zeros_like(out), shown / (1 - RATE))
        ):
            return failed(
                "in training the layer does not return hook_out with entries dropped or doubled",
                divergent="hook_out",
            )
        if train and unlikely(gone, gone.numel()):
            return failed(
                f"in training {int(gone.sum())} of {gone.numel()} entries are dropped, and the rate"
                f" is {RATE}",
                divergent="hook_out",
            )
    return passed()
