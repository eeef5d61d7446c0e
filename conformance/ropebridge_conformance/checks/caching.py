"""Caching: steps that read a cache add up to the call that needs none."""

from __future__ import annotations

from torch.nn.functional import pad

from ropebridge_conformance.checks.parity import joined, whole_call
from ropebridge_conformance.checks.values import judge_stage, judge_unwatched, worst_of
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.compare import compare
from ropebridge_conformance.judging.findings import Finding, failed, passed
from ropebridge_conformance.judging.questions import Question, check
from ropebridge_conformance.judging.verdicts import Outcome
from ropebridge_conformance.stages.context import Expectation, expect
from ropebridge_conformance.subjects.witness import carried_bounds
from ropebridge_conformance.zoo.calls import cache_layer, calls
from ropebridge_conformance.zoo.scenarios import Scenario, possible
from ropebridge_spec import Variant

OTHER_STEPS = (
    "decode_no_mask",
    "decode_left_padding",
    "decode_several",
    "decode_into_window",
    "decode_static",
    "decode_static_mask",
    "decode_sliding",
    "decode_sliding_mask",
)


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
    return judge_steps(bench, q)


def keeps_so(scenario: Scenario, variant: Variant) -> bool:
    """Accept layers that keep keys and values of their own, and for a sliding cache have a
    window."""
    slides = scenario.cache != "sliding" or variant.window is not None
    plain = scenario.cache == "growing" or variant.source is None
    return leaves_keys(scenario, variant) and slides and plain


@check("CACHE-1", scenarios=OTHER_STEPS, dtypes=("float32", "bfloat16"), where=keeps_so)
def steps_of_any_kind_give_what_the_whole_gives(bench: Bench, q: Question) -> Finding:
    """CACHE-1: without a mask, beside padding, several positions at once, past the window, and from
    caches that have room for more or forget what no query may see, each step holds at every hook
    what its clause says, whether or not anybody watches the pattern, and what the whole does."""
    traces, contexts = (
        bench.traces(q.specimen, q.situation, "all"),
        bench.contexts(q.specimen, q.situation),
    )
    telling = ("hook_attn_scores", "hook_z")  # where keys and values of earlier calls are read
    for hook in traces[0].fired:
        if hook in telling:
            found = judge_stage(hook, traces, contexts, q.specimen, q.situation)
        else:
            pairs = zip(traces, contexts, strict=True)
            found = worst_of([compare(t.values[hook], expect(hook, c)) for t, c in pairs], hook)
        if found.outcome != Outcome.PASS:
            return found
    unwatched = judge_unwatched(bench, q)
    return judge_steps(bench, q) if unwatched.outcome == Outcome.PASS else unwatched


def judge_steps(bench: Bench, q: Question) -> Finding:
    """Judge the pattern and the output of every step by what one call without a cache gives."""
    traces = bench.traces(q.specimen, q.situation, "all")
    exact = carried_bounds(q.specimen, whole_call(bench, q), q.dtype)
    start = 0
    for trace in traces:
        rows = slice(start, start + trace.call.given["hidden_states"].shape[1])
        start, keys = rows.stop, trace.call.keys
        if trace.values["hook_pattern"].shape[-1] != keys:
            return failed(
                f"a step's pattern does not have the {keys} keys that its cache gives back",
                divergent="hook_pattern",
            )
        # the whole's columns from the first key on, and none beyond its last
        columns = slice(trace.call.first_key, trace.call.first_key + keys)
        held = exact.pattern.value[:, :, rows, columns]
        room = keys - held.shape[-1]
        bound = exact.pattern.bound[:, :, rows, columns]
        pattern = Expectation(pad(held, (0, room)), pad(bound, (0, room)))
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
