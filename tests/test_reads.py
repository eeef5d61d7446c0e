"""What a stage is made of is found by watching what its oracle reads."""

import copy
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace

import pytest
import torch

from ropebridge_conformance.checks import CHECK_BY_NAME
from ropebridge_conformance.judging.bench import Bench, watched
from ropebridge_conformance.judging.findings import failed, passed
from ropebridge_conformance.judging.judge import judge
from ropebridge_conformance.judging.verdicts import Outcome
from ropebridge_conformance.stages.carried import exact
from ropebridge_conformance.stages.context import STAGE_ORACLES, Context, Expectation, expect
from ropebridge_conformance.stages.functions import STAGES
from ropebridge_conformance.stages.masks import MASKING, bias_in
from ropebridge_conformance.stages.oracle import contexts_after, contexts_of, unchanged
from ropebridge_conformance.stages.reads import ReadValues, remembered
from ropebridge_conformance.subjects.reference import Factory
from ropebridge_conformance.subjects.traces import record
from ropebridge_conformance.zoo import specimens
from ropebridge_conformance.zoo.calls import calls
from ropebridge_conformance.zoo.scenarios import SCENARIO_BY_ID, possible
from ropebridge_conformance.zoo.specimens import CASE_BY_ID, COVER, specimen, tiny_model
from ropebridge_conformance.zoo.weights import WeightsOnce


class Layer:
    """Two properties that are worked out once, of which one is made of the other."""

    def __init__(self, values):
        self.values, self.memory, self.count = ReadValues(values), {}, 0

    @remembered
    def key(self):
        self.count += 1
        return self.values["hook_k"] + 1

    @remembered
    def scores(self):
        return self.key * self.values["hook_q"]


@pytest.fixture
def layer():
    return Layer({"hook_q": torch.ones(1), "hook_k": torch.ones(1)})


def test_whoever_asks_for_what_is_remembered_has_read_what_it_was_made_of(layer):
    with layer.values.noting() as first:
        layer.scores  # noqa: B018
    with layer.values.noting() as second:
        layer.scores  # noqa: B018
    with layer.values.noting() as of_key:
        layer.key  # noqa: B018
    assert layer.count == 1
    assert first == second == {"hook_q", "hook_k"}
    assert of_key == {"hook_k"}


def test_a_default_that_is_asked_for_counts_as_read_where_it_is_there(layer):
    with layer.values.noting() as read:
        assert layer.values.get("hook_gate") is None
        assert layer.values.get("hook_q") is not None
    assert read == {"hook_q"}


@pytest.fixture(scope="module")
def context():
    bench, layer = Bench(Factory()), specimen("gemma3_local", torch.float32, "cpu")
    (found,) = bench.contexts(layer, SCENARIO_BY_ID["prefill"])
    return found


@pytest.mark.parametrize(
    ("hook", "made_of"),
    [
        ("hook_in", set()),
        ("hook_q", {"hook_in"}),
        ("hook_q_normed", {"hook_q"}),
        ("hook_rot_q", {"hook_q", "hook_q_normed", "hook_cos", "hook_sin"}),
        ("hook_attn_scores", {"hook_q", "hook_k", "hook_rot_q", "hook_rot_k"}),
        ("hook_pattern", {"hook_attn_scores"}),
        ("hook_z", {"hook_pattern", "hook_v"}),
        ("hook_out", {"hook_z"}),
    ],
)
def test_a_stage_has_read_what_the_contract_makes_it_of(context, hook, made_of):
    _ = expect(hook, context).bound
    assert context.reads[hook] == made_of


@pytest.mark.parametrize(
    ("edited", "hook", "as_before"),
    [
        ("hook_q", "hook_q_normed", False),
        ("hook_q", "hook_rot_k", True),
        ("hook_sin", "hook_rot_k", False),
        ("hook_z", "hook_pattern", True),
        ("hook_rot_k", "hook_rot_k", False),
    ],
)
def test_a_stage_is_unchanged_if_it_and_what_it_is_made_of_are(context, edited, hook, as_before):
    changed = context.but(values={**context.values, edited: context.values[edited] + 1})
    assert unchanged(hook, changed, context) == as_before


def test_no_stage_is_unchanged_after_another_past():
    bench, layer = Bench(Factory()), specimen("gemma3_local", torch.float32, "cpu")
    last = bench.contexts(layer, SCENARIO_BY_ID["decode"])[-1]
    other = last.but(past=replace(last.past, key=exact(last.past.key.value + 1)))
    assert unchanged("hook_z", last, last)
    assert not unchanged("hook_z", other, last)
    assert not unchanged("hook_z", last.but(past=None), last)


def test_weights_are_read_again_where_a_tensor_was_written_to_or_is_another():
    layer = specimen("llama", torch.float32, "cpu")
    module = copy.deepcopy(layer.module)
    once = WeightsOnce(module, layer.variant)
    first = once.read()
    assert once.read() is first
    with torch.no_grad():
        module.q_proj.weight.mul_(2)
    assert torch.equal(once.read().W_Q, first.W_Q)
    assert once.read() is not first
    module.q_proj.weight = torch.nn.Parameter(torch.ones_like(module.q_proj.weight), False)
    assert bool((once.read().W_Q == 1).all())
    module.q_proj.weight.requires_grad_(True)
    assert once.read() is not once.read(), "what gradients flow through is read for each call"


@pytest.mark.slow
@pytest.mark.parametrize("case", COVER, ids=lambda case: case.id)
def test_a_context_after_an_edit_is_that_of_the_edited_run(case):
    """In every kind of layer: what is taken over from the run without the edit is what would have
    been read again."""
    own = specimen(case.id, torch.float32, "cpu")
    decode, prefill = SCENARIO_BY_ID["decode"], SCENARIO_BY_ID["prefill"]
    scenario = decode if possible(decode, own.variant) else prefill
    bench = Bench(Factory())
    layer, watch = bench.layer(own, scenario.opted_in), watched(own, scenario, "all")
    edit = "hook_v" if "hook_v" in watch else "hook_q"
    edited = record(layer, calls(scenario, own, layer), watch, {edit: lambda value: value * 1.5})
    pairs = zip(
        contexts_after(edited, bench.contexts(own, scenario)),
        contexts_of(edited, own, scenario),
        strict=True,
    )
    for after, read_again in pairs:
        for field in fields(Context):
            if field.name not in ("expected", "reads", "memory", "right"):
                one, other = (parts(getattr(c, field.name)) for c in (after, read_again))
                assert len(one) == len(other)
                assert all(map(same, one, other)), field.name


def parts(value):
    """The tensors and numbers that a value is made of, whatever holds them."""
    value = vars(value) if is_dataclass(value) else value
    value = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(value, list | tuple):
        return [part for inner in value for part in parts(inner)]
    return [value]


def same(one, other):
    """Whether two values are alike, tensors to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other


def test_a_bound_is_worked_out_when_it_is_asked_for_and_counts_as_read_then(context):
    """What is asked of a value alone costs no bound; what a bound is made of is known all the
    same."""
    asked = []
    oracle = STAGE_ORACLES["hook_z"]

    def watched_oracle(hook, c):
        return Expectation(
            oracle(hook, c).value, lambda: asked.append(c) or c.values["hook_out"].abs()
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STAGE_ORACLES, "hook_z", watched_oracle)
        again = context.but(values=context.values)
        made = expect("hook_z", again)
        assert (len(asked), "hook_out" in again.reads["hook_z"]) == (0, False)
        assert made.bound is made.bound
        assert (len(asked), "hook_out" in again.reads["hook_z"]) == (1, True)
        other = context.but(values={**context.values, "hook_out": context.values["hook_out"] + 1})
        assert not unchanged("hook_z", other, context.but(values=context.values))


def test_the_layers_of_a_case_are_copies_of_one_model(monkeypatch):
    """In every dtype: casting one leaves the others as they were."""
    built = []
    monkeypatch.setattr(
        specimens, "tiny_model", lambda case: built.append(case) or tiny_model(case)
    )
    specimens.layer_of.cache_clear()
    specimens.specimen.cache_clear()
    layers = [specimen("llama", dtype, "cpu") for dtype in (torch.bfloat16, torch.float64)]
    assert [case.id for case in built] == ["llama"]
    weights = [layer.module.q_proj.weight for layer in layers]
    assert [weight.dtype for weight in weights] == [torch.bfloat16, torch.float64]
    assert torch.equal(weights[0], weights[1].bfloat16())


class ReadStages:
    """The right stages, and the names of those that were asked for."""

    def __init__(self):
        self.names = set()

    def __getattr__(self, name):
        self.names.add(name)
        return getattr(STAGES, name)


def test_a_foil_takes_over_the_mask_unless_a_stage_that_makes_it_is_another():
    """MASKING names every stage that what a query may see is made by, and no other."""
    read = ReadStages()
    for case, ids in {
        "llama": ("prefill", "no_mask", "padding"),
        "deepseek_v32_0": ("prefill",),
    }.items():
        own = specimen(case, torch.float32, "cpu")
        for id in ids:
            (trace,) = Bench(Factory()).traces(own, SCENARIO_BY_ID[id], "all")
            bias_in(trace, own, read)
    assert read.names == set(MASKING)


@pytest.fixture
def edited():
    """A bench, a question about an edit of the value, and the recording of such an edit."""
    bench, own = Bench(Factory()), specimen("llama", torch.float32, "cpu")
    scenario = SCENARIO_BY_ID["prefill"]
    layer = bench.layer(own, ())
    check = CHECK_BY_NAME["a_replacement_is_what_the_rest_of_the_layer_sees"]
    (question,) = (
        q
        for q in check.questions(CASE_BY_ID["llama"], "float32", "cpu")
        if (q.hook, q.scenario) == ("hook_v", "prefill")
    )
    traces = record(layer, calls(scenario, own, layer), watched(own, scenario, "all"))
    return bench, question, traces


def part_of(trace, without, **other):
    """What a recording of the same call holds that did not watch some hook points."""
    kept = [name for name in trace.fired if name not in without]
    return replace(trace, fired=kept, values={**{n: trace.values[n] for n in kept}, **other})


SCORES = ("hook_attn_scores", "hook_pattern")


@pytest.mark.parametrize(
    ("first", "again"), [(passed(), passed()), (failed("wrong"), failed("asked again"))]
)
def test_a_part_of_calls_that_passed_is_not_judged_again(edited, first, again):
    """Where the calls failed, less was perhaps wrong with what the part shows."""
    bench, question, traces = edited
    assert bench.once_for_the_same(traces, question, lambda: first) == first
    less = [part_of(trace, SCORES) for trace in traces]
    assert bench.once_for_the_same(less, question, lambda: failed("asked again")) == again
    assert bench.once_for_the_same(traces, question, lambda: failed("asked again")) == first


@pytest.mark.parametrize("moved", ["hook_z", "hook_out"])
def test_what_holds_another_number_is_judged_again(edited, moved):
    bench, question, traces = edited
    assert bench.once_for_the_same(traces, question, passed) == passed()
    (trace,) = traces
    other = part_of(trace, SCORES, **{moved: trace.values[moved] + 1})
    assert bench.once_for_the_same([other], question, lambda: failed("moved")) == failed("moved")


def test_more_than_was_judged_is_judged(edited):
    bench, question, traces = edited
    less = [part_of(trace, SCORES) for trace in traces]
    assert bench.once_for_the_same(less, question, passed) == passed()
    assert bench.once_for_the_same(traces, question, lambda: failed("more")) == failed("more")


def test_derivatives_of_other_values_are_worked_out_anew():
    bench, own = Bench(Factory()), specimen("gemma3_local", torch.float32, "cpu")
    scenario = SCENARIO_BY_ID["prefill"]
    clean = bench.backward(own, scenario, "all").trace
    values = {**clean.values, "hook_v": clean.values["hook_v"] + 1}
    kept = bench.derivatives(own, scenario, "all", clean)
    again = bench.derivatives(own, scenario, "all", replace(clean, values=dict(clean.values)))
    other = bench.derivatives(own, scenario, "all", replace(clean, values=values))
    assert again is kept
    assert torch.equal(other.leaves["hook_v"], values["hook_v"].double())


class WrongWhereNobodyWatches(Factory):
    """The reference, which rotates wrongly wherever nobody watches the scores."""

    def layer(self, module, *, rotary, opted_in=()):
        stages = replace(STAGES, rotate=lambda x, *rest: STAGES.rotate(x, *rest) * 1.01)
        right, wrong = (
            factory.layer(module, rotary=rotary, opted_in=opted_in)
            for factory in (Factory(), Factory(stages=stages))
        )

        class Layer:
            def run(self, inputs, hooks=()):
                layer = right if "hook_attn_scores" in dict(hooks) else wrong
                return layer.run(inputs, hooks)

        return Layer()


def test_what_an_edit_leaves_alone_is_judged_all_the_same():
    """An edit of the value moves no rotated key: that this is wrong fails the question, as it did
    when every stage was worked out anew."""
    (question,) = (
        q
        for q in CHECK_BY_NAME["a_replacement_reaches_the_stages_nobody_watches"].questions(
            CASE_BY_ID["llama"], "float32", "cpu"
        )
        if (q.hook, q.scenario) == ("hook_v", "prefill")
    )
    for subject, outcome in ((Factory(), Outcome.PASS), (WrongWhereNobodyWatches(), Outcome.FAIL)):
        assert judge(Bench(subject), question).outcome == outcome
    verdict = judge(Bench(WrongWhereNobodyWatches()), question)
    assert verdict.divergent in ("hook_rot_q", "hook_rot_k")
