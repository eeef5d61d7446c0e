"""Attention knockout, on the model whose circuit is known."""

import pytest
import torch

from ropebridge.methods import MethodError, answer_logit, attention_knockout, knocked_out

INTACT = 10.0


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


@pytest.fixture
def first(prompts):
    """(1, 7): the answer, 7, stands at place 3, after the first 5; the last place asks."""
    return prompts[:1]


@pytest.fixture
def metric():
    return answer_logit(torch.tensor([7]))


def test_the_induction_head_cannot_answer_without_seeing_the_answer(circuit, first, metric):
    """Kept from place 3, it looks at the six others alike, and 7 stands at none of them."""
    close(
        attention_knockout(circuit, first, metric, [(-1, 3)], quiet=True),
        torch.tensor([INTACT, 0.0]),
    )


def test_the_previous_token_head_cannot_tell_the_answers_place_what_came_before(
    circuit, first, metric
):
    """Cut at (3, 2) in the first layer, it tells place 3 that 3's own token came before: no match,
    and all look alike."""
    close(
        attention_knockout(circuit, first, metric, [(3, 2)], quiet=True),
        torch.tensor([10 / 7, INTACT]),
    )


def test_other_pairs_do_not_matter(circuit, first, metric):
    close(
        attention_knockout(circuit, first, metric, [(-1, 2), (-1, 4), (5, 1)], quiet=True),
        torch.tensor([INTACT, INTACT]),
    )


def test_a_window_cuts_layers_together(circuit, first, metric):
    close(
        attention_knockout(circuit, first, metric, [(-1, 3)], window=2, quiet=True),
        torch.tensor([0.0, 0.0]),
    )


def test_single_heads_can_be_cut(circuit, first):
    """In the head that copies it matters, in all the others together it does not."""
    close(
        knocked_out(circuit, first, [(6, 3)], heads=[(1, 2)])[0, -1, 7].float(), torch.tensor(0.0)
    )
    others = [(layer, head) for layer in range(2) for head in range(4) if (layer, head) != (1, 2)]
    close(
        knocked_out(circuit, first, [(6, 3)], heads=others)[0, -1, 7].float(), torch.tensor(INTACT)
    )


def test_a_query_that_sees_nothing_says_nothing(circuit, first):
    logits = knocked_out(circuit, first, [(6, key) for key in range(7)])
    assert logits[0, -1].abs().max() < 1e-6
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], r"no pair to knock out; pass \(query, key\) positions: pairs=\[\(-1, 0\)\]"),
        ([(7, 0)], r"the pair \(query, key\) \(7, 0\) lies outside of 7 queries and 7 keys"),
        ([(0, -8)], r"the pair \(query, key\) \(0, -8\) lies outside of 7 queries and 7 keys"),
        (
            [(2, 3)],
            (
                r"the pair \(query, key\) \(2, 3\) has its key after its query, which does not see"
                r" it anyway; is it turned round\?"
            ),
        ),
    ],
)
def test_pairs_that_cut_nothing_are_refused(circuit, first, metric, pairs, message):
    with pytest.raises(MethodError, match=message):
        attention_knockout(circuit, first, metric, pairs, quiet=True)


def test_a_window_of_no_layers_is_refused(circuit, first, metric):
    with pytest.raises(MethodError, match="window=0; it must be 1 layer or more"):
        attention_knockout(circuit, first, metric, [(-1, 3)], window=0, quiet=True)


def test_a_layer_that_is_not_there_is_refused(circuit, first):
    with pytest.raises(MethodError, match="there is no head 0 in layer 2"):
        knocked_out(circuit, first, [(-1, 3)], layers=[2])
