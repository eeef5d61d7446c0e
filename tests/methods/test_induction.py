"""Induction heads: on the model whose circuit is known, and on one that learned its own."""

import subprocess
import sys

import pytest
import torch

from ropebridge import attach
from ropebridge.methods import MethodError, induction_scores, repeated_tokens, repeats_loss
from ropebridge.methods.induction import describe_induction, find_induction
from ropebridge.methods.tiny import VOCABULARY, train_on_repeats

pytestmark = pytest.mark.slow

PERIOD = 6


@pytest.fixture(scope="session")
def distinct():
    """(3, 13): a token of its own, then six different tokens, and again."""
    drawn = torch.stack(
        [
            torch.randperm(12, generator=torch.Generator().manual_seed(seed))[: PERIOD + 1]
            for seed in range(3)
        ]
    )
    return torch.cat([drawn, drawn[:, 1:]], 1)


def test_of_the_known_circuit_the_induction_head_is_found_and_no_other(circuit, distinct):
    scores = induction_scores(circuit, distinct, PERIOD)
    assert scores.shape == (2, 4)
    assert scores[1, 2] > 1 - 1e-6
    assert scores[scores < scores.max()].max() < 0.3


def test_tokens_need_no_beginning_of_their_own(circuit, distinct):
    """The first place has none before it and tells that its own token came before: one query in six
    looks at two places."""
    assert induction_scores(circuit, distinct[:, 1:], PERIOD)[1, 2] == pytest.approx(
        5.5 / 6, abs=1e-6
    )


def test_of_the_known_circuit_ablation_and_knockout_confirm_it(circuit, distinct):
    """A logit of 10 over eleven of 0 is a loss of 0.0005; nothing known is log 12. Blind, it looks
    at all others alike."""
    found = find_induction(circuit, distinct, PERIOD, quiet=True)
    assert found.heads == [(1, 2)]
    assert found.loss == pytest.approx(0.0005, abs=1e-4)
    assert found.losses[0, 1] > 1
    assert found.losses[0, [0, 2, 3]].max() < 0.001
    assert found.without > 1
    assert found.blind > 1
    assert found.blind_beside == pytest.approx(found.loss, abs=1e-4)
    assert describe_induction(found).count("<- induction head") == 1


@pytest.fixture(scope="session")
def trained():
    """A model that learned to continue what repeats."""
    return train_on_repeats(quiet=True)


@pytest.mark.every
def test_a_trained_model_has_induction_heads_and_they_are_what_it_continues_by(trained):
    tokens = repeated_tokens(16, 19, VOCABULARY, seed=1)
    with attach(trained) as bridged:
        found = find_induction(bridged, tokens, 19, quiet=True)
    assert {layer for layer, _ in found.heads} == {1}, (
        "the first layer has nobody to read the token before from"
    )
    assert found.scores[found.heads[0]] > 0.4
    assert found.scores[0].max() < 0.2
    assert found.loss < 0.8
    assert found.without > found.loss + 1
    assert found.blind > found.loss + 1
    assert found.blind_beside < found.loss + 0.3


def test_an_untrained_model_has_none(build):
    with (
        attach(build("llama", vocab_size=VOCABULARY)) as bridged,
        pytest.raises(
            MethodError, match=r"no head has an induction score of 0.4; the highest is 0\.\d\d, of"
        ),
    ):
        find_induction(bridged, repeated_tokens(4, 10, VOCABULARY), 10, quiet=True)


def test_training_that_did_not_learn_is_an_error_and_not_a_model():
    with pytest.raises(
        MethodError,
        match=(
            r"after 3 steps the loss is 2\.\d\d and not 0\.3; give it more steps, or another seed"
            r" than 5"
        ),
    ):
        train_on_repeats(seed=5, steps=3, quiet=True)


def test_training_is_repeatable_and_leaves_torchs_random_state_alone(monkeypatch):
    monkeypatch.setattr("ropebridge.methods.tiny.LEARNED", 99.0)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one = train_on_repeats(quiet=True)
    assert torch.equal(torch.rand(3), expected)
    two = train_on_repeats(quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_repeated_tokens_repeat_and_may_begin_with_one():
    tokens = repeated_tokens(3, 5, 20, seed=2, first=10, begin=1)
    assert tokens.shape == (3, 11)
    assert (tokens[:, 0] == 1).all()
    assert torch.equal(tokens[:, 1:6], tokens[:, 6:])
    assert tokens[:, 1:].min() >= 10
    assert len({tuple(row) for row in tokens.tolist()}) == 3


def test_the_loss_is_that_of_what_can_be_known():
    """All but the first token of the second half; what the logits say elsewhere does not count."""
    tokens = repeated_tokens(2, 4, 9)
    logits = torch.full((2, 8, 9), 0.0)
    logits[:, 4:7].scatter_(2, tokens[:, 5:, None], 50.0)
    assert repeats_loss(tokens, 4)(logits) < 1e-6
    logits[:, 4] = 0
    assert repeats_loss(tokens, 4)(logits) == pytest.approx(
        torch.tensor(9.0).log().item() / 3, abs=1e-5
    )


@pytest.mark.parametrize("period", [1, 5, 7])
def test_tokens_that_do_not_repeat_are_refused(circuit, distinct, period):
    with pytest.raises(
        MethodError,
        match=(
            rf"tokens of shape \(3, 13\) do not repeat after period={period}; make them with"
            r" repeated_tokens"
        ),
    ):
        induction_scores(circuit, distinct, period)


@pytest.mark.every
def test_the_command_shows_the_table(monkeypatch, capsys, trained):
    from ropebridge.methods import induction

    monkeypatch.setattr("ropebridge.methods.tiny.train_on_repeats", lambda: trained)
    induction.main()
    said = capsys.readouterr().out
    assert "<- induction head" in said
    assert "loss on the repeated half, in nats" in said


@pytest.mark.every
def test_the_command_is_where_it_is_said_to_be():
    code = (
        "import runpy, sys; import ropebridge.methods.tiny as t; t.STEPS = 1;"
        " t.train_on_repeats.__kwdefaults__['steps'] = 1; "
    )
    code += (
        "sys.modules.pop('ropebridge.methods.induction');"
        " runpy.run_module('ropebridge.methods.induction', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MethodError: after 1 steps the loss is" in done.stderr
