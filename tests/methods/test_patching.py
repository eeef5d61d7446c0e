"""Activation, attribution and path patching, on the model whose circuit is known."""

import pytest
import torch

from ropebridge import UnknownHook, attach
from ropebridge.methods import (
    MethodError,
    activation_patching,
    answer_logit,
    attribution_patching,
    path_patching,
)

INTACT, UNIFORM = 10.0, 10 / 7


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


@pytest.fixture
def metric(answers):
    return answer_logit(answers)


def test_clean_activations_restore_the_answer_in_the_circuits_heads_alone(
    circuit, prompts, corrupted, metric
):
    got = activation_patching(circuit, corrupted, prompts, metric, quiet=True)
    close(
        got,
        torch.tensor([[UNIFORM, INTACT, UNIFORM, UNIFORM], [UNIFORM, UNIFORM, INTACT, UNIFORM]]),
    )


def test_by_position_the_previous_token_head_matters_where_the_answer_stands(
    circuit, prompts, corrupted, metric
):
    """The first prompt's answer stands at place 3, the last place asks."""
    got = activation_patching(
        circuit,
        corrupted[:1],
        prompts[:1],
        lambda logits: logits[0, -1, 7],
        each="pos head",
        quiet=True,
    )
    assert got.shape == (2, 7, 4)
    expected = torch.full((2, 7, 4), UNIFORM)
    expected[0, 3, 1] = expected[1, 6, 2] = INTACT
    close(got, expected)


@pytest.mark.parametrize("hook", ["hook_v", "hook_k", "hook_rot_k", "hook_q"])
def test_any_hook_point_can_be_patched_by_its_own_axes(circuit, prompts, corrupted, metric, hook):
    """The induction head's key carries what differs; its value (at the place of the answer) and its
    query do not."""
    axis = "head" if hook == "hook_q" else "kv_head"
    got = activation_patching(circuit, corrupted, prompts, metric, hook=hook, each=axis, quiet=True)
    close(
        got[1],
        torch.tensor(
            [UNIFORM, UNIFORM, INTACT if "k" in hook.removeprefix("hook_") else UNIFORM, UNIFORM]
        ),
    )


def test_patterns_can_be_patched_query_by_query(circuit, prompts, corrupted, metric):
    got = activation_patching(
        circuit, corrupted, prompts, metric, hook="hook_pattern", each="query", quiet=True
    )
    close(got[1], torch.tensor([UNIFORM] * 6 + [INTACT]))


def test_whole_layers_can_be_patched(circuit, prompts, corrupted, metric):
    close(
        activation_patching(
            circuit, corrupted, prompts, metric, hook="hook_out", each="", quiet=True
        ),
        torch.tensor([INTACT, INTACT]),
    )


def test_to_first_order_and_in_truth_are_one_where_the_metric_is_linear(
    circuit, prompts, corrupted, metric
):
    """The last layer's z reaches the logits by linear maps alone."""
    patched = activation_patching(circuit, corrupted, prompts, metric, each="pos head", quiet=True)
    attributed = attribution_patching(circuit, corrupted, prompts, metric, each="pos head")
    close(attributed[1], patched[1] - UNIFORM)
    close(
        attribution_patching(circuit, corrupted, prompts, metric)[1],
        torch.tensor([0, 0, INTACT - UNIFORM, 0]),
    )


def test_for_a_small_step_first_order_is_enough_in_every_layer(build, tokens):
    """A trained-size model, an embedding moved by a thousandth: attribution agrees with patching to
    second order."""
    model = build("llama").double()
    moved = model.get_input_embeddings().weight[tokens].detach()
    ours, theirs = (
        {"inputs_embeds": moved},
        {
            "inputs_embeds": (
                moved
                + 1e-3
                * torch.randn(moved.shape, generator=torch.Generator().manual_seed(0)).double()
            )
        },
    )

    def metric(logits):
        return logits[:, -1].square().mean()

    with attach(model) as bridged, torch.no_grad():
        base = metric(bridged(**ours).logits)
        patched = activation_patching(
            bridged, ours, theirs, lambda logits: (metric(logits) - base) * 1e4, quiet=True
        )
    with attach(model.requires_grad_(False)) as bridged:
        attributed = attribution_patching(
            bridged, ours, theirs, lambda logits: metric(logits) * 1e4
        )
    assert patched.abs().min() > 1e-4
    torch.testing.assert_close(attributed, patched, rtol=0.05, atol=1e-3)


def test_the_previous_token_head_speaks_to_the_induction_heads_key_alone(
    circuit, prompts, corrupted, metric
):
    """Of all senders and all three inputs, one path carries the answer."""
    found = {
        role: path_patching(
            circuit, prompts, corrupted, metric, receivers=[(1, 2, role)], quiet=True
        )
        for role in "qkv"
    }
    close(found["k"][0], torch.tensor([INTACT, UNIFORM, INTACT, INTACT]))
    for role in "qv":
        close(found[role][0], torch.full((4,), INTACT))
    assert all(table[1].isnan().all() for table in found.values())


def test_other_receivers_hear_nothing_of_use(circuit, prompts, corrupted, metric):
    others = [(1, head, role) for head in (0, 1, 3) for role in "qkv"]
    close(
        path_patching(circuit, prompts, corrupted, metric, receivers=others, quiet=True)[0],
        torch.full((4,), INTACT),
    )


def test_to_the_logits_the_induction_head_speaks_directly_and_the_previous_token_head_does_not(
    circuit, prompts, corrupted, metric
):
    """Held still, the induction head cannot hear that the previous-token head was changed."""
    close(
        path_patching(circuit, prompts, corrupted, metric, receivers="logits", quiet=True),
        torch.tensor([[INTACT] * 4, [INTACT, INTACT, UNIFORM, INTACT]]),
    )


def test_a_model_without_split_inputs_is_told_how_to_get_them(
    circuit_model, prompts, corrupted, metric
):
    with (
        attach(circuit_model) as bridged,
        pytest.raises(
            UnknownHook, match=r"it exists on request: attach\(model, use_split_qkv_input=True\)"
        ),
    ):
        path_patching(bridged, prompts, corrupted, metric, receivers=[(1, 2, "k")], quiet=True)


@pytest.mark.parametrize(
    ("receiver", "message"),
    [
        ((1, 2, "z"), r"receiver \(1, 2, 'z'\) listens at 'z'; it must be 'q', 'k' or 'v'"),
        ((2, 2, "k"), r"receiver \(2, 2, 'k'\) names layer 2; the model has 2, counted from 0"),
        (
            (1, 4, "k"),
            r"receiver \(1, 4, 'k'\) names head 4; layer 1 has 4 heads for k, counted from 0",
        ),
    ],
)
def test_a_receiver_that_is_not_there_is_refused(
    circuit, prompts, corrupted, metric, receiver, message
):
    with pytest.raises(MethodError, match=message):
        path_patching(circuit, prompts, corrupted, metric, receivers=[receiver], quiet=True)


@pytest.mark.parametrize("method", [activation_patching, attribution_patching])
@pytest.mark.parametrize(
    ("each", "message"),
    [
        (
            "key",
            (
                r"each='key' does not name axes of 'blocks.0.attn.hook_z'; choose from 'pos head"
                r" d_head_v', or '' for the whole layer"
            ),
        ),
        ("batch", r"each='batch' does not name axes"),
        (
            "head pos",
            (
                r"each='head pos' is not in the order of 'blocks.0.attn.hook_z', whose axes are"
                r" 'batch pos head d_head_v'"
            ),
        ),
    ],
)
def test_axes_that_the_hook_point_does_not_have_are_refused(
    circuit, prompts, corrupted, metric, method, each, message
):
    with pytest.raises(MethodError, match=message):
        method(circuit, prompts, corrupted, metric, each=each)


@pytest.mark.parametrize("method", [activation_patching, attribution_patching])
def test_runs_of_two_lengths_are_refused(circuit, prompts, metric, method):
    message = (
        r"others gave activations of shape \(2, 5, 4, 32\), and inputs have \(2, 7, 4, 32\); both"
        r" runs must have the same batch and length"
    )
    with pytest.raises(MethodError, match=message):
        method(circuit, prompts, prompts[:, :5], metric)


def test_a_hook_point_that_is_not_there_is_refused(circuit, prompts, corrupted, metric):
    with pytest.raises(UnknownHook, match="there is no hook point 'hook_resid'"):
        activation_patching(circuit, prompts, corrupted, metric, hook="hook_resid", quiet=True)


def test_a_metric_without_gradient_is_refused_for_attribution(circuit, prompts, corrupted):
    with pytest.raises(MethodError, match="a metric for attribution must be differentiable"):
        attribution_patching(circuit, prompts, corrupted, lambda logits: logits.detach().sum())


def test_attribution_leaves_no_gradients_behind(circuit, prompts, corrupted, metric):
    attribution_patching(circuit, prompts, corrupted, metric)
    assert all(parameter.grad is None for parameter in circuit.model.parameters())
