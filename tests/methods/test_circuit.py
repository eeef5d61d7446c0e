"""The hand-built model does what the other tests take for granted."""

import torch

from ropebridge.methods import logits_of


def test_the_previous_token_head_looks_one_back_and_the_induction_head_at_what_followed(
    circuit, prompts
):
    _, cache = circuit.run_with_cache(
        prompts, names_filter=lambda name: name.endswith("hook_pattern")
    )
    previous, induction = (
        cache["blocks.0.attn.hook_pattern"][:, 1],
        cache["blocks.1.attn.hook_pattern"][:, 2],
    )
    assert (previous.diagonal(-1, 1, 2) > 1 - 1e-9).all()
    assert induction[0, -1, 3] > 1 - 1e-9
    assert induction[1, -1, 2] > 1 - 1e-9


def test_the_answer_has_the_logit_that_copying_gives_and_the_others_none(circuit, prompts, answers):
    expected = torch.zeros(2, 12, dtype=torch.double).scatter(1, answers[:, None], 10.0)
    torch.testing.assert_close(logits_of(circuit, prompts)[:, -1], expected, rtol=0, atol=1e-4)


def test_without_a_match_the_induction_head_looks_everywhere_alike(circuit, corrupted, answers):
    torch.testing.assert_close(
        logits_of(circuit, corrupted)[:, -1].gather(1, answers[:, None]).flatten(),
        torch.full((2,), 10 / 7).double(),
        rtol=0,
        atol=1e-4,
    )
