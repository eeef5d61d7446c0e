"""Methods at scale: variants as rows of one forward pass, and a choice of layers, heads and
positions."""

from __future__ import annotations

import pytest
import torch

from few import few
from ropebridge import attach
from ropebridge.methods import (
    MethodError,
    ablated,
    activation_patching,
    answer_logit,
    attention_knockout,
    attribution_patching,
    direct_logit_attribution,
    head_ablation,
    induction_scores,
    path_patching,
    repeated_tokens,
)

MODELS = ["llama", "gemma3", "gpt_oss"]
"""With windows, norms and sinks."""


@pytest.fixture(params=few(["gpt_oss"], MODELS))
def bridged(request, build):
    with attach(build(request.param), use_split_qkv_input=True) as bridged:
        yield bridged


@pytest.fixture
def others(tokens):
    return tokens.flip(1)


def metric(logits):
    return logits[:, -1, 7].mean() - logits[:, -1, 11].mean()


def passes(bridged):
    """A list that grows by one with each forward pass of the model."""
    found = []
    bridged.model.register_forward_pre_hook(lambda *_: found.append(1))
    return found


SWEEPS = {
    "ablation": lambda b, x, y, **more: head_ablation(b, x, metric, by="mean", **more),
    "resampling": lambda b, x, y, **more: head_ablation(
        b, x, metric, by="resample", others=y, **more
    ),
    "patching": lambda b, x, y, **more: activation_patching(b, x, y, metric, **more),
    "patching_places": lambda b, x, y, **more: activation_patching(
        b, x, y, metric, each="pos head", **more
    ),
    "patching_patterns": lambda b, x, y, **more: activation_patching(
        b, x, y, metric, hook="hook_pattern", each="head query", **more
    ),
    "knockout": lambda b, x, y, **more: attention_knockout(b, x, metric, [(-1, 2)], **more),
    "paths": lambda b, x, y, **more: path_patching(
        b, x, y, metric, receivers=[(1, 0, "q"), (1, 1, "k")], **more
    ),
    "paths_to_logits": lambda b, x, y, **more: path_patching(
        b, x, y, metric, receivers="logits", **more
    ),
}


@pytest.mark.parametrize("sweep", SWEEPS)
@torch.no_grad()
def test_many_at_once_gives_what_one_by_one_gives_in_fewer_passes(bridged, tokens, others, sweep):
    counted = passes(bridged)
    one_by_one = SWEEPS[sweep](bridged, tokens, others, at_once=1, quiet=True)
    alone = len(counted)
    counted.clear()
    together = SWEEPS[sweep](bridged, tokens, others, quiet=True)
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert float(one_by_one.nan_to_num(nan=0.0).std()) > 0
    assert len(counted) < alone


def test_padded_inputs_are_repeated_with_their_mask(bridged, tokens, left_padding):
    given = {"input_ids": tokens, "attention_mask": left_padding}
    one_by_one = head_ablation(bridged, given, metric, at_once=1, quiet=True)
    together = head_ablation(bridged, given, metric, quiet=True)
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-5)
    plain = head_ablation(bridged, tokens, metric, quiet=True)
    assert float((together - plain).abs().max()) > 1e-3


def test_inputs_that_are_no_rows_go_one_by_one(bridged, tokens):
    counted = passes(bridged)
    given = {"input_ids": tokens, "output_hidden_states": True}
    head_ablation(bridged, given, metric, quiet=True)
    assert len(counted) == sum(layer.variant.heads for layer in bridged.layers)


def test_fewer_than_one_at_once_is_refused(circuit, prompts, answers):
    with pytest.raises(MethodError, match=r"^at_once=0; it must be 1 set of hooks or more"):
        head_ablation(circuit, prompts, answer_logit(answers), at_once=0, quiet=True)


# ---- choices ----


@pytest.mark.parametrize(
    ("choice", "kept"),
    [
        ({"layers": [1]}, [(1, head) for head in range(4)]),
        ({"heads": [2]}, [(0, 2), (1, 2)]),
        ({"layers": [0], "heads": [1, 3]}, [(0, 1), (0, 3)]),
        ({"heads": [(0, 1), (1, 2)]}, [(0, 1), (1, 2)]),
    ],
)
@pytest.mark.parametrize("method", ["ablation", "patching", "attribution", "direct", "scores"])
def test_chosen_heads_have_their_value_and_the_others_nan(
    circuit, prompts, corrupted, answers, method, choice, kept
):
    measured = answer_logit(answers)
    repeats = repeated_tokens(2, 6, 12, seed=3)
    run = {
        "ablation": lambda **more: head_ablation(circuit, prompts, measured, quiet=True, **more),
        "patching": lambda **more: activation_patching(
            circuit, corrupted, prompts, measured, quiet=True, **more
        ),
        "attribution": lambda **more: attribution_patching(
            circuit, corrupted, prompts, measured, **more
        ),
        "direct": lambda **more: direct_logit_attribution(
            circuit, prompts, prompts.roll(-1, 1), **more
        ),
        "scores": lambda **more: induction_scores(circuit, repeats, 6, **more),
    }[method]
    whole, chosen = run(), run(**choice)
    here = torch.zeros(2, 4, dtype=torch.bool)
    here[tuple(zip(*kept, strict=True))] = True
    torch.testing.assert_close(chosen[here], whole[here], rtol=1e-5, atol=1e-5)
    assert chosen[~here].isnan().all()


def test_an_ablation_at_some_positions_is_one_there_alone(circuit, prompts, answers):
    """The previous-token head matters where the answer stands, before the last position asks."""
    measured = answer_logit(answers)
    everywhere = head_ablation(circuit, prompts, measured, quiet=True)
    first = head_ablation(circuit, prompts, measured, positions=[0], quiet=True)
    last = head_ablation(circuit, prompts, measured, positions=[-1], quiet=True)
    intact = measured(circuit(prompts).logits)
    torch.testing.assert_close(last[1, 2], everywhere[1, 2])
    torch.testing.assert_close(first[1, 2], intact.float(), rtol=1e-3, atol=1e-3)
    together = ablated(circuit, prompts, [(1, 2)], positions=[-1])
    torch.testing.assert_close(measured(together).float(), last[1, 2])


def test_patches_at_chosen_positions_are_those_of_the_whole_sweep(
    circuit, prompts, corrupted, answers
):
    measured = answer_logit(answers)
    whole = activation_patching(circuit, corrupted, prompts, measured, each="pos head", quiet=True)
    chosen = activation_patching(
        circuit, corrupted, prompts, measured, each="pos head", positions=[3, -1], quiet=True
    )
    torch.testing.assert_close(chosen[:, [3, 6]], whole[:, [3, 6]])
    assert chosen[:, [0, 1, 2, 4, 5]].isnan().all()
    layers = activation_patching(
        circuit, corrupted, prompts, measured, each="", heads=[(0, 1)], quiet=True
    )
    by_head = activation_patching(circuit, corrupted, prompts, measured, quiet=True)
    torch.testing.assert_close(layers[0], by_head[0, 1])
    assert layers[1].isnan()


def test_senders_and_windows_are_chosen(circuit, prompts, corrupted, answers):
    measured = answer_logit(answers)
    options = {"receivers": "logits", "quiet": True}
    whole = path_patching(circuit, corrupted, prompts, measured, **options)
    chosen = path_patching(circuit, corrupted, prompts, measured, heads=[(1, 2)], **options)
    torch.testing.assert_close(chosen[1, 2], whole[1, 2])
    assert int(chosen.isnan().sum()) == 7
    windows = attention_knockout(circuit, prompts, measured, [(-1, 3)], quiet=True)
    one = attention_knockout(circuit, prompts, measured, [(-1, 3)], layers=[1], quiet=True)
    torch.testing.assert_close(one[1], windows[1])
    assert one[0].isnan()
    elsewhere = attention_knockout(
        circuit, prompts, measured, [(-1, 3)], heads=[(1, 0)], quiet=True
    )
    torch.testing.assert_close(
        elsewhere, measured(circuit(prompts).logits).float().expand(2), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"layers": [5]}, "there is no head 0 in layer 5; the model has 2 layers"),
        ({"layers": [-1]}, "there is no head 0 in layer -1"),
        ({"heads": [4]}, "heads= names head 4; the chosen layers have 4 heads at most"),
        ({"heads": [(0, 9)]}, "there is no head 9 in layer 0"),
        ({"positions": [7]}, r"positions=\[7\] names position 7; the inputs have 7"),
        ({"heads": []}, "choose nothing; None chooses all"),
        ({"positions": []}, "choose nothing; None chooses all"),
    ],
)
def test_what_the_model_does_not_have_cannot_be_chosen(circuit, prompts, answers, choice, words):
    with pytest.raises(MethodError, match=words):
        head_ablation(circuit, prompts, answer_logit(answers), quiet=True, **choice)


# ---- attribution at scores ----


def test_attribution_at_scores_has_a_number_for_every_head(circuit, prompts, corrupted, answers):
    """A score that no query may see is -inf in both runs: it does not differ."""
    measured = answer_logit(answers)
    got = attribution_patching(
        circuit, corrupted, prompts, measured, hook="hook_attn_scores", each="head query"
    )
    assert got.isfinite().all()
    at_pattern = attribution_patching(
        circuit, corrupted, prompts, measured, hook="hook_pattern", each="head query"
    )
    assert got.shape == at_pattern.shape


def test_attribution_between_runs_that_are_masked_differently_is_refused(build, tokens):
    with attach(build("llama")) as bridged:
        mask = torch.ones_like(tokens)
        mask[:, :2] = 0
        with pytest.raises(MethodError, match=r"masked differently: at '.*attn_scores' one is"):
            attribution_patching(
                bridged,
                tokens,
                {"input_ids": tokens, "attention_mask": mask},
                metric,
                hook="hook_attn_scores",
            )


def test_scores_that_do_not_lie_in_the_second_half_are_refused(circuit):
    with pytest.raises(MethodError, match="no chosen position lies in the second half, which beg"):
        induction_scores(circuit, repeated_tokens(2, 6, 12), 6, positions=[0, 3])
