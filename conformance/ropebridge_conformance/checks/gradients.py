"""Gradients: what autograd gives at every hook, on the tensor that the hook was given, and what
backward hooks see and leave."""

from __future__ import annotations

import torch
from torch import Tensor

from ropebridge_conformance.judging.bench import Bench, Watch, hooks_of
from ropebridge_conformance.judging.compare import compare
from ropebridge_conformance.judging.findings import Finding, failed, passed, vacuous
from ropebridge_conformance.judging.questions import Question, check
from ropebridge_conformance.stages.derivatives import GIVEN, Backward, expected_gradients, served
from ropebridge_conformance.subjects.answers import NotShown, WrongShape
from ropebridge_conformance.zoo.scenarios import Scenario, possible
from ropebridge_spec import HookSpec, Variant

TABLES = ("hook_cos", "hook_sin")
UNFUSED = ("hook_attn_scores", "hook_pattern")
"""Hook points that a fused kernel does not have."""


def bounded(scenario: Scenario, variant: Variant) -> bool:
    """Accept layers whose every rounding backwards lies between two hooks."""
    return possible(scenario, variant) and served(variant)


def on_the_way(hook: HookSpec) -> bool:
    """Return the hook points between a layer's hidden states and its output."""
    return no_table(hook) and hook.name != "hook_kv_in"


def no_table(hook: HookSpec) -> bool:
    """Accept hook points through which the gradient of the input flows."""
    return hook.name not in TABLES


@check("GRAD-1", scenarios=("prefill", "left_padding"), where=bounded)
def the_gradient_at_a_hook_is_the_derivative(bench: Bench, q: Question) -> Finding:
    """GRAD-1: the gradient retained on what each hook was given is the float64 reference's, from
    the gradients one stage down."""
    return judge_gradients(bench, q, clean_run(bench, q, "all"), "all")


@check("GRAD-1", scenarios=("left_padding", "no_mask"), where=bounded)
def the_gradient_is_the_same_where_nothing_is_made(bench: Bench, q: Question) -> Finding:
    """GRAD-1 where scores and pattern are not watched: the backward pass of a kernel that makes
    neither, over the stages it fuses."""
    return judge_gradients(bench, q, clean_run(bench, q, "fused"), "fused")


@check("GRAD-1", scenarios=("prefill",), dtypes=("float32", "bfloat16"))
def a_backward_hook_sees_the_gradient(bench: Bench, q: Question) -> Finding:
    """GRAD-1: backward hooks are called once each, with the very gradient that is retained
    there."""
    names = [name for name in bench.watched(q.specimen, q.situation, "all") if name not in TABLES]
    made = bench.run_backwards(q.specimen, q.situation, "all", names)
    seen = dict(made.seen)
    for name in reversed(names):
        calls_of = [gradient for hook, gradient in made.seen if hook == name]
        if len(calls_of) != 1:
            return failed(
                f"the backward hook at {name} was called {len(calls_of)} times in one backward"
                " pass; clause GRAD-1 requires once",
                divergent=name,
            )
        retained = made.gradients.get(name)
        if retained is None or not torch.equal(seen[name], retained):
            return failed(
                f"the backward hook at {name} did not see the gradient that is retained there",
                divergent=name,
            )
    return passed()


@check("GRAD-1", scenarios=("prefill",), hooks=on_the_way, dtypes=("float32",), where=bounded)
def a_backward_hook_may_replace_the_gradient(bench: Bench, q: Question) -> Finding:
    """GRAD-1: what a backward hook gives back is the gradient that all earlier stages are given."""
    assert q.hook is not None
    clean = clean_run(bench, q, "all")
    left: list[Tensor] = []

    def double(gradient: Tensor) -> Tensor:
        # a forbidden score stays a constant
        left.append(torch.where(gradient == 0, gradient, gradient * 2 + 0.5))
        return left[-1]

    made = bench.run_backwards(q.specimen, q.situation, "all", [q.hook], {q.hook: double})
    if len(left) != 1:
        return failed(
            f"the backward hook at {q.hook} was called {len(left)} times", divergent=q.hook
        )
    made.gradients[q.hook] = left[0]
    finding = judge_gradients(bench, q, made, "all", besides=q.hook)
    if finding.divergent is None and q.hook != "hook_in" and unmoved(clean, made):
        return vacuous("the gradient of the input did not move")
    if q.hook == "hook_in" and not torch.equal(made.at_input, left[0]):  # type: ignore[arg-type]
        return failed(
            "the gradient that a backward hook left at hook_in is not that of the input",
            divergent="hook_in",
        )
    return finding


def unmoved(clean: Backward, made: Backward) -> bool:
    """Return whether the gradient of the input is that of another run."""
    one, other = clean.at_input, made.at_input
    return one is not None and other is not None and torch.equal(one, other)


def clean_run(bench: Bench, q: Question, watch: Watch) -> Backward:
    """Return the scenario's one call and its backward pass, in which no backward hook takes part;
    it is run once."""
    return bench.backward(q.specimen, q.situation, watch)


def judge_gradients(
    bench: Bench, q: Question, made: Backward, watch: Watch, besides: str | None = None
) -> Finding:
    """Judge every hook's gradient, from the output backwards; `besides` is where it was
    replaced.

    Raises:
        NotShown: a hook point did not fire, and the derivative is judged between neighbours.
    """
    for hook in hooks_of(q.specimen, q.situation):
        known = hook.name in GIVEN or (watch == "fused" and hook.name in UNFUSED)
        if hook.name not in made.trace.values and not known:
            raise NotShown(hook.name)
    for name in reversed(made.trace.fired):
        gradient = made.gradients[name]
        if gradient is None:
            return failed(f"no gradient arrives at what {name} was given", divergent=name)
        if name == "hook_out" and name != besides and not torch.equal(gradient, made.cotangent):
            return failed("the gradient at hook_out is not that of the output", divergent=name)
    derivatives = bench.derivatives(q.specimen, q.situation, watch, made.trace)
    for name, value in made.trace.values.items():
        if name not in derivatives.plain.values:
            raise WrongShape(f"{name} was shown a tensor of shape {tuple(value.shape)}")
    wanted = expected_gradients(made, derivatives)
    worst = None
    for name in (name for name in reversed(made.trace.fired) if name in wanted and name != besides):
        difference = compare(made.gradients[name], wanted[name])  # type: ignore[arg-type]
        if not difference.fits:
            return failed(
                f"the gradient at {name} is off by {difference.ratio:.3g} times its bound at"
                f" {difference.index}",
                difference,
                divergent=name,
            )
        worst = difference if worst is None or difference.ratio > worst.ratio else worst
    if not any(expected.value.count_nonzero() for expected in wanted.values()):
        return vacuous("every gradient is 0")
    return passed(worst)
