"""A hook point that nobody saw is worked out of those before it, with its error, and the stages
after it are judged across the gap."""

from dataclasses import replace

import pytest
import torch

from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.compare import compare
from ropebridge_conformance.stages.context import expect
from ropebridge_conformance.stages.oracle import contexts_of, end_to_end
from ropebridge_conformance.subjects.answers import Values
from ropebridge_conformance.subjects.reference import Factory
from ropebridge_conformance.zoo.scenarios import SCENARIO_BY_ID, possible
from ropebridge_conformance.zoo.specimens import CASE_BY_ID, specimen

pytestmark = pytest.mark.slow

CASES = [
    name
    for name in (
        *("gemma3_local", "gpt_oss_local", "olmo2", "nanochat_0", "mistral4_0", "diffllama_0"),
        *("afmoe_1", "doge_0", "neomme_0", "qwen3_next_1"),
    )
    if name in CASE_BY_ID
]


def recordings(case, scenario, dtype=torch.float32):
    own = specimen(case, dtype, "cpu")
    return own, Bench(Factory()).traces(own, SCENARIO_BY_ID[scenario], "all")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scenario", ["prefill", "decode", "split"])
def test_without_one_hook_every_other_stage_is_judged_as_before(case, scenario):
    if not possible(SCENARIO_BY_ID[scenario], specimen(case, torch.float32, "cpu").variant):
        pytest.skip("the layer cannot be called so")
    own, traces = recordings(case, scenario)
    for missing in traces[0].fired:
        seen = [replace(t, values=without(t.values, missing)) for t in traces]
        contexts = contexts_of(seen, own, SCENARIO_BY_ID[scenario])
        for trace, context in zip(seen, contexts, strict=True):
            for name, value in trace.values.items():
                difference = compare(value, expect(name, context))
                assert difference.fits, (missing, name, difference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_a_fault_after_a_gap_is_still_seen(case, dtype):
    """The bound across one gap is not so wide that anything would do."""
    own, traces = recordings(case, "prefill", dtype)
    scenario, (trace,) = SCENARIO_BY_ID["prefill"], traces
    for missing, after in (("hook_q", "hook_rot_q"), ("hook_rot_k", "hook_attn_scores")):
        (context,) = contexts_of(
            [replace(trace, values=without(trace.values, missing))], own, scenario
        )
        wrong = trace.values[after].flip(1)
        assert not compare(wrong, expect(after, context)).fits


@pytest.mark.parametrize("case", CASES)
def test_end_to_end_knows_nothing_but_the_inputs(case):
    """Whatever was recorded, also nothing."""
    own, traces = recordings(case, "prefill")
    scenario, (trace,) = SCENARIO_BY_ID["prefill"], traces
    whole = end_to_end(contexts_of([trace], own, scenario)[0])
    (unseen,) = contexts_of([replace(trace, values=Values())], own, scenario)
    assert torch.equal(whole.out.value, expect("hook_out", unseen).value)
    assert torch.equal(whole.out.bound, expect("hook_out", unseen).bound)
    difference = compare(trace.out, whole.out)
    assert difference.fits
    other = trace.out.roll(1, 1)
    assert not compare(other, whole.out).fits


def without(values, name):
    return Values({key: value for key, value in values.items() if key != name})
