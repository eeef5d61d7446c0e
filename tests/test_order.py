"""A run in a random order: the same verdicts of a right subject, and the end of one that leans on
what came before."""

from collections import Counter

import pytest
import torch

from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.judge import judge
from ropebridge_conformance.judging.planning import Selection, units_of
from ropebridge_conformance.judging.profiles import PROFILE_BY_NAME
from ropebridge_conformance.judging.running import Begun, Run
from ropebridge_conformance.judging.verdicts import BAD, Outcome
from ropebridge_conformance.judging.worker import Loaded
from ropebridge_conformance.mutants.mutant import turns_to
from ropebridge_conformance.subjects.reference import Factory

pytestmark = pytest.mark.slow

CHECKS = ("the_output_agrees_with_hugging_face", "a_hook_watched_alone_fires_once")
NARROWED = Selection(("llama", "qwen3", "mistral"), ("float32",), ("cpu",), CHECKS)


def tasks(order):
    run = Run(["here:Subject"], NARROWED, PROFILE_BY_NAME["default"], None, (), 1, 1.0, order)
    begun = Begun(run, units_of(run.subjects, NARROWED), "", {"here:Subject": Loaded("subject")})
    assert begun.expected == sum(len(task.questions) for task in begun.tasks)
    assert f'"order": {"null" if order is None else order}' in begun.header
    return begun.tasks


def verdicts(subject, order):
    """The verdicts, each with its layer; one bench for each layer, as a process keeps."""
    made = []
    for task in tasks(order):
        bench = Bench(subject())
        made += [judge(bench, question) for question in task.questions]
    return Counter((v.id, v.outcome) for v in made)


def ids(order):
    return [question.id for task in tasks(order) for question in task.questions]


def test_a_seed_is_an_order_of_layers_and_of_their_questions():
    plain, mixed = ids(None), ids(7)
    assert sorted(map(str, mixed)) == sorted(map(str, plain))
    assert ids(7) == mixed
    assert len({str(order) for order in (plain, mixed, ids(8))}) == 3
    layers = [task.key for task in tasks(7)]
    assert sorted(layers) == sorted(task.key for task in tasks(None))
    assert layers != [task.key for task in tasks(None)]


def test_a_right_subject_is_right_in_any_order():
    plain = verdicts(Factory, None)
    assert plain == verdicts(Factory, 7)
    assert {outcome for _, outcome in plain} == {Outcome.PASS}


class Leaning:
    """Give what is right for as long as the layers come in the order of the zoo."""

    name, unsupported = "leaning", {}
    widest = 0

    def layer(self, module, *, rotary, opted_in=()):
        rank = ("llama", "mistral", "qwen3").index(type(module).__module__.split(".")[2])
        wrong, Leaning.widest = rank < Leaning.widest, max(rank, Leaning.widest)
        show = turns_to("hook_out", torch.neg) if wrong else Factory().show
        return Factory(show=show, unsupported={}).layer(module, rotary=rotary, opted_in=opted_in)


def test_a_subject_that_leans_on_what_came_before_fails_in_another_order(monkeypatch):
    monkeypatch.setattr(Leaning, "widest", 0)
    assert not [outcome for _, outcome in verdicts(Leaning, None) if outcome in BAD]
    monkeypatch.setattr(Leaning, "widest", 0)
    assert [outcome for _, outcome in verdicts(Leaning, 7) if outcome in BAD]
