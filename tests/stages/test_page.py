"""A mutant is the reference's page with one function replaced; the page itself knows nothing of
it."""

from dataclasses import fields, replace

import pytest
import torch

from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.stages.functions import STAGES
from ropebridge_conformance.stages.masks import MASKING
from ropebridge_conformance.stages.page import layer_of
from ropebridge_conformance.subjects.reference import Factory
from ropebridge_conformance.zoo.scenarios import SCENARIO_BY_ID
from ropebridge_conformance.zoo.specimens import specimen
from ropebridge_reference import attention, attention_layer, score_keys


def test_the_right_functions_are_the_page_that_everybody_imports():
    assert layer_of(STAGES) is attention_layer
    assert layer_of(replace(STAGES)) is attention_layer


@pytest.mark.parametrize("name", [field.name for field in fields(STAGES)])
def test_a_function_that_a_mutant_replaces_is_a_name_of_the_page(name):
    """A function that the page no longer calls by this name could not be replaced."""
    if name not in MASKING:
        assert getattr(attention, name) is getattr(STAGES, name)


def test_a_replaced_function_is_called_and_the_page_stays_as_it_was():
    """Two layers run by turns: each with its own functions."""
    own = specimen("llama", torch.float32, "cpu")
    twice = replace(STAGES, score_keys=lambda *args: 2 * score_keys(*args))
    held = []
    for stages in (STAGES, twice, STAGES):
        (trace,) = Bench(Factory(stages=stages)).traces(own, SCENARIO_BY_ID["prefill"], "all")
        held.append(trace.values["hook_attn_scores"])
    assert held[1].equal(2 * held[0])
    assert held[2].equal(held[0])
    assert attention.score_keys is score_keys
