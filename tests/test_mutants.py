"""The judge is judged: every mutant is killed at its stage, no equivalent change is, and every
clause has a check that kills a mutant of it."""

import pytest

from few import few
from ropebridge_conformance.checks import CHECKS
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.clauses import NOT_ASKED
from ropebridge_conformance.judging.judge import judge
from ropebridge_conformance.judging.trial import Trial, correct_runs, survives, try_mutant
from ropebridge_conformance.judging.verdicts import BAD
from ropebridge_conformance.mutants.catalogue import MUTANT_BY_NAME, MUTANTS
from ropebridge_conformance.mutants.equivalent import EQUIVALENTS
from ropebridge_conformance.results.kills import count, equivalent_table, kill_table
from ropebridge_conformance.zoo.specimens import COVER
from ropebridge_spec import CLAUSES, HOOK_BY_NAME

pytestmark = pytest.mark.slow

DTYPES = ("float32", "bfloat16")
ELSEWHERE = {
    "norm_in_float32": "float64",
    "scores_in_float32": "float64",
    "softmax_in_float32": "float64",
}
"""Faults that neither of the two dtypes can show, and one that can."""

JUDGED = [clause.id for clause in CLAUSES if clause.id not in NOT_ASKED]


FIRST = {mutant.breaks: mutant for mutant in reversed(MUTANTS)}
"""The first mutant of each clause."""


@pytest.mark.parametrize(
    "mutant", few(list(FIRST.values()), MUTANTS), ids=lambda mutant: mutant.name
)
def test_a_mutant_is_killed_at_its_stage(mutant):
    """In float32, or where that cannot show the fault in another dtype; `make mutants` tries all of
    them in all."""
    trial = try_mutant(mutant, "float32")
    if not trial.exercised:
        other = ELSEWHERE.get(mutant.name, "bfloat16")
        trial = try_mutant(mutant, other)
        assert trial.exercised, "no dtype can show this fault"
    assert trial.killed
    assert trial.named, f"killed at {trial.killer.divergent}: {trial.killer.reason}"


HONEST = {equivalent.mutant.stage: equivalent for equivalent in EQUIVALENTS}
"""The last of each stage."""


@pytest.mark.parametrize(
    "equivalent",
    few(list(HONEST.values()), EQUIVALENTS),
    ids=lambda equivalent: equivalent.mutant.name,
)
def test_a_change_that_is_no_fault_is_not_killed(equivalent):
    """In bfloat16, on one layer; `make mutants` tries three in every dtype."""
    verdicts = list(survives(equivalent, "bfloat16", cases=("gpt_oss_local",)))
    assert len(verdicts) > 10
    assert not [v.reason for v in verdicts if v.outcome in BAD]
    assert equivalent.proof


def test_there_are_as_many_mutants_as_are_promised():
    assert len(MUTANTS) >= 120
    assert len(MUTANT_BY_NAME) == len(MUTANTS), "names are distinct"
    assert not set(MUTANT_BY_NAME) & {equivalent.mutant.name for equivalent in EQUIVALENTS}


@pytest.mark.parametrize("hook", HOOK_BY_NAME)
def test_there_is_a_mutant_for_every_hook_point_but_copies(hook):
    """hook_v_input is made as hook_k_input is, hook_q_gate as hook_gate."""
    stages = {stage for mutant in MUTANTS for stage in (mutant.stage, *mutant.also)}
    assert hook in stages or hook in ("hook_v_input", "hook_attn_in", "hook_q_gate")


@pytest.mark.parametrize("clause", JUDGED)
def test_a_clause_has_a_check_and_a_mutant(clause):
    assert any(clause in check.clauses for check in CHECKS), "no check decides it"
    assert any(mutant.breaks == clause for mutant in MUTANTS), "no mutant breaks it"


@pytest.mark.parametrize("clause", JUDGED)
def test_a_check_of_the_clause_kills_a_mutant_of_the_clause(clause):
    assert any(killed_by_its_clause(mutant) for mutant in MUTANTS if mutant.breaks == clause)


def killed_by_its_clause(mutant):
    """Whether a check of the clause that a mutant breaks fails it, on any layer, in a dtype that
    can show it."""
    arms = [check for check in CHECKS if mutant.breaks in check.clauses]
    bench = Bench(mutant.subject())
    questions = (
        q
        for dtype in DTYPES
        for case in COVER
        for arm in arms
        for q in arm.questions(case, dtype, "cpu")
    )
    return any(
        judge(bench, q).outcome in BAD for q in questions if mutant.applies(q.specimen, q.situation)
    )


def test_a_correct_run_is_never_called_wrong():
    """In one dtype, every twentieth; `make mutants` tries them all in all."""
    runs = list(correct_runs("bfloat16", every=20))
    assert len(runs) > 25
    assert not any(runs)


def test_a_correct_run_that_is_not_is_noticed(monkeypatch):
    wrong = MUTANT_BY_NAME["scale_twice"].subject()
    monkeypatch.setattr("ropebridge_conformance.judging.trial.Factory", lambda: wrong)
    assert next(correct_runs("float32")) == "hook_attn_scores"


def test_the_kill_table_counts_what_was_killed_and_where():
    name = "scale_twice"
    survivor = Trial(name, "float32", None, True)
    hidden = Trial(name, "float64", None, False)
    assert count([survivor, hidden]) == "[red]0/0/1[/red]"
    assert count([hidden]) == "-"
    table = kill_table([survivor, hidden])
    assert list(table.columns[0].cells) == ["hook_attn_scores", "all"]
    assert [column.header for column in table.columns] == ["stage", "float32", "float64", "all"]
    assert equivalent_table().row_count == len(EQUIVALENTS)
