"""The reference by itself: known values, shapes that are enforced, and the purity its readers count
on."""

import math

import pytest
import torch

from ropebridge_conformance.zoo.specimens import specimen
from ropebridge_conformance.zoo.weights import read_weights
from ropebridge_reference import (
    Affine,
    Past,
    attention_layer,
    bias_of_mask,
    causal_bias,
    make_pattern,
    mix_values,
    normalise,
    padding_bias,
    rotate,
    score_keys,
    turns,
)
from ropebridge_spec import ContractError, Norm, Rotary, Variant

REACH = Variant(d_model=1, heads=1, kv_heads=1, d_head=2, d_head_v=1, scale=1.0, window=2)
NO_BIAS = torch.zeros(1, 1, 3, 3)


def quarter_turn(rotary):
    """One position, turned by 90 degrees."""
    width = rotary.table_width
    return turns(torch.zeros(1, 1, width), torch.ones(1, 1, width), rotary)


@pytest.mark.parametrize(
    ("rotary", "turned"),
    [
        (Rotary("half", 4, "full"), [-3.0, -4.0, 1.0, 2.0]),
        (Rotary("half", 4, "half"), [-3.0, -4.0, 1.0, 2.0]),
        (Rotary("interleaved", 4, "repeated"), [-2.0, 1.0, -4.0, 3.0]),
        (Rotary("half", 2, "full"), [-2.0, 1.0, 3.0, 4.0]),
    ],
    ids=["halves", "half_width_tables", "neighbours", "leading_dimensions_only"],
)
def test_a_quarter_turn_sends_a_b_to_minus_b_a(rotary, turned):
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    assert rotate(x, quarter_turn(rotary), rotary).flatten().tolist() == turned


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    """RoFormer's property: q at i with k at j gives what q at i + 3 with k at j + 3 gives."""
    rotary = Rotary("half", 8)
    angle = torch.arange(10)[None, :, None] * torch.tensor(
        [1.0, 0.3, 0.1, 0.03], dtype=torch.float64
    ).repeat(2)
    turn = turns(angle.cos(), angle.sin(), rotary)
    draw = torch.Generator().manual_seed(0)
    q, k = (
        torch.randn(1, 1, 1, 8, dtype=torch.float64, generator=draw).expand(1, 10, 1, 8)
        for _ in "qk"
    )
    dots = torch.einsum("bqhd,bkhd->qk", rotate(q, turn, rotary), rotate(k, turn, rotary))
    torch.testing.assert_close(dots[2, 1], dots[5, 4])
    torch.testing.assert_close(rotate(q, turn, rotary).norm(dim=-1), q.norm(dim=-1))


def test_each_copy_of_a_table_turns_its_own_row():
    """An edit of half a table is honoured: the other half still holds what it held."""
    rotary = Rotary("half", 2)
    x = torch.tensor([[[[3.0, 5.0]]]])
    turned = rotate(x, turns(torch.tensor([[[2.0, 7.0]]]), torch.zeros(1, 1, 2), rotary), rotary)
    assert turned.flatten().tolist() == [6.0, 35.0]


def test_adjacent_pairs_read_the_first_half_of_a_full_table_twice():
    """As in GLM, Helium and DeepSeek V3: an edit of the second half of the table does nothing."""
    rotary = Rotary("interleaved", 4)
    x = torch.tensor([[[[3.0, 5.0, 7.0, 9.0]]]])
    cos = torch.tensor([[[2.0, 10.0, -1.0, -1.0]]])
    turned = rotate(x, turns(cos, torch.zeros(1, 1, 4), rotary), rotary)
    assert turned.flatten().tolist() == [6.0, 10.0, 70.0, 90.0]


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        (Norm("rms", "head", 0.0), [3 / math.sqrt(12.5) * 2, 4 / math.sqrt(12.5) * 10]),
        (
            Norm("rms", "head", 0.0, weight="one_plus"),
            [3 / math.sqrt(12.5) * 3, 4 / math.sqrt(12.5) * 11],
        ),
        (Norm("layer", "head", 0.0), [-2.0, 10.0]),
        (Norm("rms", "head", 12.5), [3 / 5 * 2, 4 / 5 * 10]),
    ],
    ids=["rms", "one_plus", "layer", "eps_under_the_root"],
)
def test_norms_have_their_textbook_values(norm, expected):
    x, weight = (
        torch.tensor([[[[3.0, 4.0]]]], dtype=torch.float64),
        torch.tensor([2.0, 10.0], dtype=torch.float64),
    )
    torch.testing.assert_close(
        normalise(x, Affine(weight), norm).flatten(), torch.tensor(expected, dtype=torch.float64)
    )


def test_the_window_sees_itself_and_what_is_nearer_than_its_length():
    visible = causal_bias(torch.arange(5), torch.arange(5), REACH)[0, 0] == 0
    assert visible.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_padding_forbids_keys_for_every_query():
    """MASK-3."""
    assert padding_bias(torch.tensor([[False, True]])).flatten().tolist() == [-math.inf, 0.0]


def test_low_additive_entries_forbid_and_others_are_biases():
    """MASK-5."""
    lowest = torch.finfo(torch.float16).min
    mask = torch.tensor([lowest, lowest / 2, lowest / 4, -3.0, 0.0], dtype=torch.float16).reshape(
        1, 1, 1, 5
    )
    assert bias_of_mask(mask).flatten().tolist() == [-math.inf, -math.inf, lowest / 4, -3.0, 0.0]


def test_a_sink_takes_its_share_and_has_no_column():
    p = make_pattern(
        torch.zeros(1, 1, 1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    )
    assert p.flatten().tolist() == [0.25, 0.25, 0.25]


def test_a_row_that_sees_nothing_is_zero_and_has_finite_gradients():
    """MASK-6."""
    s = torch.full((1, 1, 1, 3), -math.inf, requires_grad=True)
    p = make_pattern(s, None)
    p.sum().backward()
    assert p.flatten().tolist() == [0.0, 0.0, 0.0]
    assert s.grad.isfinite().all()


def test_scores_are_capped_before_they_are_masked():
    variant = Variant(4, 1, 1, 2, 2, scale=1.0, softcap=2.0)
    q, k = torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])
    s = score_keys(q, k, torch.tensor([[[[0.0, -math.inf]]]]), variant)
    assert s.flatten().tolist() == [pytest.approx(2 * math.tanh(1.5)), -math.inf]


def test_query_heads_read_the_kv_head_of_their_group():
    """Head h mixes kv head h // group."""
    v = torch.tensor([10.0, 20.0]).reshape(1, 1, 2, 1)
    assert mix_values(torch.ones(1, 6, 1, 1), v).flatten().tolist() == [
        10.0,
        10.0,
        10.0,
        20.0,
        20.0,
        20.0,
    ]


def test_a_layer_that_rotates_needs_tables():
    judged = specimen("llama", torch.float32, "cpu")
    weights = read_weights(judged.module, judged.variant)
    with pytest.raises(ContractError, match="clause CFG-3 requires"):
        attention_layer(torch.ones(1, 3, 60), None, NO_BIAS, weights, judged.variant)


def test_a_past_continues_what_a_single_call_gives():
    """CACHE-1, for the reference as a function of a past."""
    judged = specimen("llama", torch.float64, "cpu")
    weights, x = (
        read_weights(judged.module, judged.variant),
        torch.randn(1, 7, 60, dtype=torch.float64),
    )
    cos, sin = judged.rotary(x, torch.arange(7)[None])
    bias = causal_bias(torch.arange(7), torch.arange(7), judged.variant)

    def call(rows, past):
        tables = (cos[:, rows], sin[:, rows])
        return attention_layer(
            x[:, rows], tables, bias[:, :, rows, : rows.stop], weights, judged.variant, past=past
        )

    first = call(slice(0, 4), None)
    second = call(slice(4, 7), Past(first.past.key, first.past.value))
    torch.testing.assert_close(torch.cat([first.out, second.out], 1), call(slice(0, 7), None).out)


def test_nothing_that_is_given_is_changed():
    judged = specimen("gemma3_local", torch.float32, "cpu")
    weights, x = read_weights(judged.module, judged.variant), torch.randn(1, 3, 60)
    before = (
        x.clone(),
        {
            name: value.clone()
            for name, value in vars(weights).items()
            if isinstance(value, torch.Tensor)
        },
    )
    attention_layer(
        x,
        judged.rotary(x, torch.arange(3)[None], "sliding_attention"),
        NO_BIAS,
        weights,
        judged.variant,
    )
    assert torch.equal(x, before[0])
    assert all(torch.equal(getattr(weights, name), value) for name, value in before[1].items())
