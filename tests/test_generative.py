"""Layers that no family has: hypothesis draws what a layer computes, and both subjects must compute it alike."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from ropebridge.subject import Factory as Bridge
from ropebridge_conformance.bench import Bench, hooks_of
from ropebridge_conformance.compare import compare
from ropebridge_conformance.oracle import context_of, expect
from ropebridge_conformance.scenarios import Scenario
from ropebridge_conformance.subjects.reference import Factory as Reference
from ropebridge_conformance.zoo import Specimen
from ropebridge_spec import Norm, Rotary, Variant


class Weighted(nn.Module):
    """A q/k norm: the formula of clause NORM-1, written a third time."""

    def __init__(self, norm, heads, d_head):
        super().__init__()
        shape = (heads * d_head,) if norm.over == "flat" else (heads, d_head) if norm.per_head else (d_head,)
        self.weight, self.norm = nn.Parameter(1 + 0.3 * torch.randn(shape)), norm

    def forward(self, x):
        wide = x.float()
        wide = wide - wide.mean(-1, keepdim=True) if self.norm.kind == "layer" else wide
        unit = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.norm.eps)
        unit = unit.to(x.dtype) if self.norm.rounds_before_weight else unit
        return (unit * (self.weight.float() + 1 if self.norm.weight == "one_plus" else self.weight)).to(x.dtype)


class ToyAttention(nn.Module):
    """Random weights of any variant; it has no forward of its own."""

    layer_idx = 0

    def __init__(self, variant, bias):
        super().__init__()
        v = variant
        self.q_proj = nn.Linear(v.d_model, v.heads * v.d_head, bias=bias)
        self.k_proj = nn.Linear(v.d_model, v.kv_heads * v.d_head, bias=bias)
        self.v_proj = nn.Linear(v.d_model, v.kv_heads * v.d_head_v, bias=bias)
        self.o_proj = nn.Linear(v.heads * v.d_head_v, v.d_model, bias=bias)
        if v.norm is not None:
            self.q_norm, self.k_norm = Weighted(v.norm, v.heads, v.d_head), Weighted(v.norm, v.kv_heads, v.d_head)
        if v.sinks is not None:
            self.sinks = nn.Parameter(torch.randn(v.heads))

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None):
        raise NotImplementedError("judged by reference and bridge only")


class ToyRotary(nn.Module):
    """Tables of any layout."""

    def __init__(self, rotary):
        super().__init__()
        self.rotary = rotary

    def forward(self, x, position_ids):
        angle = position_ids[..., None].float() * 0.7 ** torch.arange(self.rotary.width // 2)
        lay = {"full": lambda t: torch.cat([t, t], -1), "repeated": lambda t: t.repeat_interleave(2, -1), "half": lambda t: t}
        return tuple(lay[self.rotary.table](t).to(x.dtype) for t in (angle.cos(), angle.sin()))


@st.composite
def variants(draw):
    """Any variant this version of the contract can say."""
    kv_heads, group, pairs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    d_head = 2 * pairs + draw(st.integers(0, 3))
    over, per_head = draw(st.sampled_from([("flat", False), ("head", False), ("head", True)]))
    kinds, weights = st.sampled_from(["rms", "layer"]), st.sampled_from(["scale", "one_plus"])
    norm = st.builds(Norm, kinds, st.just(over), st.just(1e-5), weights, st.just(per_head), st.booleans())
    rotary = st.builds(
        Rotary,
        st.sampled_from(["half", "interleaved"]),
        st.just(2 * pairs),
        st.sampled_from(["full", "repeated", "half"]),
        st.sampled_from(["input", "float32"]),
    )
    return Variant(
        d_model=draw(st.integers(1, 24)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        d_head=d_head,
        d_head_v=draw(st.integers(1, 9)),
        scale=draw(st.sampled_from([1.0, 0.3, d_head**-0.5, -0.5])),
        norm=draw(st.none() | norm),
        rotary=draw(st.none() | rotary),
        softcap=draw(st.none() | st.sampled_from([0.5, 5.0])),
        sinks=draw(st.none() | st.just("sinks")),
        window=draw(st.none() | st.integers(1, 6)),
    )


def scenarios():
    """Any way of calling that the judge has, in any size."""
    return st.builds(
        Scenario,
        id=st.just("drawn"),
        says=st.just("drawn"),
        mask=st.sampled_from(["additive", "boolean", "none"]),
        left_padding=st.just(0),
        steps=st.integers(0, 2),
        opted_in=st.sampled_from([(), ("attn_result",), ("split_qkv_input",), ("attn_in", "attn_result")]),
        batch=st.integers(1, 3),
        pos=st.integers(3, 9),
    )


def toy(variant, dtype, bias, seed):
    torch.manual_seed(seed)
    rotary = ToyRotary(variant.rotary or Rotary("half", 2))
    return Specimen(ToyAttention(variant, bias).to(dtype).eval().requires_grad_(False), rotary, variant, dtype, torch.device("cpu"))


def first_fault(subject, layer, scenario):
    """The first stage outside its bound, or out of order, in any call; with everything watched, and with scores and pattern unwatched."""
    bench = Bench(subject)
    order = [hook.name for hook in hooks_of(layer, scenario)]
    for watch in ("all", "fused"):
        for trace in bench.traces(layer, scenario, watch):
            if trace.fired != [name for name in order if watch == "all" or name not in ("hook_attn_scores", "hook_pattern")]:
                return f"fired {trace.fired}"
            context = context_of(trace, layer, scenario)
            for name in trace.fired:
                difference = compare(trace.values[name], expect(name, context))
                if not difference.fits:
                    return f"{name} is off by {difference.ratio} bounds ({watch})"
    return None


MINIMAL = Variant(d_model=1, heads=1, kv_heads=1, d_head=2, d_head_v=1, scale=1.0)
FULL = Variant(
    d_model=12,
    heads=6,
    kv_heads=2,
    d_head=10,
    d_head_v=7,
    scale=0.3,
    norm=Norm("layer", "flat", 1e-5, "one_plus", rounds_before_weight=True),
    rotary=Rotary("interleaved", 6, "full", "float32"),
    softcap=0.5,
    sinks="sinks",
    window=3,
)


@pytest.mark.parametrize("subject", [Reference, Bridge], ids=["reference", "bridge"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    variant=variants(),
    scenario=scenarios(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
@example(variant=MINIMAL, scenario=Scenario("drawn", "", batch=1, pos=3), dtype=torch.float32, bias=False, seed=0)
@example(
    variant=FULL,
    scenario=Scenario("drawn", "", "none", steps=2, opted_in=("split_qkv_input", "attn_result")),
    dtype=torch.bfloat16,
    bias=True,
    seed=1,
)
@example(variant=FULL, scenario=Scenario("drawn", "", "boolean", opted_in=("attn_in",)), dtype=torch.float64, bias=True, seed=2)
def test_any_layer_is_computed_stage_by_stage_as_the_contract_says(subject, variant, scenario, dtype, bias, seed):
    layer = toy(variant, dtype, bias, seed)
    judged = subject(families={"ToyAttention": variant})
    assert first_fault(judged, layer, scenario) is None
