"""Gate of each head's mix (GATE-1)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ropebridge_conformance.mutants.applies import has, has_hook
from ropebridge_conformance.mutants.mutant import AXES, Mutant, change, shows_as, turns_to
from ropebridge_conformance.stages.carried import WithError
from ropebridge_conformance.stages.context import Context, Expectation, expects, for_heads
from ropebridge_conformance.stages.projection import carry_projection
from ropebridge_reference import open_gate
from ropebridge_spec import Gate, bounds


@expects("hook_q_gate")
def expected_gate_logits(hook: str, c: Context) -> Expectation:
    """Return what GATE-1 makes of the values before: the gate's rows of the query projection, which
    read hook_in."""
    return Expectation(gate_logits(c), lambda: gate_logits_with_error(c).error)


def gate_input(c: Context) -> WithError:
    """Return what the gate's projection reads."""
    source = "hook_q_latent" if c.variant.gate_rises else "hook_in"
    return for_heads(c.seen(source), c.variant.heads)


def gate_logits(c: Context) -> Tensor:
    """Return the gate before its activation."""
    assert c.weights.W_G is not None
    return c.stages.project_heads(gate_input(c).value, c.weights.W_G, c.weights.b_G)


def gate_logits_with_error(c: Context) -> WithError:
    """Return the gate before its activation, and how far it may be off."""
    assert c.weights.W_G is not None
    return carry_projection(gate_input(c), c.weights.W_G, c.weights.b_G, c.dtype)


@expects("hook_gate")
def expected_gate(hook: str, c: Context) -> Expectation:
    """Return what GATE-1 makes of the values before."""
    gate, has_hook = c.variant.gate, "hook_q_gate" in c.hooks
    assert gate is not None
    value = c.stages.open_gate(c.seen("hook_q_gate").value if has_hook else gate_logits(c), gate)

    def bound() -> Tensor:
        logits = c.seen("hook_q_gate") if has_hook else gate_logits_with_error(c)
        return carry_gate(logits, gate, c.dtype).error

    return Expectation(value if gate.per == "channel" else value[..., 0], bound)


def carry_gate(logits: WithError, kind: Gate, dtype: str) -> WithError:
    """Carry value and error through GATE-1: sigmoid has slope at most 1/4, softplus at most 1."""
    value = open_gate(logits.value, kind)
    carried = logits.error * (0.25 if kind.activation == "sigmoid" else 1.0)
    gate = WithError(value, carried + bounds.activation(value, logits.value, dtype=dtype))
    return gate if kind.per == "channel" else WithError(gate.value[..., 0], gate.error[..., 0])


# Faults that prove the judge at this stage.


def gate_linear(logits: Tensor, kind: Gate) -> Tensor:
    return logits


def gate_of_other_kind(logits: Tensor, kind: Gate) -> Tensor:
    return open_gate(
        logits, replace(kind, activation="softplus" if kind.activation == "sigmoid" else "sigmoid")
    )


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "gate_logits_of_another_head",
        "a head's gate is made of the logits of the head before",
        "hook_q_gate",
        has_hook("hook_q_gate"),
        show=turns_to("hook_q_gate", lambda g: g.roll(1, 2)),
    ),
    Mutant(
        "gate_linear",
        "the gate has no activation",
        "hook_gate",
        has("gate"),
        change(open_gate=gate_linear),
    ),
    Mutant(
        "gate_of_other_kind",
        "softplus in place of sigmoid, or the other way",
        "hook_gate",
        has("gate"),
        change(open_gate=gate_of_other_kind),
    ),
    Mutant(
        "gate_first",
        "hook_gate is shown with its heads first",
        "hook_gate",
        has("gate"),
        show=shows_as("hook_gate", lambda g: g.transpose(1, 2), lambda g: g.transpose(1, 2)),
        clause="GATE-2",
        arms=AXES,
    ),
)
