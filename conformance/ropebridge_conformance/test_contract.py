"""The contract as tests, one function a check: see the check of the same name for what it does.

pytest -p ropebridge_conformance --pyargs ropebridge_conformance --subject package.module:Factory
"""

from __future__ import annotations

import pytest

from ropebridge_conformance.bench import Bench
from ropebridge_conformance.plugin import expect_pass
from ropebridge_conformance.questions import Question


def test_hooks_fire_once_in_contract_order(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_hook_watched_alone_fires_once(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_hook_has_the_axes_of_the_contract(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_stage_gives_the_value_of_its_clause(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_the_unwatched_stages_give_the_same_z(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_replacement_is_what_the_rest_of_the_layer_sees(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_an_edit_in_place_is_what_the_rest_of_the_layer_sees(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_zeroed_head_is_zero_for_the_rest_of_the_layer(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_replacement_reaches_the_stages_nobody_watches(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_looking_changes_nothing(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_looking_where_nothing_is_made_changes_no_bit(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_returned_weights_are_the_pattern(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_the_output_agrees_with_hugging_face(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_half_precision_is_as_near_the_truth_as_hugging_face(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_row_that_sees_no_key_is_zero(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_gradients_are_finite_where_a_row_sees_no_key(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_forbidden_key_changes_nothing(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
    expect_pass(subject_bench, question, pytestconfig)
