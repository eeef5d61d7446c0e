"""A subject with one wrong stage: the first cause of its report is that stage, and what fails after
it is folded under it.

`make fairness` tries every hook point, `make test` one.
"""

from dataclasses import replace

import pytest
import torch

from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.judge import judge, plan
from ropebridge_conformance.judging.verdicts import BAD, Outcome, Verdict
from ropebridge_conformance.mutants.mutant import shows_as, turns_to
from ropebridge_conformance.results.causes import SHOWN, causes_of, key_of, told
from ropebridge_conformance.subjects.reference import GAPS, Factory
from subjects.test_gaps import CALLS, PAIRS


def louder(value):
    """A fault of five per cent, whatever the stage."""
    return torch.where(value == -torch.inf, value, value * 1.05 + 0.01)


def quieter(value):
    return torch.where(value == -torch.inf, value, (value - 0.01) / 1.05)


FAULTS = {
    # hooks and the rest of the layer see the wrong value
    "computed": lambda hook: turns_to(hook, louder),
    # hooks are shown a wrong value, and the layer goes on with what is right
    "shown": lambda hook: shows_as(hook, louder, quieter),
}


@pytest.mark.slow
@pytest.mark.every
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("case", "hook"), PAIRS)
def test_the_first_cause_is_the_stage_that_is_wrong(case, hook, fault):
    torch.set_num_threads(1)
    subject = replace(Factory(), name="wrong", show=FAULTS[fault](hook), unsupported=GAPS)
    bench = Bench(subject)
    questions = [q for q in plan((case,), ("float32",), ("cpu",)) if q.scenario in CALLS]
    verdicts = [judge(bench, q) for q in questions]
    bad = [v for v in verdicts if v.outcome in BAD]
    causes = causes_of(verdicts)
    assert not [v.reason for v in bad if v.outcome == Outcome.JUDGE_ERROR]
    assert key_of(causes[0].example) == ("wrong", "stage", hook)
    stages = {key_of(v)[2] for v in bad if key_of(v)[1] == "stage"}
    assert stages == {hook}
    assert causes[0].verdicts > 0.9 * len(bad), [
        (c.verdicts, c.example.id, c.example.reason[:200]) for c in causes
    ]


def verdict(check, hook, **others):
    fields = {
        "subject": "s",
        "clause": "EDIT-1",
        "family": "llama",
        "case": "llama",
        "scenario": "prefill",
        "dtype": "float32",
        "device": "cpu",
        "outcome": Outcome.FAIL,
    }
    return Verdict(check=check, hook=hook, **{**fields, **others})


STAGE = "a_stage_gives_the_value_of_its_clause"
EDIT = "a_replacement_is_what_the_rest_of_the_layer_sees"


def test_the_first_twenty_lines_are_twenty_causes():
    verdicts = [
        verdict(EDIT, f"hook_{n}", divergent=f"hook_{n}", reason="did not reach")
        for n in range(25)
        for _ in range(40 - n)
    ]
    lines = list(told(causes_of(verdicts)))
    assert len(lines) == SHOWN + 1
    assert lines[0].startswith("fail EDIT-1 hook_0: 40 verdicts: test_a_replacement")
    assert lines[-1] == f"... and 5 more causes, of {sum(40 - n for n in range(20, 25))} verdicts"


def test_followers_are_folded_under_their_root():
    verdicts = [
        verdict(STAGE, "hook_z", clause="MIX-1", divergent="hook_z", reason="hook_z is off"),
        *(
            verdict(EDIT, h, divergent="hook_z", follows="hook_z", reason="is wrong without")
            for h in ("hook_q", "hook_k", "hook_v")
        ),
    ]
    (cause,) = causes_of(verdicts)
    assert (cause.roots, cause.followers) == (1, 3)
    (line,) = told([cause])
    assert line.startswith("fail MIX-1 hook_z: 1 verdicts and 3 that follow: ")


def test_one_exception_is_one_cause_wherever_it_is_raised():
    reason = "raised TypeError: run() got 3 arguments at 0x7f\nmore"
    verdicts = [
        verdict(EDIT, h, reason=reason.replace("3", n)) for h, n in (("a", "3"), ("b", "4"))
    ]
    assert len(causes_of(verdicts)) == 1
