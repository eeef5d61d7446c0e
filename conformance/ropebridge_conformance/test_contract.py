"""Contract as tests, one function per check: see the check of the same name for what it does.

pytest -p ropebridge_conformance --pyargs ropebridge_conformance \\
    --ropebridge-subject package.module:Factory
"""

from __future__ import annotations

import pytest

from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.questions import Question
from ropebridge_conformance.plugin import expect_pass


def test_hooks_fire_once_in_contract_order(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_hook_watched_alone_fires_once(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_hook_has_the_axes_of_the_contract(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_stage_gives_the_value_of_its_clause(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_the_unwatched_stages_give_the_same_z(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_replacement_is_what_the_rest_of_the_layer_sees(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_an_edit_in_place_is_what_the_rest_of_the_layer_sees(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_zeroed_head_is_zero_for_the_rest_of_the_layer(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_an_edit_at_one_position_is_what_the_rest_of_the_layer_sees(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_an_edit_in_place_stays_in_the_layer(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_hook_is_shown_a_contiguous_tensor_of_its_own(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_replacement_reaches_the_stages_nobody_watches(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_parts_hold_what_the_whole_would(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_an_edit_of_a_part_is_what_the_rest_of_the_layer_sees(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_hooks_of_parts_see_what_those_before_left(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_parts_alone_make_nothing_of_size_query_by_key(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_watching_costs_no_accuracy(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_looking_changes_nothing(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_looking_where_nothing_is_made_changes_no_bit(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_returned_weights_are_the_pattern(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_the_output_agrees_with_hugging_face(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_half_precision_is_as_near_the_truth_as_hugging_face(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_the_mask_is_the_whole_truth(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_two_axis_mask_says_which_keys_are_padding(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_without_a_mask_the_layers_own_reach_holds(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_row_that_sees_no_key_is_zero(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_gradients_are_finite_where_a_row_sees_no_key(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_forbidden_key_changes_nothing(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_the_selector_is_given_what_the_hooks_left(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_steps_from_a_cache_add_up_to_the_whole(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_an_edit_of_one_heads_input_moves_that_head_alone(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_the_gradient_at_a_hook_is_the_derivative(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_the_gradient_is_the_same_where_nothing_is_made(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_backward_hook_sees_the_gradient(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_backward_hook_may_replace_the_gradient(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_hook_point_that_is_not_there_is_refused(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_replacement_that_does_not_fit_is_refused(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_scores_that_are_no_numbers_are_refused(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_mask_that_does_not_fit_is_refused(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_the_errors_of_a_stage_do_not_lean(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_large_scores_stay_within_their_bounds(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_rotation_reads_its_tables_as_the_class_does(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_rotation_is_exact_at_far_positions(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_dropout_comes_after_the_pattern_and_in_training_alone(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_output_dropout_comes_after_hook_out(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_nothing_of_size_query_by_key_is_made_where_nobody_watches(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_no_number_is_read_on_the_way(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_layer_runs_on_meta(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_layers_do_not_see_each_other(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_hook_that_raises_leaves_nothing_behind(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_the_module_is_left_as_it_is(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_forbidden_key_stays_forbidden(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_an_argument_that_is_not_understood_is_refused(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)


def test_a_step_leaves_its_positions_in_the_cache(
    subject_bench: Bench, question: Question, pytestconfig: pytest.Config
) -> None:
    expect_pass(subject_bench, question, pytestconfig)
