"""Caching: steps that read a cache add up to the call that needs none."""

from __future__ import annotations

from ropebridge_conformance.checks.parity import joined, whole_call
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.compare import compare
from ropebridge_conformance.judging.findings import Finding, failed, passed
from ropebridge_conformance.judging.questions import Question, check
from ropebridge_conformance.stages.context import Expectation
from ropebridge_conformance.subjects.witness import carried_bounds
from ropebridge_conformance.zoo.calls import cache_layer, calls
from ropebridge_conformance.zoo.scenarios import Scenario, possible
from ropebridge_spec import Variant


def leaves_keys(scenario: Scenario, variant: Variant) -> bool:
    """Accept layers that leave keys and values of their own in the cache."""
    return (
        possible(scenario, variant)
        and variant.shared_kv_argument is None
        and variant.calling.extends_cache
    )


@check("CACHE-1", scenarios=("decode",))
def steps_from_a_cache_add_up_to_the_whole(bench: Bench, q: Question) -> Finding:
    """CACHE-1: pattern, over the keys there were, and output of every step are those of one call,
    within what rounding may carry through.

    Every hook of every step is judged beside this: by its value's clause, from the values one stage
    up and the keys and values of earlier steps.
    """
    traces = bench.traces(q.specimen, q.situation, "all")
    exact = carried_bounds(q.specimen, whole_call(bench, q), q.dtype)
    start = 0
    for trace in traces:
        rows = slice(start, start + trace.call.given["hidden_states"].shape[1])
        start, keys = rows.stop, trace.call.keys
        if trace.values["hook_pattern"].shape[-1] != keys:
            return failed(
                f"a step's pattern does not have the {keys} keys there were",
                divergent="hook_pattern",
            )
        pattern = Expectation(
            exact.pattern.value[:, :, rows, :keys], exact.pattern.bound[:, :, rows, :keys]
        )
        difference = compare(trace.values["hook_pattern"], pattern)
        if not difference.fits:
            return failed(
                f"the pattern of step {rows.start} is {difference.ratio:.3g} bounds away from that"
                " of the whole",
                difference,
                "hook_pattern",
            )
    difference = compare(joined(traces), exact.out)
    if not difference.fits:
        return failed(
            f"the steps' outputs are {difference.ratio:.3g} bounds away from that of the whole",
            difference,
            divergent="hook_out",
        )
    return passed(difference)


@check("CACHE-1", scenarios=("decode",), dtypes=("float32",), where=leaves_keys)
def a_step_leaves_its_positions_in_the_cache(bench: Bench, q: Question) -> Finding:
    """CACHE-1: after each call the cache holds, in the layer that is this one's, as many positions
    as have been."""
    layer = bench.layer(q.specimen, q.situation.opted_in)
    seen = 0
    for call in calls(q.situation, q.specimen, layer):
        layer.run(call.inputs)
        seen += call.given["hidden_states"].shape[1]
        held = call.given["cache"].get_seq_length(
            cache_layer(call.given, q.specimen.module, q.specimen.variant)
        )
        if held != seen:
            return failed(
                f"the cache holds {held} positions of this layer after {seen}",
                divergent="hook_rot_k",
            )
    return passed()
