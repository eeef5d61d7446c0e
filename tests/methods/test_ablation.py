"""Head ablation, on the model whose circuit is known."""

import pytest
import torch

from ropebridge import attach
from ropebridge.methods import MethodError, ablated, answer_logit, head_ablation

INTACT, UNIFORM = 10.0, 10 / 7
"""The answer's logit where the induction head copies, and where it looks at all seven tokens
alike."""


def table(**changed):
    """(layer, head): the metric untouched, but where it is said to change."""
    expected = torch.full((2, 4), INTACT)
    for (layer, head), value in {(int(k[1]), int(k[3])): v for k, v in changed.items()}.items():
        expected[layer, head] = value
    return expected


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


def test_zero_ablation_finds_the_two_heads_of_the_circuit_and_no_other(circuit, prompts, answers):
    """Without the previous token at hand the induction head looks at all alike; without the
    induction head there is nothing."""
    close(
        head_ablation(circuit, prompts, answer_logit(answers), quiet=True),
        table(L0H1=UNIFORM, L1H2=0.0),
    )


def test_mean_ablation_leaves_what_the_head_says_on_average(circuit, prompts, answers):
    """The mean of z over batch and positions says a little of each answer."""
    _, cache = circuit.run_with_cache(prompts, names_filter="blocks.1.attn.hook_z")
    mean = cache["blocks.1.attn.hook_z"][:, :, 2].mean((0, 1))
    expected = 10 * mean[answers].mean()
    got = head_ablation(circuit, prompts, answer_logit(answers), by="mean", quiet=True)
    assert 0.5 < expected < 5
    close(got[1], torch.tensor([INTACT, INTACT, float(expected), INTACT]))


def test_the_mean_can_be_that_of_other_inputs_and_leaves_padding_out(circuit, prompts, answers):
    """Over prompts of one token, repeated, the induction head says that token alone; padding would
    say nothing, or another."""
    others = {
        "input_ids": torch.tensor([[7] * 7, [3] * 2 + [7] * 5]),
        "attention_mask": torch.tensor([[1] * 7, [0] * 2 + [1] * 5]),
    }
    got = head_ablation(
        circuit, prompts, lambda logits: logits[0, -1, 7], by="mean", others=others, quiet=True
    )
    close(got[1, 2], torch.tensor(10.0))
    got = head_ablation(
        circuit,
        prompts,
        lambda logits: logits[0, -1, 7],
        by="mean",
        others={"input_ids": others["input_ids"]},
        quiet=True,
    )
    assert got[1, 2] < 9.9


def test_resampling_says_what_the_neighbour_said(circuit, prompts, answers):
    """Each row is then given the other's answer."""
    wrong = answers.flip(0)
    assert (
        head_ablation(circuit, prompts, answer_logit(answers), by="resample", quiet=True)[
            1, 2
        ].abs()
        < 1e-3
    )
    close(
        head_ablation(circuit, prompts, answer_logit(wrong), by="resample", quiet=True)[1],
        torch.tensor([0.0, 0.0, INTACT, 0.0]),
    )


def test_resampling_from_other_inputs(circuit, prompts, corrupted, answers):
    close(
        head_ablation(
            circuit, prompts, answer_logit(answers), by="resample", others=corrupted, quiet=True
        )[1],
        torch.tensor([10.0, 10.0, UNIFORM, 10.0]),
    )


def test_heads_can_be_ablated_together(circuit, prompts):
    """Every head at once leaves the embedding alone, which the unembedding does not read."""
    logits = ablated(circuit, prompts, [(layer, head) for layer in range(2) for head in range(4)])
    assert logits.shape == (2, 7, 12)
    assert logits.abs().max() < 1e-6
    torch.testing.assert_close(
        ablated(circuit, prompts, [(0, 0), (0, 2)])[:, -1].max(-1).values,
        torch.full((2,), 10.0).double(),
        rtol=0,
        atol=1e-3,
    )


def test_the_model_is_as_it_was_afterwards(circuit, prompts, answers):
    before = circuit(prompts).logits
    head_ablation(circuit, prompts, answer_logit(answers), quiet=True)
    assert torch.equal(circuit(prompts).logits, before)


def test_a_progress_bar_is_shown_and_can_be_silenced(circuit, prompts, answers, capsys):
    head_ablation(circuit, prompts, answer_logit(answers))
    assert "zero ablation" in capsys.readouterr().err
    head_ablation(circuit, prompts, answer_logit(answers), quiet=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {"by": "median"},
            "by='median' is no way to ablate; it must be 'zero', 'mean' or 'resample'",
            id="way",
        ),
        pytest.param(
            {"by": "resample"},
            "a batch of one has no other row to resample from; pass others=, inputs of the same"
            " shape",
            id="one row",
        ),
        pytest.param(
            {"by": "resample", "others": torch.ones(1, 5, dtype=torch.long)},
            "others gave values of shape (1, 5, 4, 32), and inputs have (1, 7, 4, 32); both runs"
            " must have the same batch and length\n  choose prompts of one length, or pad both"
            " alike",
            id="shapes",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(circuit, prompts, options, message):
    with pytest.raises(MethodError) as raised:
        head_ablation(circuit, prompts[:1], lambda logits: logits.mean(), quiet=True, **options)
    assert str(raised.value) == message


def test_a_head_that_is_not_there_is_refused(circuit, prompts):
    with pytest.raises(
        MethodError,
        match=(
            r"there is no head 4 in layer 1; the model has 2 layers, of \[4, 4\] heads, both"
            r" counted from 0"
        ),
    ):
        ablated(circuit, prompts, [(1, 4)])


def test_a_metric_that_is_not_one_number_is_refused(circuit, prompts):
    with pytest.raises(
        MethodError,
        match=r"^the metric returned a tensor of shape \(2, 7\); it must return one",
    ):
        head_ablation(circuit, prompts, lambda logits: logits[..., 0], quiet=True)
    with pytest.raises(
        MethodError,
        match="the metric returned str; it must return one number: take",
    ):
        head_ablation(circuit, prompts, lambda logits: "1.0", quiet=True)


def test_a_metric_may_return_a_python_number(circuit, prompts):
    as_tensor = head_ablation(circuit, prompts, lambda logits: logits[0, -1, 0], quiet=True)
    as_float = head_ablation(circuit, prompts, lambda logits: float(logits[0, -1, 0]), quiet=True)
    assert torch.equal(as_float, as_tensor)


def test_a_model_without_logits_is_refused(circuit_model, prompts):
    with (
        attach(circuit_model.model) as bridged,
        pytest.raises(
            MethodError, match="LlamaModel returned BaseModelOutputWithPast without logits"
        ),
    ):
        head_ablation(bridged, prompts, lambda logits: logits.mean(), quiet=True)
