"""Clauses that only some families bring into play, each with values worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch

from ropebridge_reference import Affine, clip, gate, gated, heat, latent, normalise, temper
from ropebridge_spec import Gate, Latent, Norm, Rotary, Temperature, Variant, attended, hook_order
from ropebridge_spec.variant import Calling

PLAIN = Variant(d_model=4, heads=2, kv_heads=1, d_head=2, d_head_v=2, scale=1.0, norm=Norm("rms", "head", 1e-6), rotary=Rotary("half", 2))
LATE = replace(PLAIN, norm=Norm("rms", "head", 1e-6, after_rotation=True))
RMS = Norm("rms", "head", 0.0, "none")


def names(variant: Variant) -> list[str]:
    return [hook.name for hook in hook_order(variant)]


def test_a_norm_after_rotation_fires_after_it_and_its_key_is_kept() -> None:
    """NORM-3."""
    assert names(LATE)[4:10] == ["hook_cos", "hook_sin", "hook_rot_q", "hook_rot_k", "hook_q_normed", "hook_k_normed"]
    assert attended(LATE) == ("hook_q_normed", "hook_k_normed", "hook_v")
    assert attended(PLAIN) == ("hook_rot_q", "hook_rot_k", "hook_v")


def test_clipping_binds_on_both_sides() -> None:
    """CLIP-1."""
    assert clip(torch.tensor([-3.0, -0.5, 0.5, 3.0]), 1.0).tolist() == [-1.0, -0.5, 0.5, 1.0]


@pytest.mark.parametrize(("position", "factor"), [(0, 1.0), (3, 1.0), (4, 1 + 0.5 * math.log(2)), (8, 1 + 0.5 * math.log(3))])
def test_a_query_grows_warmer_with_its_position(position: int, factor: float) -> None:
    """SCORE-4."""
    kind = Temperature(beta=0.5, length=4)
    assert heat(torch.tensor([[position]]), kind).item() == pytest.approx(factor, rel=1e-12)
    assert temper(torch.ones(1, 1, 1, 2, dtype=torch.float64), torch.tensor([[position]]), kind).flatten().tolist() == pytest.approx([factor] * 2)


def test_a_temperature_may_count_from_one() -> None:
    """SCORE-4: the shift."""
    assert heat(torch.tensor([[3]]), Temperature(beta=1.0, length=4, shift=1)).item() == pytest.approx(1 + math.log(2))


def test_a_temperature_that_is_given_is_the_factor() -> None:
    """SCORE-4."""
    q = torch.ones(1, 2, 1, 1)
    assert temper(q, torch.tensor([[1.0, 3.0]]), Temperature(given="attention_scaling")).flatten().tolist() == [1.0, 3.0]


def test_a_layer_that_is_given_keys_and_values_has_no_hooks_for_its_own() -> None:
    """KV-1."""
    given = replace(PLAIN, kv_given="shared_kv_states")
    assert set(names(PLAIN)) - set(names(given)) == {"hook_k", "hook_v", "hook_k_normed", "hook_rot_k"}
    assert given.roles == {"q": "q_proj", "o": "o_proj"}
    assert not given.splits


def test_latents_are_brought_down_normed_and_scaled() -> None:
    """LAT-1."""
    x, down = torch.tensor([[[3.0, 4.0]]], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    got = latent(x, down, None, Affine(), RMS, 2.0)
    assert got.flatten().tolist() == pytest.approx([2 * 3 / math.sqrt(12.5), 2 * 4 / math.sqrt(12.5)])


def test_a_layer_with_latents_has_their_hooks_before_its_heads() -> None:
    """LAT-2."""
    with_latents = replace(PLAIN, kv_heads=2, norm=None, latent=Latent(kv_rank=3, q_rank=5, norm=RMS))
    assert names(with_latents)[1:4] == ["hook_q_latent", "hook_kv_latent", "hook_q"]


def test_the_gate_opens_by_its_activation() -> None:
    """GATE-1."""
    logits = torch.zeros(1, 1, 1, 1)
    assert gate(logits, Gate("gate_proj")).item() == 0.5
    assert gate(logits, Gate("gate_proj", "softplus")).item() == pytest.approx(math.log(2))


def test_the_gates_hook_has_no_width_where_there_is_one_gate_a_head() -> None:
    """GATE-2."""
    by_head = replace(PLAIN, gate=Gate("g_proj", per="head"))
    (spec,) = [hook for hook in hook_order(by_head) if hook.name == "hook_gate"]
    assert spec.axes == "batch pos head"
    assert [name for name in names(by_head) if "gate" in name] == ["hook_gate"]


def test_z_is_normed_before_it_is_gated() -> None:
    """MIX-1."""
    mixed, half = torch.tensor([[[[3.0, 4.0]]]]), torch.full((1, 1, 1), 0.5)
    torch.testing.assert_close(gated(mixed, half, Affine(), RMS), 0.5 * normalise(mixed, Affine(), RMS))


def test_what_a_layer_returns_is_part_of_its_description() -> None:
    assert Calling().returns == ("out", "pattern")
