"""Layers that no family has: hypothesis draws what a layer computes, and both subjects must compute it alike."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from ropebridge.subject import Factory as Bridge
from ropebridge_conformance.bench import Bench, hooks_of
from ropebridge_conformance.compare import compare
from ropebridge_conformance.oracle import context_of, expect
from ropebridge_conformance.scenarios import Scenario, possible
from ropebridge_conformance.subjects.reference import Factory as Reference
from ropebridge_conformance.zoo import Specimen
from ropebridge_spec import Gate, Latent, Norm, Rotary, Temperature, Variant


class Weighted(nn.Module):
    """A norm: the formula of clause NORM-1, written a third time."""

    def __init__(self, norm, heads, width):
        super().__init__()
        shape = (heads * width,) if norm.over == "flat" else (heads, width) if norm.per_head else (width,)
        self.norm = norm
        if norm.weight != "none":
            self.weight = nn.Parameter(1 + 0.3 * torch.randn(shape))
        if norm.bias:
            self.bias = nn.Parameter(0.3 * torch.randn(shape))

    def forward(self, x):
        wide = x.float()
        wide = wide - wide.mean(-1, keepdim=True) if self.norm.kind == "layer" else wide
        unit = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.norm.eps)
        unit = unit.to(x.dtype) if self.norm.rounds_before_weight else unit
        if self.norm.weight != "none":
            unit = unit * (self.weight.float() + 1 if self.norm.weight == "one_plus" else self.weight)
        return (unit + self.bias if self.norm.bias else unit).to(x.dtype)


class ToyAttention(nn.Module):
    """Random weights of any variant; it has no forward of its own."""

    layer_idx = 0

    def __init__(self, variant, bias):
        super().__init__()
        v, in_query = variant, variant.gate is not None and variant.gate.in_query
        widths = {"q": v.heads * (v.d_head + (v.d_head_v if in_query else 0)), "k": v.kv_heads * v.d_head, "v": v.kv_heads * v.d_head_v}
        inward = {"q_proj": (v.d_model, widths["q"])} if v.latent is None or v.latent.q_rank is None else {}
        if v.latent is None:
            inward |= {"k_proj": (v.d_model, widths["k"]), "v_proj": (v.d_model, widths["v"])}
        else:
            inward |= self.latents(v)
        if v.gate is not None and not in_query:
            inward["gate_proj"] = (v.d_model, v.heads * (v.d_head_v if v.gate.per == "channel" else 1))
        for name, (rows, columns) in inward.items():
            setattr(self, name, nn.Linear(rows, columns, bias=bias and not name.endswith("b_proj") and not (v.gate and v.gate.bias and name == v.gate.module)))
        self.o_proj = nn.Linear(v.heads * v.d_head_v, v.d_model, bias=bias)
        heads = {"q_norm": (v.heads, v.d_head), "k_norm": (v.kv_heads, v.d_head), "v_norm": (v.kv_heads, v.d_head_v), "z_norm": (v.heads, v.d_head_v)}
        ranks = {"q_latent_norm": (1, v.latent.q_rank), "kv_latent_norm": (1, v.latent.kv_rank)} if v.latent else {}
        for role, name in v.norm_roles.items():
            setattr(self, name, Weighted(v.norm_in(role), *(heads | ranks)[role]))
        for name in filter(None, (v.sinks, v.gate and v.gate.bias)):
            setattr(self, name, nn.Parameter(torch.randn(v.heads)))

    @staticmethod
    def latents(v):
        """Names and widths of the projections of multi-head latent attention."""
        width = v.rotary.width if v.rotary else 2
        down = {v.latent.kv_down: (v.d_model, v.latent.kv_rank + width), v.latent.kv_up: (v.latent.kv_rank, v.heads * (v.d_head - width + v.d_head_v))}
        if v.latent.q_rank is None:
            return down
        return down | {v.latent.q_down: (v.d_model, v.latent.q_rank), v.latent.q_up: (v.latent.q_rank, v.heads * v.d_head)}

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None):
        raise NotImplementedError("judged by reference and bridge only")


class ToyRotary(nn.Module):
    """Tables of any layout."""

    def __init__(self, rotary):
        super().__init__()
        self.rotary = rotary

    def forward(self, x, position_ids):
        angle = position_ids[..., None].float() * 0.7 ** torch.arange(self.rotary.width // 2)
        if self.rotary.table == "complex":
            return torch.polar(torch.ones_like(angle), angle)
        lay = {"full": lambda t: torch.cat([t, t], -1), "repeated": lambda t: t.repeat_interleave(2, -1), "half": lambda t: t}
        return tuple(lay[self.rotary.table](t).to(x.dtype) for t in (angle.cos(), angle.sin()))


def norms(*places, weights=("scale", "one_plus", "none"), **names):
    """A norm over one of these (over, per head)."""
    return st.sampled_from(places).flatmap(
        lambda place: st.builds(
            Norm,
            kind=st.sampled_from(["rms", "layer"]),
            over=st.just(place[0]),
            eps=st.just(1e-5),
            weight=st.sampled_from(weights),
            bias=st.booleans(),
            per_head=st.just(place[1]),
            rounds_before_weight=st.booleans(),
            after_rotation=st.just(False),
            **{role: st.just(name) for role, name in names.items()},
        )
    )


def rotaries(width):
    """A rotation of this width."""
    return st.builds(
        Rotary,
        st.sampled_from(["half", "interleaved"]),
        st.just(width),
        st.sampled_from(["full", "repeated", "half", "complex"]),
        st.sampled_from(["input", "float32"]),
        st.sampled_from(["leading", "trailing"]),
        st.sampled_from(["forward", "backward"]),
    )


def gates():
    """A gate of either kind, with a projection of its own or in the query's."""
    activations = st.sampled_from(["sigmoid", "softplus"])
    own = st.builds(Gate, st.just("gate_proj"), activations, st.sampled_from(["channel", "head"]), bias=st.none() | st.just("gate_bias"))
    return own | st.builds(Gate, st.just("q_proj"), activations, in_query=st.just(True))


LATENTS = st.builds(
    Latent,
    kv_rank=st.integers(1, 6),
    q_rank=st.none() | st.integers(1, 6),
    norm=norms(("head", False), q="q_a_layernorm", k="kv_a_layernorm"),
    q_scale=st.sampled_from([1.0, 1.7]),
    kv_scale=st.sampled_from([1.0, 0.6]),
)


@st.composite
def variants(draw):
    """Any variant this version of the contract can say."""
    latent = draw(st.none() | st.none() | LATENTS)
    kv_heads, group, pairs = draw(st.integers(1, 3)), draw(st.integers(1, 3)) if latent is None else 1, draw(st.integers(1, 5))
    d_head = 2 * pairs + draw(st.integers(0 if latent is None else 1, 3))
    norm = None if latent else draw(st.none() | norms(("flat", False), ("head", False), ("head", True)))
    gate = draw(st.none() | gates())
    if latent is not None and gate is not None and gate.in_query:
        gate = None
    return Variant(
        d_model=draw(st.integers(1, 24)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        d_head=d_head,
        d_head_v=draw(st.integers(1, 9)),
        scale=draw(st.sampled_from([1.0, 0.3, d_head**-0.5, -0.5])),
        norm=norm and replace(norm, after_rotation=draw(st.booleans())),
        value_norm=draw(st.none() | norms(("head", False), q="v_norm", k="v_norm")),
        z_norm=draw(st.none() | norms(("head", False), ("flat", False), weights=("scale", "none"), q="o_norm", k="o_norm")),
        k_multiplier=draw(st.sampled_from([1.0, 0.7])),
        v_multiplier=draw(st.sampled_from([1.0, 1.3])),
        clip=draw(st.none() | st.just(0.4)),
        latent=latent,
        gate=gate,
        temperature=draw(st.none() | st.builds(Temperature, st.just(0.3), st.sampled_from([1.0, 2.0]), st.integers(0, 1), st.booleans())),
        rotary=draw(rotaries(2 * pairs) if latent else st.none() | rotaries(2 * pairs)),
        score_precision=draw(st.sampled_from(["input", "float32"])),
        softcap=draw(st.none() | st.sampled_from([0.5, 5.0])),
        sinks=draw(st.none() | st.just("sinks")),
        causal=draw(st.sampled_from([True, True, False])),
        window=draw(st.none() | st.integers(1, 6)),
        chunk=draw(st.none() | st.none() | st.integers(1, 6)),
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
@settings(max_examples=120, deadline=None, derandomize=True)
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
    assume(possible(scenario, variant))
    layer = toy(variant, dtype, bias, seed)
    judged = subject(families={"ToyAttention": variant})
    assert first_fault(judged, layer, scenario) is None
