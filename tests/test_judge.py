"""The judge is judged: it kills mutants at their stage, calls blind inputs vacuous, and survives
bad subjects."""

import re
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace

import pytest
import torch

from few import few
from ropebridge_conformance.checks import CHECK_BY_NAME, CHECKS
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.compare import compare
from ropebridge_conformance.judging.ids import Id, read_id
from ropebridge_conformance.judging.judge import judge, plan, question_of
from ropebridge_conformance.judging.known_failures import KnownFailuresError, read_known_failures
from ropebridge_conformance.judging.questions import axes_clause, value_clause
from ropebridge_conformance.judging.verdicts import BAD, Outcome, Verdict, read_line
from ropebridge_conformance.mutants.catalogue import MUTANTS, foils
from ropebridge_conformance.mutants.mutant import shows_as
from ropebridge_conformance.results.files import ResultsError, read_results, write_results
from ropebridge_conformance.stages.context import STAGE_ORACLES, Expectation
from ropebridge_conformance.subjects.loading import SubjectError, load_subject
from ropebridge_conformance.subjects.reference import Factory
from ropebridge_conformance.zoo.calls import base_inputs
from ropebridge_conformance.zoo.scenarios import SCENARIO_BY_ID
from ropebridge_conformance.zoo.specimens import CASES, specimen

VALUES = "a_stage_gives_the_value_of_its_clause"


def question(
    check=VALUES,
    hook="hook_rot_q",
    case="llama",
    scenario="prefill",
    dtype="float32",
):
    return question_of(Id(check, hook, case, scenario, dtype, "cpu"))


def ask(subject=None, known=(), **fields):
    return judge(Bench(subject or Factory()), question(**fields), known)


# ---- vacuity ----


class NothingRotates:
    """Stands in for a rotary module whose angles are all 0."""

    def __init__(self, monkeypatch):
        frozen = dict(base_inputs(SCENARIO_BY_ID["prefill"], judged(), None, 0))
        cos, sin = frozen["position_embeddings"]
        frozen["position_embeddings"] = (torch.ones_like(cos), torch.zeros_like(sin))
        monkeypatch.setattr("ropebridge_conformance.zoo.calls.base_inputs", lambda *_: frozen)


def judged(case="llama", dtype=torch.float32):
    return specimen(case, dtype, "cpu")


def test_an_input_that_cannot_show_a_fault_is_vacuous(monkeypatch):
    """With every angle 0, right and wrong rotations agree: that is no pass."""
    NothingRotates(monkeypatch)
    verdict = ask()
    assert verdict.outcome == Outcome.VACUOUS
    assert "could not tell the right hook_rot_q from that of mutant 'sin_sign'" in verdict.reason


def test_an_edit_that_no_later_stage_could_notice_is_vacuous(monkeypatch):
    monkeypatch.setattr("ropebridge_conformance.checks.edits.nudged", lambda value: value.clone())
    verdict = ask(check="a_replacement_is_what_the_rest_of_the_layer_sees")
    assert verdict.outcome == Outcome.VACUOUS
    assert verdict.reason == "the stages after hook_rot_q would have passed without the edit too"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_zoo_can_show_every_fault_that_its_features_allow(case):
    """Each stage that computes has a foil in every family; where a layer does not rotate,
    hook_rot_q computes nothing."""
    layer = specimen(case.id, torch.float32, "cpu")
    for hook in ("hook_q", "hook_attn_scores", "hook_pattern", "hook_z", "hook_out"):
        assert foils(hook, layer, SCENARIO_BY_ID["prefill"])
    assert bool(foils("hook_rot_q", layer, SCENARIO_BY_ID["prefill"])) == (
        layer.variant.rotary is not None
    )
    assert bool(foils("hook_q_normed", layer, SCENARIO_BY_ID["prefill"])) == (
        layer.variant.norm is not None
    )


# ---- comparison ----


@pytest.mark.parametrize(
    ("got", "fits"),
    [
        ([1.0, 2.0], True),
        ([1.1, 2.0], True),
        ([1.2, 2.0], False),
        ([float("nan"), 2.0], False),
        ([float("inf"), 2.0], False),
    ],
    ids=["equal", "within", "outside", "nan", "infinite"],
)
def test_a_value_fits_within_its_bound_only(got, fits):
    expected = Expectation(
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        torch.tensor([0.15, 0.0], dtype=torch.float64),
    )
    assert compare(torch.tensor(got, dtype=torch.float64), expected).fits == fits


def test_forbidden_scores_must_be_minus_infinity_to_the_bit():
    expected = Expectation(torch.tensor([-torch.inf]), torch.tensor([0.0]))
    assert compare(torch.tensor([-torch.inf]), expected).fits
    assert not compare(torch.tensor([torch.finfo(torch.float32).min]), expected).fits


def test_a_bound_of_zero_asks_for_the_very_bits():
    assert not compare(
        torch.tensor([1.0 + 2**-23]), Expectation(torch.tensor([1.0]), torch.tensor([0.0]))
    ).fits


def test_the_worst_element_is_named():
    expected = Expectation(torch.zeros(2, 3), torch.ones(2, 3))
    got = torch.tensor([[0.0, 0.0, 0.5], [3.0, 0.0, 0.0]])
    worst = compare(got, expected)
    assert (worst.index, worst.error, worst.bound, worst.ratio) == ((1, 0), 3.0, 1.0, 3.0)


@pytest.mark.parametrize(("axis", "name"), [(0, "batch"), (1, "pos"), (2, "d_model")])
def test_a_value_that_is_the_same_along_an_axis_is_vacuous(monkeypatch, axis, name):
    """Also where no mutant computes the hook point otherwise."""
    given = dict(base_inputs(SCENARIO_BY_ID["prefill"], judged(), None, 0))
    x = given["hidden_states"]
    given["hidden_states"] = x.narrow(axis, 0, 1).expand_as(x).contiguous()
    monkeypatch.setattr("ropebridge_conformance.zoo.calls.base_inputs", lambda *_: given)
    verdict = ask(hook="hook_in")
    assert verdict.outcome == Outcome.VACUOUS
    assert verdict.reason.endswith(f"right hook_in from one turned by one along {name}")


# ---- subjects that misbehave ----


class Raising:
    name, unsupported = "raising", {}

    def layer(self, module, *, rotary, opted_in=()):
        raise RuntimeError("no such thing")


class Declaring:
    name = "declaring"
    unsupported = MappingProxyType(
        {"ROT-1": "rotation is not hooked here", "attn_result": "no results by head"}
    )

    def layer(self, module, *, rotary, opted_in=()):
        raise AssertionError("must not be asked")


class WrongShape:
    name, unsupported = "wrong", {}

    def layer(self, module, *, rotary, opted_in=()):
        inner = Factory().layer(module, rotary=rotary, opted_in=opted_in)

        class Layer:
            def run(self, inputs, hooks=()):
                shown = [
                    (
                        (n, lambda t, hook, fn=fn: fn(t[..., :-1], hook=hook))
                        if n == "hook_rot_q"
                        else (n, fn)
                    )
                    for n, fn in hooks
                ]
                return inner.run(inputs, shown)

        return Layer()


def test_a_subject_that_raises_fails_with_its_own_words():
    verdict = ask(Raising())
    assert (verdict.outcome, verdict.reason) == (Outcome.FAIL, "raised RuntimeError: no such thing")


def test_a_fault_of_the_judge_is_none_of_the_subject(monkeypatch):
    """With its traceback; the run goes on, and is not all right."""

    def broken(hook, context):
        raise ZeroDivisionError("planted")

    oracle = "ropebridge_conformance.stages.context.STAGE_ORACLES"
    monkeypatch.setattr(oracle, {**STAGE_ORACLES, "hook_z": broken})
    verdict = ask(Factory(), hook="hook_z")
    assert (verdict.outcome, verdict.divergent) == (Outcome.JUDGE_ERROR, None)
    assert "Traceback" in verdict.reason
    assert verdict.reason.rstrip().endswith("ZeroDivisionError: planted")
    assert verdict.outcome in BAD


def test_an_exception_while_a_subject_is_asked_is_its_own():
    """Wherever it comes from, also from a hook that the subject calls wrongly."""

    class Layer:
        def run(self, inputs, hooks=()):
            raise ZeroDivisionError("mine")

    subject = SimpleNamespace(name="s", unsupported={}, layer=lambda *a, **k: Layer())
    verdict = ask(subject)
    assert (verdict.outcome, verdict.reason) == (Outcome.FAIL, "raised ZeroDivisionError: mine")


@pytest.mark.parametrize(
    "hook", few(["hook_k"], ["hook_k", "hook_rot_q", "hook_z", "hook_out", "hook_cos"])
)
def test_a_tensor_of_another_shape_fails_at_its_hook_and_is_no_error_of_the_judge(hook):
    """Every question about the layer is put; what fails is that hook point, or follows it."""
    show = shows_as(hook, lambda t: t.transpose(-1, -2), lambda t: t.transpose(-1, -2))
    bench = Bench(replace(Factory(), name="turned", show=show))
    verdicts = [
        judge(bench, q)
        for q in plan(("llama",), ("float32",), ("cpu",))
        if q.scenario in ("prefill", "decode") and q.check not in SLOW
    ]
    bad = [v for v in verdicts if v.outcome in BAD and v.hook != hook]
    assert {v.outcome for v in bad} == {Outcome.FAIL}
    assert {v.follows or v.divergent for v in bad} == {hook}
    own = [v for v in verdicts if v.hook == hook and v.check.startswith("a_stage")]
    assert own
    assert all("has shape" in v.reason and "is required" in v.reason for v in own)


SLOW = ("a_hook_is_shown_a_contiguous_tensor_of_its_own", "layers_do_not_see_each_other")


def test_a_declared_gap_is_unsupported_and_says_why():
    verdict = ask(Declaring())
    assert (verdict.outcome, verdict.reason) == (Outcome.UNSUPPORTED, "rotation is not hooked here")


def test_a_declared_opt_in_covers_its_scenario():
    assert ask(Declaring(), hook="hook_out", scenario="split").outcome == Outcome.UNSUPPORTED


def test_a_wrong_shape_is_told_by_its_shape():
    verdict = ask(WrongShape())
    assert verdict.outcome == Outcome.FAIL
    assert verdict.divergent == "hook_rot_q"
    assert "(3, 13, 6, 19)" in verdict.reason


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere.at_all:Factory", "ModuleNotFoundError: No module named 'nowhere'"),
        ("ropebridge_conformance.subjects.reference:Nothing", "AttributeError"),
        ("ropebridge_conformance", "cannot load subject 'ropebridge_conformance'"),
        (
            "builtins:dict",
            "lacks name, unsupported, layer; ropebridge_spec.Subject says what a subject has",
        ),
    ],
    ids=["no_module", "no_factory", "no_colon", "not_a_subject"],
)
def test_a_subject_that_cannot_be_loaded_is_refused(path, words):
    with pytest.raises(SubjectError, match=words.replace("(", r"\(")):
        load_subject(path)


# ---- known failures ----


@pytest.fixture
def known(tmp_path):
    def write(text):
        path = tmp_path / "known.toml"
        path.write_text(text, encoding="utf-8")
        return read_known_failures(path)

    return write


FORETOLD = (
    '[[failure]]\nclause = "ROT-1"\nfamily = "llama"\nreason = "pairs are wrong"\nlink ='
    ' "https://example.org/1"\n'
)


def mutant(name):
    return next(m for m in MUTANTS if m.name == name).subject()


def test_a_listed_failure_is_known(known):
    verdict = ask(mutant("other_pairs"), known(FORETOLD))
    assert (verdict.outcome, verdict.reason) == (
        Outcome.KNOWN_FAILURE,
        "pairs are wrong https://example.org/1",
    )


def test_a_listed_failure_that_passes_fails(known):
    verdict = ask(Factory(), known(FORETOLD))
    assert verdict.outcome == Outcome.FAIL
    assert (
        verdict.reason
        == "passes, and is listed as a known failure (pairs are wrong); take it off the list"
    )


def test_what_was_not_listed_still_fails(known):
    assert ask(mutant("other_pairs"), known(FORETOLD), case="mistral").outcome == Outcome.FAIL


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[failure", "cannot read known failures"),
        (
            '[[failure]]\nclause = "ROT-1"\n',
            r"failure 1 has \['clause'\]; it needs clause and reason",
        ),
        ('[[failure]]\nclause = "A"\nreason = "b"\nseverity = "c"\n', "may have"),
    ],
    ids=["not_toml", "no_reason", "unknown_field"],
)
def test_a_bad_known_failures_file_is_refused(known, text, words):
    with pytest.raises(KnownFailuresError, match=words):
        known(text)


# ---- results ----

VERDICT = Verdict(
    "s",
    "ROT-1",
    "c",
    "hook_rot_q",
    "llama",
    "llama",
    "float32",
    "cpu",
    Outcome.FAIL,
    float("inf"),
    0.0,
    "hook_rot_q",
    0,
    "<b>",
    scenario="prefill",
)


def test_a_verdict_survives_its_json_line():
    assert read_line(VERDICT.line()) == VERDICT


def test_results_come_back_with_their_provenance(tmp_path):
    path = tmp_path / "new" / "folder" / "results.jsonl"
    write_results(path, [VERDICT, replace(VERDICT, error=None)], ["s"], ["cpu"])
    provenance, verdicts = read_results(path)
    assert provenance["torch"] == torch.__version__
    assert verdicts == [VERDICT, replace(VERDICT, error=None)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no results"),
        ("nonsense\n", "holds no results"),
        ('{"provenance": {}}\n[]\n', "line 2 is no verdict"),
    ],
    ids=["empty", "not_json", "not_a_verdict"],
)
def test_a_file_that_is_no_results_is_refused(tmp_path, text, words):
    path = tmp_path / "results.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ResultsError, match=words):
        read_results(path)


# ---- the plan ----


def test_ids_are_distinct_and_read_as_names():
    questions = list(plan(cases=["gemma3_local"], dtypes=("bfloat16",)))
    ids = [str(q.id) for q in questions]
    assert len(set(ids)) == len(ids)
    whole = "test_a_replacement_is_what_the_rest_of_the_layer_sees[hook_rot_q-gemma3_local-bfloat16"
    assert f"{whole}-cpu]" in ids
    assert [read_id(text) for text in ids] == [q.id for q in questions]


def test_every_check_begins_with_its_clause_and_has_a_test_of_its_name():
    from ropebridge_conformance import test_contract

    for check in CHECKS:
        assert hasattr(test_contract, f"test_{check.name}")
        said, kinds = check.ask.__doc__, {value_clause: "value", axes_clause: "axes"}
        by_hook = f"Hold the hook point to its {kinds.get(check.clause)} clause"
        first = re.split("[ :,;]", said)[0]
        assert first in check.clauses or said.startswith(by_hook), check.name
    assert len(CHECK_BY_NAME) == len(CHECKS)
