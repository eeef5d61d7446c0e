"""Clauses that only some families bring into play, each with values worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch

from ropebridge_reference import (
    Affine,
    Weights,
    adapt,
    bias_keys,
    clip,
    exclude,
    make_latent,
    norm_and_gate,
    normalise,
    of_the_largest,
    open_gate,
    scale_by_temperature,
    selection_bias,
    side_by_side,
    strength,
    subtract,
    temperature_at,
)
from ropebridge_spec import (
    Differential,
    Gate,
    KeyBias,
    Latent,
    Norm,
    Projections,
    Rotary,
    Selector,
    Source,
    Temperature,
    Variant,
    attention_inputs,
    hook_before,
    hook_chain,
    hook_order,
)
from ropebridge_spec.variant import Calling

PLAIN = Variant(
    d_model=4,
    heads=2,
    kv_heads=1,
    d_head=2,
    d_head_v=2,
    scale=1.0,
    norm=Norm("rms", "head", 1e-6),
    rotary=Rotary("half", 2),
)
LATE = replace(PLAIN, norm=Norm("rms", "head", 1e-6, after_rotation=True))
RMS = Norm("rms", "head", 0.0, "none")


def names(variant: Variant) -> list[str]:
    return [hook.name for hook in hook_order(variant)]


def test_a_norm_after_rotation_fires_after_it_and_its_key_is_kept() -> None:
    """NORM-3."""
    assert names(LATE)[4:10] == [
        "hook_cos",
        "hook_sin",
        "hook_rot_q",
        "hook_rot_k",
        "hook_q_normed",
        "hook_k_normed",
    ]
    assert attention_inputs(LATE) == ("hook_q_normed", "hook_k_normed", "hook_v")
    assert attention_inputs(PLAIN) == ("hook_rot_q", "hook_rot_k", "hook_v")
    assert hook_chain("k", LATE) == ("hook_k", "hook_rot_k", "hook_k_normed")
    assert hook_before("hook_k_normed", LATE) == "hook_rot_k"
    assert hook_chain("k", PLAIN) == ("hook_k", "hook_k_normed", "hook_rot_k")
    assert hook_before("hook_rot_k", replace(PLAIN, norm=None)) == "hook_k"
    deep = replace(PLAIN, norm=None, latent=Latent(kv_rank=3, q_rank=5, norm=RMS))
    assert hook_chain("q", deep) == ("hook_q", "hook_rot_q")


def test_clipping_binds_on_both_sides() -> None:
    """CLIP-1."""
    assert clip(torch.tensor([-3.0, -0.5, 0.5, 3.0]), 1.0).tolist() == [-1.0, -0.5, 0.5, 1.0]


@pytest.mark.parametrize(
    ("position", "factor"),
    [(0, 1.0), (3, 1.0), (4, 1 + 0.5 * math.log(2)), (8, 1 + 0.5 * math.log(3))],
)
def test_a_query_grows_warmer_with_its_position(position: int, factor: float) -> None:
    """SCORE-4."""
    kind = Temperature(beta=0.5, length=4)
    assert temperature_at(torch.tensor([[position]]), kind).item() == pytest.approx(
        factor, rel=1e-12
    )
    assert scale_by_temperature(
        torch.ones(1, 1, 1, 2, dtype=torch.float64), torch.tensor([[position]]), kind
    ).flatten().tolist() == pytest.approx([factor] * 2)


def test_a_temperature_may_count_from_one() -> None:
    """SCORE-4: the shift."""
    assert temperature_at(
        torch.tensor([[3]]), Temperature(beta=1.0, length=4, shift=1)
    ).item() == pytest.approx(1 + math.log(2))


def test_a_temperature_that_is_given_is_the_factor() -> None:
    """SCORE-4."""
    q = torch.ones(1, 2, 1, 1)
    assert scale_by_temperature(
        q, torch.tensor([[1.0, 3.0]]), Temperature(factor_argument="attention_scaling")
    ).flatten().tolist() == [1.0, 3.0]


def test_a_layer_that_is_given_keys_and_values_has_no_hooks_for_its_own() -> None:
    """KV-1."""
    given = replace(PLAIN, shared_kv_argument="shared_kv_states")
    assert set(names(PLAIN)) - set(names(given)) == {
        "hook_k",
        "hook_v",
        "hook_k_normed",
        "hook_rot_k",
    }
    assert given.roles == {"q": "q_proj", "o": "o_proj"}
    assert not given.splits


def test_latents_are_brought_down_normed_and_scaled() -> None:
    """LAT-1."""
    x, down = torch.tensor([[[3.0, 4.0]]], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    got = make_latent(x, down, None, Affine(), RMS, 2.0)
    assert got.flatten().tolist() == pytest.approx(
        [2 * 3 / math.sqrt(12.5), 2 * 4 / math.sqrt(12.5)]
    )


def test_a_layer_with_latents_has_their_hooks_before_its_heads() -> None:
    """LAT-2."""
    with_latents = replace(
        PLAIN, kv_heads=2, norm=None, latent=Latent(kv_rank=3, q_rank=5, norm=RMS)
    )
    assert names(with_latents)[1:4] == ["hook_q_latent", "hook_kv_latent", "hook_q"]


def test_the_gate_opens_by_its_activation() -> None:
    """GATE-1."""
    logits = torch.zeros(1, 1, 1, 1)
    assert open_gate(logits, Gate("gate_proj")).item() == 0.5
    assert open_gate(logits, Gate("gate_proj", "softplus")).item() == pytest.approx(math.log(2))


def test_the_gates_hook_has_no_width_where_there_is_one_gate_a_head() -> None:
    """GATE-2."""
    by_head = replace(PLAIN, gate=Gate("g_proj", per="head"))
    (spec,) = [hook for hook in hook_order(by_head) if hook.name == "hook_gate"]
    assert spec.axes == "batch pos head"
    assert [name for name in names(by_head) if "gate" in name] == ["hook_gate"]


def test_z_is_normed_before_it_is_gated() -> None:
    """MIX-1."""
    mixed, half = torch.tensor([[[[3.0, 4.0]]]]), torch.full((1, 1, 1), 0.5)
    torch.testing.assert_close(
        norm_and_gate(mixed, half, Affine(), RMS), 0.5 * normalise(mixed, Affine(), RMS)
    )


def test_what_a_layer_returns_is_part_of_its_description() -> None:
    assert Calling().returns == ("out", "pattern")


def test_the_latent_as_it_was_may_stand_beside_the_normed_one() -> None:
    """LAT-1."""
    x, down = torch.tensor([[[3.0, 4.0]]], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    assert make_latent(x, down, None, Affine(), RMS, 2.0, True).flatten().tolist() == pytest.approx(
        [6 / math.sqrt(12.5), 8 / math.sqrt(12.5), 3, 4]
    )
    beside = replace(
        PLAIN, kv_heads=2, norm=None, latent=Latent(kv_rank=3, q_rank=5, norm=RMS, q_beside=True)
    )
    assert beside.latent is not None
    assert beside.latent.q_width == 10


def test_a_query_sees_the_keys_that_were_picked_for_it() -> None:
    """SEL-1."""
    picked = torch.tensor([[[[True, False], [False, True]]]])
    assert selection_bias(picked).tolist() == [[[[0.0, -math.inf], [-math.inf, 0.0]]]]
    assert names(replace(PLAIN, selector=Selector("indexer", "keys"))) == names(PLAIN)


def test_of_a_pair_of_heads_the_second_is_subtracted() -> None:
    """DIFF-1: two heads of values 1 and 2 side by side, strength e^2 - e^6 + 0.5."""
    kind, lambdas = (
        Differential(0.5),
        torch.tensor([[1.0, 1.0], [1.0, 1.0], [2.0, 1.0], [2.0, 2.0]], dtype=torch.float64),
    )
    much = math.exp(2) - math.exp(6) + 0.5
    assert strength(lambdas, kind).item() == pytest.approx(much)
    assert side_by_side(torch.tensor([[[[1.0], [2.0]]]])).tolist() == [[[[1.0, 2.0], [1.0, 2.0]]]]
    z = torch.tensor([[[[5.0, 7.0], [1.0, 2.0]]]], dtype=torch.float64)
    assert subtract(z, lambdas, kind).flatten().tolist() == pytest.approx([5 - much, 7 - 2 * much])


def test_a_pair_of_heads_has_one_place_in_z() -> None:
    """DIFF-1."""
    paired = replace(PLAIN, kv_heads=2, norm=None, differential=Differential(0.2))
    axes = {hook.name: hook.axes for hook in hook_order(paired, ("attn_result",))}
    assert axes["hook_pattern"] == "batch head query key"
    assert axes["hook_z"] == "batch pos pair d_pair"
    assert axes["hook_result"] == "batch pos pair d_model"
    assert (paired.z_heads, paired.d_z, paired.z_multiplier) == (1, 4, 0.8)
    with pytest.raises(
        ValueError, match=r"Variant\.kv_heads is 1; differential attention has kv heads in pairs"
    ):
        replace(paired, kv_heads=1)


def test_a_key_is_biased_by_its_values() -> None:
    """SCORE-5: exp(A softplus(v . W)) with A = 2, v . W = 0 and log 3."""
    variant = replace(PLAIN, key_bias=KeyBias(keep=1))
    weights = Weights(
        W_Q=torch.ones(2, 4, 2),
        W_O=torch.ones(2, 2, 4),
        W_dt=torch.ones(1, 1, 2),
        A=torch.tensor([2.0]),
    )
    v = torch.tensor([[[[0.0, 0.0]], [[math.log(3), 0.0]]]])
    biases = bias_keys(v, weights, variant)
    assert biases.shape == (1, 2, 1, 2)
    assert biases[0, 0, 0].tolist() == pytest.approx([4.0, 16.0])
    assert not variant.splits


def test_a_query_sees_so_many_keys_of_the_largest_bias_among_those_it_may_see() -> None:
    """SCORE-5."""
    biases, mask = torch.tensor([[[[4.0, 16.0, 9.0]]]]), torch.tensor([[[[0.0, -math.inf, 0.0]]]])
    assert of_the_largest(biases, mask, 1).flatten().tolist() == [-math.inf, -math.inf, 9.0]
    assert of_the_largest(biases, mask, 3).flatten().tolist() == [4.0, -math.inf, 9.0]


def test_the_part_along_a_querys_own_value_is_taken_from_its_mix() -> None:
    """MIX-3: z = (1, 2), own value along the first axis, tanh(alpha) = 1/2."""
    z, v, alpha = (
        torch.tensor([[[[1.0, 2.0]]]]),
        torch.tensor([[[[3.0, 0.0]]]]),
        torch.tensor([math.atanh(0.5)]),
    )
    assert exclude(z, v, alpha).flatten().tolist() == pytest.approx([0.5, 2.0])


def test_values_that_are_rotated_have_a_hook_of_their_own() -> None:
    """ROT-3."""
    turning = replace(PLAIN, rotary=Rotary("half", 2, values=True))
    assert names(turning)[names(turning).index("hook_rot_k") + 1] == "hook_rot_v"
    assert attention_inputs(turning)[2] == "hook_rot_v"


def test_keys_of_another_sequence_have_positions_of_both() -> None:
    """KV-2."""
    axes = {
        hook.name: hook.axes
        for hook in hook_order(replace(PLAIN, source=Source("context_hidden_states", "before")))
    }
    assert axes["hook_kv_in"] == "batch source d_model"
    assert axes["hook_q"] == "batch pos head d_head"
    assert (
        axes["hook_k"]
        == axes["hook_k_normed"]
        == axes["hook_rot_k"]
        == "batch kv_pos kv_head d_head"
    )
    assert axes["hook_cos"] == "table_batch kv_pos rotary_dim"
    after = {
        hook.name: hook.axes
        for hook in hook_order(replace(PLAIN, source=Source("encoder_hidden_states", "after")))
    }
    assert after["hook_cos"] == "table_batch pos rotary_dim"


def test_an_adapter_is_added_to_its_projection() -> None:
    """PROJ-1: 10 and x (1, 2) through down (1, 1) and up 5."""
    y, x = torch.tensor([[[[10.0]]]]), torch.tensor([[[[1.0, 2.0]]]])
    assert adapt(y, x, (torch.ones(2, 1), torch.tensor([[[5.0]]]))).item() == 25.0
    assert not replace(PLAIN, projections=Projections(beside="linear_{}_adapter_list")).splits


def test_a_layer_may_give_back_another_width() -> None:
    """OUT-2."""
    axes = {hook.name: hook.axes for hook in hook_order(replace(PLAIN, d_out=6), ("attn_result",))}
    assert axes["hook_out"] == "batch pos d_out"
    assert axes["hook_result"] == "batch pos head d_out"
    assert axes["hook_in"] == "batch pos d_model"
