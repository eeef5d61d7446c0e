"""Each function of the reference through which a gradient flows: its gradients are those that
finite differences give (`torch.autograd.gradcheck`, in float64)."""

import inspect
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

import ropebridge_reference
from ropebridge_reference import (
    Affine,
    Weights,
    adapt,
    bias_keys,
    clip,
    copies,
    exclude,
    join_source,
    make_latent,
    make_pattern,
    mix_values,
    multiply,
    norm_and_gate,
    normalise,
    of_the_largest,
    open_gate,
    project_heads,
    project_output,
    recall,
    result,
    rotate,
    rows_for,
    scale_by_temperature,
    score_keys,
    side_by_side,
    strength,
    subtract,
    sum_of_results,
    turns,
    unrounded,
    with_rotary_part,
)
from ropebridge_spec import (
    Differential,
    Gate,
    KeyBias,
    Norm,
    Rotary,
    Source,
    Temperature,
    Variant,
)

BATCH, POS, HEADS, KV_HEADS, WIDTH, D_MODEL = 2, 3, 4, 2, 4, 5
PLAIN = Variant(
    d_model=D_MODEL, heads=HEADS, kv_heads=KV_HEADS, d_head=WIDTH, d_head_v=WIDTH, scale=0.5
)
RMS = Norm("rms", "head", 1e-6)
LAYER = Norm("layer", "flat", 1e-6, weight="one_plus", bias=True)
HALVES = Rotary("half", WIDTH)
NEIGHBOURS = Rotary("interleaved", 2, precision="float32", end="trailing", direction="backward")
LAMBDAS = Differential(0.3)
CAUSAL = torch.zeros(1, 1, POS, POS, dtype=torch.float64).masked_fill(
    torch.ones(POS, POS).triu(1).bool(), -math.inf
)
NOTHING_SEEN = CAUSAL.clone()
NOTHING_SEEN[..., 1, :] = -math.inf

HIDDEN = (BATCH, POS, D_MODEL)
QUERY = (BATCH, POS, HEADS, WIDTH)
KEY = (BATCH, POS, KV_HEADS, WIDTH)
INPUT = (BATCH, POS, HEADS, D_MODEL)
SCORES = (BATCH, HEADS, POS, POS)
TABLE = (1, POS, WIDTH)
W_IN, W_OUT = (HEADS, D_MODEL, WIDTH), (HEADS, WIDTH, D_MODEL)
WEIGHTS = Weights(W_Q=torch.zeros(W_IN), W_O=torch.zeros(W_OUT))


def rotated(rotary, x, cos, sin):
    return rotate(x, turns(*rows_for(POS, cos, sin), rotary), rotary)


def latent(norm, beside, x, weight, bias, scale, shift):
    return make_latent(x, weight, bias, Affine(scale, shift), norm, 1.5, beside)


def key_biases(v, projection, bias, factor):
    weights = replace(WEIGHTS, W_dt=projection, b_dt=bias, A=factor)
    return bias_keys(v, weights, replace(PLAIN, key_bias=KeyBias(2)))


def rotary_part(k, x, weight):
    return with_rotary_part(k, x, replace(WEIGHTS, W_KR=weight), None)


STAGES = {
    "copies": (lambda x: copies(x, HEADS), [HIDDEN]),
    "join_source": (lambda x, other: join_source(x, other, Source("s", "before")), [HIDDEN] * 2),
    "make_latent": (partial(latent, RMS, False), [HIDDEN, (D_MODEL, 3), (3,), (3,), (3,)]),
    "make_latent beside": (partial(latent, RMS, True), [HIDDEN, (D_MODEL, 3), (3,), (3,), (3,)]),
    "project_heads": (project_heads, [INPUT, W_IN, (HEADS, WIDTH)]),
    "adapt": (
        lambda y, x, down, up: adapt(y, x, (down, up)),
        [QUERY, INPUT, (D_MODEL, 2), (HEADS, 2, WIDTH)],
    ),
    "multiply": (lambda x: multiply(x, 1.5), [QUERY]),
    "clip": (lambda x: clip(x, 0.7), [QUERY]),
    "with_rotary_part": (rotary_part, [QUERY, INPUT, (HEADS, D_MODEL, 2)]),
    "normalise rms": (lambda x, w: normalise(x, Affine(w, None), RMS), [QUERY, (WIDTH,)]),
    "normalise layer": (
        lambda x, w, b: normalise(x, Affine(w, b), LAYER),
        [QUERY, (HEADS * WIDTH,), (HEADS * WIDTH,)],
    ),
    "rotate": (partial(rotated, HALVES), [QUERY, TABLE, TABLE]),
    "rotate neighbours": (partial(rotated, NEIGHBOURS), [QUERY, (1, POS, 2), (1, POS, 2)]),
    "scale_by_temperature": (
        lambda q: scale_by_temperature(q, torch.arange(POS)[None], Temperature(0.1, 2.0)),
        [QUERY],
    ),
    "recall": (recall, [KEY, KEY]),
    "score_keys": (lambda q, k: score_keys(q, k, torch.zeros_like(CAUSAL), PLAIN), [QUERY, KEY]),
    "unrounded": (lambda s: unrounded(s, s.detach()), [SCORES]),
    "bias_keys": (key_biases, [KEY, (KV_HEADS, KV_HEADS, WIDTH), (KV_HEADS,), (KV_HEADS,)]),
    "of_the_largest": (
        lambda own: make_pattern(of_the_largest(own, CAUSAL, 2), None),
        [(BATCH, HEADS, 1, POS)],
    ),
    "make_pattern": (lambda s: make_pattern(s + CAUSAL, None), [SCORES]),
    "make_pattern sinks": (lambda s, sinks: make_pattern(s + CAUSAL, sinks), [SCORES, (HEADS,)]),
    "make_pattern nothing seen": (lambda s: make_pattern(s + NOTHING_SEEN, None), [SCORES]),
    "side_by_side": (side_by_side, [KEY]),
    "mix_values": (mix_values, [SCORES, KEY]),
    "exclude": (exclude, [QUERY, KEY, (HEADS,)]),
    "strength": (lambda lambdas: strength(lambdas, LAMBDAS), [(4, WIDTH)]),
    "subtract": (lambda z, lambdas: subtract(z, lambdas, LAMBDAS), [QUERY, (4, WIDTH)]),
    "open_gate sigmoid": (lambda g: open_gate(g, Gate("g")), [QUERY]),
    "open_gate softplus": (lambda g: open_gate(g, Gate("g", "softplus")), [QUERY]),
    "norm_and_gate": (
        lambda z, g, w: norm_and_gate(z, g, Affine(w, None), RMS),
        [QUERY, (BATCH, POS, HEADS), (WIDTH,)],
    ),
    "result": (result, [QUERY, W_OUT]),
    "project_output": (project_output, [QUERY, W_OUT, (D_MODEL,)]),
    "sum_of_results": (sum_of_results, [(BATCH, POS, HEADS, D_MODEL), (D_MODEL,)]),
}
"""Name, after the function's own -> the function of its differentiable inputs, and their shapes."""

NO_GRADIENT = {
    "a_key_for_every_head": "copies weights",
    "attention_layer": "made of the others; GRAD-1 is asked of it at every hook",
    "bias_of_mask": "of a mask",
    "causal_bias": "of sizes",
    "padding_bias": "of a mask",
    "rows_for": "taken with rotate",
    "selection_bias": "of booleans",
    "temperature_at": "of positions",
    "turns": "taken with rotate",
    "with_four_axes": "of a mask",
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_the_gradient_of_finite_differences(stage):
    function, shapes = STAGES[stage]
    draw = torch.Generator().manual_seed(3)
    inputs = [
        torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes
    ]
    assert gradcheck(function, inputs)


def test_every_function_of_the_reference_is_tried_or_has_none():
    functions = {
        name
        for name in ropebridge_reference.__all__
        if inspect.isfunction(getattr(ropebridge_reference, name))
    }
    assert {stage.split()[0] for stage in STAGES} | set(NO_GRADIENT) == functions
