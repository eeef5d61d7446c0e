"""Strategies for hypothesis: what a layer computes, how it is called, and a layer of random weights
that does so.

For anyone who wants to try an implementation on layers that no family has:

    from hypothesis import given
    from ropebridge_conformance.strategies import drawn_layers, first_fault

    @given(drawn=drawn_layers())
    def test_my_bridge(drawn):
        assert first_fault(MyFactory(families={"ToyAttention": drawn.variant}), drawn) is None

What is drawn is a configuration: sizes, features, dtype, mask, cache, hooks and a seed. Tensors
come of the seed, so a failure shrinks to the smallest layer that shows it, and not to tensors of
noughts. Every variant is drawn from the simplest choice on.

`register_profiles()` makes three profiles: `ropebridge-smoke` (10 examples), `ropebridge-default`
(120, always the same), `ropebridge-soak` (2,000, new ones every time). `ropebridge soak` draws
until it is stopped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor, nn

from ropebridge_conformance.judging.bench import Bench, hooks_of
from ropebridge_conformance.judging.compare import compare
from ropebridge_conformance.judging.profiles import register_profiles as register_profiles
from ropebridge_conformance.stages.context import expect
from ropebridge_conformance.stages.oracle import contexts_of
from ropebridge_conformance.subjects.traces import record
from ropebridge_conformance.zoo.calls import calls
from ropebridge_conformance.zoo.scenarios import FREE_FORMS, MaskForm, Scenario, possible
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_spec import (
    Gate,
    Latent,
    Norm,
    OptIn,
    Rotary,
    Subject,
    Temperature,
    Variant,
    hook_order,
    ungrouped,
)

Place = tuple[Literal["head", "flat"], bool]
"""What a norm is taken over, and whether each head has a weight of its own."""
Weight = Literal["scale", "one_plus", "none"]


class DrawnNorm(nn.Module):
    """Normalise with random weights: the formula of clause NORM-1, in at least float32."""

    def __init__(self, norm: Norm, heads: int, width: int) -> None:
        super().__init__()
        shape = (
            (heads * width,)
            if norm.over == "flat"
            else (heads, width)
            if norm.per_head
            else (width,)
        )
        self.norm = norm
        if norm.weight != "none":
            self.weight = nn.Parameter(1 + 0.3 * torch.randn(shape))
        if norm.bias:
            self.bias = nn.Parameter(0.3 * torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., width), normed over the last axis."""
        wide = x.float()
        wide = wide - wide.mean(-1, keepdim=True) if self.norm.kind == "layer" else wide
        unit = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.norm.eps)
        unit = unit.to(x.dtype) if self.norm.rounds_before_weight else unit
        if self.norm.weight != "none":
            unit = unit * (
                self.weight.float() + 1 if self.norm.weight == "one_plus" else self.weight
            )
        return (unit + self.bias if self.norm.bias else unit).to(x.dtype)


class ToyAttention(nn.Module):
    """Hold random weights of any variant, under the names the variant gives them; it has no forward
    of its own."""

    layer_idx = 0

    def __init__(self, variant: Variant, *, bias: bool) -> None:
        super().__init__()
        v = variant
        for name, (rows, columns) in inward(v).items():
            plain = name.endswith("b_proj") or bool(
                v.gate and v.gate.bias and name == v.gate.module
            )
            setattr(self, name, nn.Linear(rows, columns, bias=bias and not plain))
        self.o_proj = nn.Linear(v.heads * v.d_head_v, v.d_model, bias=bias)
        for role, name in v.norm_roles.items():
            setattr(self, name, DrawnNorm(v.norm_in(role), *normed_widths(v)[role]))
        for name in filter(None, (v.sinks, v.gate.bias if v.gate else None)):
            setattr(self, name, nn.Parameter(torch.randn(v.heads)))

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
    ) -> Tensor:
        """Raise: a drawn layer has no forward of its own; subjects read its weights."""
        raise NotImplementedError(
            "a drawn layer has no forward of its own; judge a subject that computes it from its"
            " description"
        )


def inward(v: Variant) -> dict[str, tuple[int, int]]:
    """Return names and widths, in and out, of the projections of hook_in."""
    in_query = v.gate is not None and v.gate.in_query
    made = (
        {}
        if v.latent
        else {
            "k_proj": (v.d_model, v.kv_heads * v.d_head),
            "v_proj": (v.d_model, v.kv_heads * v.d_head_v),
        }
    )
    if v.latent is None or v.latent.q_rank is None:
        made["q_proj"] = (v.d_model, v.heads * (v.d_head + (v.d_head_v if in_query else 0)))
    if v.latent is not None:
        made |= down_and_up(v, v.latent)
    if v.gate is not None and not in_query:
        made["gate_proj"] = (v.d_model, v.heads * (v.d_head_v if v.gate.per == "channel" else 1))
    return made


def down_and_up(v: Variant, latent: Latent) -> dict[str, tuple[int, int]]:
    """Return names and widths of the projections of multi-head latent attention."""
    width = v.rotary.width if v.rotary else 2
    down = {
        latent.kv_down: (v.d_model, latent.kv_rank + width),
        latent.kv_up: (latent.kv_rank, v.heads * (v.d_head - width + v.d_head_v)),
    }
    if latent.q_rank is None:
        return down
    return down | {
        latent.q_down: (v.d_model, latent.q_rank),
        latent.q_up: (latent.q_rank, v.heads * v.d_head),
    }


def normed_widths(v: Variant) -> dict[str, tuple[int, int]]:
    """Return how many heads of which width each norm is given."""
    heads = {
        "q_norm": (v.heads, v.d_head),
        "k_norm": (v.kv_heads, v.d_head),
        "v_norm": (v.kv_heads, v.d_head_v),
        "z_norm": (v.heads, v.d_head_v),
    }
    return heads | (
        {"q_latent_norm": (1, v.latent.q_rank or 0), "kv_latent_norm": (1, v.latent.kv_rank)}
        if v.latent
        else {}
    )


class ToyRotary(nn.Module):
    """Make tables of any layout, of the positions it is given."""

    def __init__(self, rotary: Rotary) -> None:
        super().__init__()
        self.rotary = rotary

    def forward(self, x: Tensor, position_ids: Tensor) -> Any:
        """Return cos and sin (batch or 1, pos, rotary_dim), or one complex table, in x's dtype."""
        angle = position_ids[..., None].float() * 0.7 ** torch.arange(self.rotary.width // 2)
        if self.rotary.table == "complex":
            return torch.polar(torch.ones_like(angle), angle)
        return tuple(self.laid(table).to(x.dtype) for table in (angle.cos(), angle.sin()))

    def laid(self, table: Tensor) -> Tensor:
        """Return a table with each frequency once, as the layout has it."""
        if self.rotary.table == "full":
            return torch.cat([table, table], -1)
        return table.repeat_interleave(2, -1) if self.rotary.table == "repeated" else table


@dataclass(frozen=True)
class Drawn:
    """Hold a layer that was drawn, and how it is to be called; `specimen` makes it, the same one
    every time.

    watch: hook points that are watched, and no others, in another run than that in which all are;
        None is all but scores and pattern.
    """

    variant: Variant
    scenario: Scenario
    dtype: str = "float32"
    bias: bool = False
    seed: int = 0
    watch: tuple[str, ...] | None = None

    @property
    def specimen(self) -> Specimen:
        """Return the layer, with weights of its seed."""
        dtype = getattr(torch, self.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            module = (
                ToyAttention(self.variant, bias=self.bias).to(dtype).eval().requires_grad_(False)
            )
        return Specimen(
            module,
            ToyRotary(self.variant.rotary or Rotary("half", 2)),
            self.variant,
            dtype,
            torch.device("cpu"),
        )


def norms(
    *places: Place, weights: Iterable[Weight] = ("scale", "one_plus", "none"), **names: str
) -> SearchStrategy[Norm]:
    """Return a norm over one of these places; names are those of its modules, `q` and `k`."""

    def at(place: Place) -> SearchStrategy[Norm]:
        return st.builds(
            Norm,
            kind=st.sampled_from(["rms", "layer"]),
            over=st.just(place[0]),
            eps=st.just(1e-5),
            weight=st.sampled_from(list(weights)),
            bias=st.booleans(),
            per_head=st.just(place[1]),
            rounds_before_weight=st.booleans(),
            after_rotation=st.just(False),
            **{role: st.just(name) for role, name in names.items()},
        )

    return st.sampled_from(places).flatmap(at)


def rotaries(width: int) -> SearchStrategy[Rotary]:
    """Return a rotation of this width."""
    return st.builds(
        Rotary,
        st.sampled_from(["half", "interleaved"]),
        st.just(width),
        st.sampled_from(["full", "repeated", "half", "complex"]),
        st.sampled_from(["input", "float32"]),
        st.sampled_from(["leading", "trailing"]),
        st.sampled_from(["forward", "backward"]),
    )


def gates() -> SearchStrategy[Gate]:
    """Return a gate of either kind, with a projection of its own or in the query's."""
    activations = st.sampled_from(["sigmoid", "softplus"])
    own = st.builds(
        Gate,
        st.just("gate_proj"),
        activations,
        st.sampled_from(["channel", "head"]),
        bias=st.none() | st.just("gate_bias"),
    )
    return own | st.builds(Gate, st.just("q_proj"), activations, in_query=st.just(True))


def latents() -> SearchStrategy[Latent]:
    """Return latents of narrow ranks."""
    return st.builds(
        Latent,
        kv_rank=st.integers(1, 6),
        q_rank=st.none() | st.integers(1, 6),
        norm=norms(("head", False), q="q_a_layernorm", k="kv_a_layernorm"),
        q_scale=st.sampled_from([1.0, 1.7]),
        kv_scale=st.sampled_from([1.0, 0.6]),
    )


@st.composite
def sizes(draw: DrawFn, *, grouped: bool = True) -> dict[str, int]:
    """Return widths and head counts, small and odd; `pairs` of dimensions rotate."""
    kv_heads, group, pairs = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)) if grouped else 1,
        draw(st.integers(1, 5)),
    )
    beside = draw(st.integers(0 if grouped else 1, 3))
    widths = {
        "d_model": draw(st.integers(1, 24)),
        "d_head": 2 * pairs + beside,
        "d_head_v": draw(st.integers(1, 9)),
    }
    return {**widths, "heads": kv_heads * group, "kv_heads": kv_heads, "pairs": pairs}


@st.composite
def variants(draw: DrawFn) -> Variant:
    """Return any layer with weights of its own that this version of the contract can say, but for
    selectors, differences and biases of keys."""
    latent = draw(st.none() | st.none() | latents())
    size = draw(sizes(grouped=latent is None))
    width = 2 * size["pairs"]
    norm = (
        None
        if latent
        else draw(st.none() | norms(("flat", False), ("head", False), ("head", True)))
    )
    gate = draw(st.none() | gates())
    return Variant(
        d_model=size["d_model"],
        heads=size["heads"],
        kv_heads=size["kv_heads"],
        d_head=size["d_head"],
        d_head_v=size["d_head_v"],
        scale=draw(st.sampled_from([1.0, 0.3, size["d_head"] ** -0.5, -0.5])),
        norm=norm and replace(norm, after_rotation=draw(st.booleans())),
        value_norm=draw(st.none() | norms(("head", False), q="v_norm", k="v_norm")),
        z_norm=draw(
            st.none()
            | norms(
                ("head", False), ("flat", False), weights=("scale", "none"), q="o_norm", k="o_norm"
            )
        ),
        k_multiplier=draw(st.sampled_from([1.0, 0.7])),
        v_multiplier=draw(st.sampled_from([1.0, 1.3])),
        clip=draw(st.none() | st.just(0.4)),
        latent=latent,
        gate=None if latent and gate and gate.in_query else gate,
        temperature=draw(st.none() | temperatures()),
        rotary=draw(rotaries(width) if latent else st.none() | rotaries(width)),
        softcap=draw(st.none() | st.sampled_from([0.5, 5.0])),
        sinks=draw(st.none() | st.just("sinks")),
        **draw(reaches()),
    )


def temperatures() -> SearchStrategy[Temperature]:
    """Return a temperature that is made of positions."""
    return st.builds(
        Temperature, st.just(0.3), st.sampled_from([1.0, 2.0]), st.integers(0, 1), st.booleans()
    )


def reaches() -> SearchStrategy[dict[str, Any]]:
    """Return how far a layer sees by itself: causal or not, window, chunk."""
    some = st.integers(1, 6)
    return st.fixed_dictionaries(
        {
            "causal": st.sampled_from([True, True, False]),
            "window": st.none() | some,
            "chunk": st.none() | st.none() | some,
        }
    )


OPTED: tuple[tuple[OptIn, ...], ...] = (
    (),
    ("attn_result",),
    ("split_qkv_input",),
    ("attn_in", "attn_result"),
)


PADDING_FORMS: tuple[MaskForm, ...] = ("as it is", "whole numbers", "floats")


@st.composite
def masks(draw: DrawFn, pos: int) -> dict[str, Any]:
    """Return a mask over so many positions, as fields of a `Scenario`: none, or what it says, in
    which form it is handed down, and by how many positions the last of the batch is padded."""
    mask = draw(st.sampled_from(["additive", "boolean", "none", "free", "padding"]))
    forms = ["as it is", *(form for _, _, form in FREE_FORMS)] if mask == "free" else PADDING_FORMS
    padded = mask in ("additive", "boolean", "padding")
    return {
        "mask": mask,
        "form": draw(st.sampled_from(forms)) if mask in ("free", "padding") else "as it is",
        "left_padding": draw(st.integers(0, pos - 1)) if padded else 0,
        "right_padding": draw(st.integers(0, 1)) if padded else 0,
    }


@st.composite
def caches(draw: DrawFn, pos: int) -> dict[str, Any]:
    """Return how the last of so many positions come from a cache, as fields of a `Scenario`: none
    of them, or in one call or two, so many at once, from a cache of any kind."""
    later = draw(st.integers(0, 2))
    if later == 0:
        return {}
    step = draw(st.integers(1, (pos - 1) // later))
    kinds = st.sampled_from(["growing", "static", "sliding"])
    return {"steps": later * step, "step": step, "cache": draw(kinds)}


def hook_sets(
    variant: Variant, opted_in: tuple[OptIn, ...] = ()
) -> SearchStrategy[tuple[str, ...]]:
    """Return some of the hook points that a layer has, in contract order: all but scores and
    pattern, where a kernel may make neither, or any."""
    names = [hook.name for hook in hook_order(ungrouped(variant, opted_in), opted_in)]
    some = st.lists(st.sampled_from(names), unique=True)
    fused = [name for name in names if name not in ("hook_attn_scores", "hook_pattern")]
    chosen = st.just(fused) | some
    return chosen.map(lambda chosen: tuple(name for name in names if name in chosen))


@st.composite
def scenarios(draw: DrawFn) -> Scenario:
    """Return any way of calling that the judge has, in any size."""
    pos = draw(st.integers(3, 9))
    return Scenario(
        id="drawn",
        says="drawn",
        opted_in=draw(st.sampled_from(OPTED)),
        batch=draw(st.integers(1, 3)),
        pos=pos,
        **draw(masks(pos)),
        **draw(caches(pos)),
    )


def dtypes() -> SearchStrategy[str]:
    """Return the dtypes of the contract."""
    return st.sampled_from(["float32", "bfloat16", "float16", "float64"])


@st.composite
def drawn_layers(draw: DrawFn) -> Drawn:
    """Return a layer, and a way to call it that it allows."""
    variant = draw(variants())
    scenario = draw(scenarios().filter(lambda scenario: possible(scenario, variant)))
    return Drawn(
        variant,
        scenario,
        draw(dtypes()),
        draw(st.booleans()),
        draw(st.integers(0, 9)),
        draw(hook_sets(variant, scenario.opted_in)),
    )


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
LATE = replace(
    FULL,
    norm=Norm("rms", "head", 1e-5, after_rotation=True),
    rotary=Rotary("half", 10, "complex", direction="backward"),
    chunk=4,
    clip=0.4,
)
ENCODER = replace(
    FULL,
    causal=False,
    sinks=None,
    gate=Gate("gate_proj", "softplus", "head", bias="gate_bias"),
    z_norm=Norm("rms", "flat", 1e-5, q="o_norm"),
)
LOW_RANK = Variant(
    d_model=8,
    heads=3,
    kv_heads=3,
    d_head=7,
    d_head_v=5,
    scale=1.0,
    rotary=Rotary("interleaved", 4),
    latent=Latent(3, 4, Norm("rms", "head", 1e-5, q="q_a_layernorm", k="kv_a_layernorm")),
)


CANCELLED = Variant(
    d_model=22,
    heads=6,
    kv_heads=3,
    d_head=7,
    d_head_v=6,
    scale=0.3,
    norm=Norm("rms", "head", 1e-5, "none", bias=True, per_head=True, after_rotation=True),
    rotary=Rotary("half", 4, "half", "float32", "trailing"),
    k_multiplier=0.7,
    v_multiplier=1.3,
    gate=Gate("gate_proj", bias="gate_bias"),
    temperature=Temperature(0.3, 1.0, 1),
    softcap=0.5,
    sinks="sinks",
    window=3,
)
"""A norm whose bias cancels what it is added to, so that little is left beside the error."""


def called(**how: Any) -> Scenario:
    """Return a scenario without a name."""
    return Scenario("drawn", "", **how)


CORPUS: tuple[Drawn, ...] = (
    Drawn(MINIMAL, called(batch=1, pos=3)),
    Drawn(
        FULL,
        called(mask="none", steps=2, opted_in=("split_qkv_input", "attn_result")),
        "bfloat16",
        bias=True,
        seed=1,
    ),
    Drawn(FULL, called(mask="boolean", opted_in=("attn_in",)), "float64", bias=True, seed=2),
    Drawn(LATE, called(mask="none", steps=1), "float16", seed=3),
    Drawn(LATE, called(mask="free", batch=3), "float32", bias=True, seed=4),
    Drawn(ENCODER, called(mask="padding", left_padding=2), "bfloat16", seed=5),
    Drawn(ENCODER, called(mask="none", batch=1), "float64", seed=6),
    Drawn(LOW_RANK, called(steps=2), "float32", bias=True, seed=7),
    Drawn(LOW_RANK, called(mask="free"), "bfloat16", seed=8),
    Drawn(
        CANCELLED,
        called(
            left_padding=4,
            steps=6,
            step=3,
            cache="static",
            opted_in=("attn_in", "attn_result"),
            batch=2,
            pos=8,
        ),
        "float32",
        bias=True,
        seed=2,
    ),
    Drawn(
        FULL,
        called(mask="free", form="BlockMask", pos=9, steps=4, step=2, cache="sliding"),
        "float32",
        seed=9,
        watch=("hook_rot_k", "hook_pattern", "hook_z"),
    ),
)
"""Layers that are always tried, whatever is drawn: hypothesis draws others on another machine."""


def first_fault(subject: Subject, drawn: Drawn) -> str | None:
    """Return what is wrong with a subject on a drawn layer, at the first stage that is: out of
    order, or outside its bound; None if nothing is.

    Everything is watched, and then what the layer was drawn with: by default everything but scores
    and pattern.
    """
    own, scenario, bench = drawn.specimen, drawn.scenario, Bench(subject)
    order = tuple(hook.name for hook in hooks_of(own, scenario))
    fused = tuple(name for name in order if name not in ("hook_attn_scores", "hook_pattern"))
    layer = bench.layer(own, scenario.opted_in)
    for watch in (order, fused if drawn.watch is None else drawn.watch):
        traces = record(layer, calls(scenario, own, layer), watch)
        for trace, context in zip(traces, contexts_of(traces, own, scenario), strict=True):
            if tuple(trace.fired) != watch:
                return f"fired {trace.fired}, and {watch} is watched"
            for name in trace.fired:
                difference = compare(trace.values[name], expect(name, context))
                if not difference.fits:
                    return f"{name} is off by {difference.ratio} bounds (watching {watch})"
    return None
