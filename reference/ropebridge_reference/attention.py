"""Rotary attention, from the residual stream and back, on one page.

Each hook point of the contract is an assignment, `q = at("hook_q", ...)`, and the page is their
order. What the assignments are made of stands below it, and the mathematics in the files around.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Bool, Float, Real
from torch import Tensor

from ropebridge_reference.differential import side_by_side, subtract
from ropebridge_reference.gate import norm_and_gate, open_gate
from ropebridge_reference.key_bias import bias_keys, of_the_largest
from ropebridge_reference.latent import make_latent
from ropebridge_reference.masks import Bias, selection_bias
from ropebridge_reference.memory import Past, recall
from ropebridge_reference.mix import exclude, mix_values
from ropebridge_reference.norm import normalise
from ropebridge_reference.output import project_output, result, sum_of_results
from ropebridge_reference.pattern import make_pattern
from ropebridge_reference.project import (
    adapt,
    add,
    clip,
    multiply,
    project_heads,
    with_rotary_part,
)
from ropebridge_reference.rotary import rotate, rows_for, turns
from ropebridge_reference.scores import scale_by_temperature, score_keys, unrounded
from ropebridge_reference.split import a_key_for_every_head, copies, join_source
from ropebridge_reference.weights import Weights
from ropebridge_spec import ContractError, OptIn, Variant

T = TypeVar("T")
At = Callable[[str, Tensor], Tensor]
"""`at(name, value)` records the value of a hook point and gives back what the layer is to go on
with."""

Tables = tuple[
    Float[Tensor, "table_batch table_pos rotary_dim"],
    Float[Tensor, "table_batch table_pos rotary_dim"],
]
"""cos and sin, of the positions of this call; where another sequence comes before them, of its
positions too (KV-2)."""
Select = Callable[[Tensor, Tensor | None, Tables | None], Bool[Tensor, "batch #head query key"]]
"""A layer's own selector: of hook_in, hook_q_latent and the tables it makes which keys each query
may see (SEL-1)."""


@dataclass(frozen=True)
class Output:
    """Hold what a layer returns, and the keys and values a later call may be given as its past."""

    out: Float[Tensor, "batch pos d_model"]
    pattern: Float[Tensor, "batch head pos key"]
    past: Past


def nobody_watches(name: str, value: Tensor) -> Tensor:
    """Return an `at` that nobody watches."""
    return value


def attention_layer(
    x: Float[Tensor, "batch pos d_model"],
    tables: Tables | None,
    bias: Bias,
    weights: Weights,
    variant: Variant,
    *,
    positions: Real[Tensor, "#batch pos"] | None = None,
    past: Past | None = None,
    select: Select | None = None,
    added_value: Float[Tensor, "batch pos kv_head d_head_v"] | None = None,
    source: Float[Tensor, "batch source d_model"] | None = None,
    opted_in: Collection[OptIn] = (),
    at: At = nobody_watches,
) -> Output:
    """Return one attention layer, in any floating dtype; in float64 it is the oracle.

    Args:
        x: hidden states.
        tables: rotary cos and sin, lying as `variant.rotary.table` says; None where the layer does
            not rotate.
        bias: 0 or a number where a query may see a key, -inf where not (`causal_bias`,
            `padding_bias`, `bias_of_mask`).
        weights: the layer's learned tensors, in x's dtype.
        positions: of the queries, for a family whose query has a temperature; the temperatures,
            where they are given.
        past: rotated keys, and values, of earlier positions; in a layer whose keys and values are
            given, those of all positions.
        select, added_value, source: the layer's selector, what is added to the value, states of
            another sequence, where a family has them.
        opted_in: the hook points that are made on request only. at: sees every hook point, in
            order.
    """
    # what the heads read, (batch, pos, heads, width)
    x = at("hook_in", x)
    x_kv = x
    if variant.source is not None and source is not None:
        x_kv = join_source(x, at("hook_kv_in", source), variant.source)
    x_q, x_k = copies(x, variant.heads), copies(x_kv, variant.kv_heads)
    x_v = x_k
    if "attn_in" in opted_in:
        weights, variant = a_key_for_every_head(weights, variant)
        x_q = x_k = x_v = at("hook_attn_in", x_q)
    if "split_qkv_input" in opted_in:
        x_q = at("hook_q_input", x_q)
        x_k = at("hook_k_input", x_k)
        x_v = at("hook_v_input", x_v)
    c_q = c_kv = None
    if variant.latent is not None and variant.latent.q_rank is not None:
        c_q = at("hook_q_latent", query_latent(x, weights, variant))
    if variant.latent is not None:
        c_kv = at("hook_kv_latent", key_and_value_latent(x, weights, variant))

    # query, key and value, (batch, pos, heads, width)
    q = at("hook_q", project_query(x_q, c_q, weights, variant))
    k = v = None
    if variant.shared_kv_argument is None:
        k = at("hook_k", project_key(x_k, c_kv, weights, variant))
        v = at("hook_v", project_value(x_v, c_kv, k, added_value, weights, variant))
    if variant.norms_before_rotation:
        q = at("hook_q_normed", norm_query(q, weights, variant)).view_as(q)
    if variant.norms_before_rotation and k is not None:
        k = at("hook_k_normed", norm_key(k, weights, variant)).view_as(k)
    if variant.value_norm is not None and v is not None:
        v = at("hook_v_normed", normalise(v, weights.v_norm, variant.value_norm))

    # rotation
    if variant.rotary is not None:
        cos, sin = needed(tables, "tables (cos, sin)", "CFG-3")
        cos = at("hook_cos", cos)
        sin = at("hook_sin", sin)
        tables = cos, sin
    q = at("hook_rot_q", rotate_by_position(q, tables, variant))
    if k is not None:
        k = at("hook_rot_k", rotate_by_position(k, tables, variant))
    if v is not None and variant.rotary is not None and variant.rotary.values:
        v = at("hook_rot_v", rotate_by_position(v, tables, variant))
    if variant.norm is not None and variant.norm.after_rotation:
        q = at("hook_q_normed", norm_query(q, weights, variant)).view_as(q)
    if variant.norm is not None and variant.norm.after_rotation and k is not None:
        k = at("hook_k_normed", norm_key(k, weights, variant)).view_as(k)
    past = remember(past, k, v)

    # scores and pattern, (batch, head, query, key)
    if select is not None:
        bias = bias + selection_bias(select(x, c_q, tables))
    bias = add_key_bias(bias, past.value, weights, variant)
    q = scale_by_temperature(q, positions, variant.temperature)
    s = score_keys(q, past.key, bias, variant)
    s = unrounded(at("hook_attn_scores", s.to(x.dtype)), s)
    p = at("hook_pattern", make_pattern(s, weights.sinks).to(x.dtype))

    # gate, mix and output
    g = None
    if variant.gate is not None:
        logits = project_gate(x, c_q, weights, variant)
        if variant.gate.in_query:
            logits = at("hook_q_gate", logits)
        g = at("hook_gate", make_gate(logits, variant))
    z = at("hook_z", mix_heads(p, past.value, g, weights, variant))
    if "attn_result" in opted_in:
        r = at("hook_result", result(z, weights.W_O))
        out = at("hook_out", sum_of_results(r, weights.b_O))
    else:
        out = at("hook_out", project_output(z, weights.W_O, weights.b_O))
    return Output(out, p, past)


def query_latent(
    x: Float[Tensor, "batch pos d_model"], weights: Weights, variant: Variant
) -> Float[Tensor, "batch pos q_rank"]:
    """Return what the query comes up from (LAT-1)."""
    latent = needed(variant.latent, "latent", "LAT-1")
    W, b, affine = needed(weights.W_DQ, "W_DQ", "LAT-1"), weights.b_DQ, weights.q_latent_norm
    return make_latent(x, W, b, affine, latent.norm, latent.q_scale, latent.q_beside)


def key_and_value_latent(
    x: Float[Tensor, "batch pos d_model"], weights: Weights, variant: Variant
) -> Float[Tensor, "batch pos kv_rank"]:
    """Return what key and value come up from (LAT-1)."""
    latent = needed(variant.latent, "latent", "LAT-1")
    W, b, affine = needed(weights.W_DKV, "W_DKV", "LAT-1"), weights.b_DKV, weights.kv_latent_norm
    return make_latent(x, W, b, affine, latent.norm, latent.kv_scale, False)


def project_query(
    x: Float[Tensor, "batch pos head d_model"],
    c: Float[Tensor, "batch pos q_rank"] | None,
    weights: Weights,
    variant: Variant,
) -> Float[Tensor, "batch pos head d_head"]:
    """Return the query heads of the latent c, or without one of x (PROJ-1, CLIP-1)."""
    x = x if c is None else copies(c, variant.heads)
    q = project_heads(x, weights.W_Q, weights.b_Q)
    q = adapt(q, x, weights.adapters.get("Q"))
    return clip(q, None if variant.norms_before_rotation else variant.clip)


def project_key(
    x: Float[Tensor, "batch kv_pos kv_head d_model"],
    c: Float[Tensor, "batch kv_pos kv_rank"] | None,
    weights: Weights,
    variant: Variant,
) -> Float[Tensor, "batch kv_pos kv_head d_head"]:
    """Return the key heads of the latent c, followed by the rotary part that all share; or without
    one of x (PROJ-1, CLIP-1)."""
    own = x if c is None else copies(c, variant.kv_heads)
    k = project_heads(own, needed(weights.W_K, "W_K", "PROJ-1"), weights.b_K)
    k = adapt(k, own, weights.adapters.get("K"))
    k = with_rotary_part(k, x, weights, variant.rotary_part_norm)
    k = multiply(k, variant.k_multiplier)
    return clip(k, None if variant.norms_before_rotation else variant.clip)


def project_value(
    x: Float[Tensor, "batch kv_pos kv_head d_model"],
    c: Float[Tensor, "batch kv_pos kv_rank"] | None,
    k: Float[Tensor, "batch kv_pos kv_head d_head"],
    added_value: Float[Tensor, "batch pos added_head d_head_v"] | None,
    weights: Weights,
    variant: Variant,
) -> Float[Tensor, "batch kv_pos kv_head d_head_v"]:
    """Return the value heads of the latent c, or without one of x, and what the model adds to them
    (PROJ-1, CLIP-1); the key k where that is the value (KV-1)."""
    if variant.value_is_key:
        return k
    x = x if c is None else copies(c, variant.kv_heads)
    v = project_heads(x, needed(weights.W_V, "W_V", "PROJ-1"), weights.b_V)
    v = adapt(v, x, weights.adapters.get("V"))
    v = clip(multiply(v, variant.v_multiplier), variant.clip)
    return v if added_value is None else add(v, added_value)


def norm_query(
    q: Float[Tensor, "batch pos head d_head"], weights: Weights, variant: Variant
) -> Float[Tensor, "batch pos *heads"]:
    """Return the query after the family's norm (NORM-1), clipped where that comes before rotation
    (CLIP-1)."""
    norm = needed(variant.norm, "norm", "NORM-1")
    q = normalise(q, weights.q_norm, norm)
    return clip(q, variant.clip if variant.norms_before_rotation else None)


def norm_key(
    k: Float[Tensor, "batch kv_pos kv_head d_head"],
    weights: Weights,
    variant: Variant,
) -> Float[Tensor, "batch kv_pos *heads"]:
    """Return the key after the family's norm (NORM-1), clipped where that comes before rotation
    (CLIP-1)."""
    norm = needed(variant.norm, "norm", "NORM-1")
    k = normalise(k, weights.k_norm, norm)
    return clip(k, variant.clip if variant.norms_before_rotation else None)


def rotate_by_position(
    heads: Float[Tensor, "batch pos heads d"],
    tables: Tables | None,
    variant: Variant,
) -> Float[Tensor, "batch pos heads d"]:
    """Return heads turned by the angles of their positions (ROT-1), the last ones of the tables; as
    they are in a layer that does not rotate."""
    if variant.rotary is None or tables is None:
        return heads
    cos, sin = rows_for(heads.shape[1], *tables)
    return rotate(heads, turns(cos, sin, variant.rotary), variant.rotary)


def remember(
    past: Past | None,
    k: Float[Tensor, "batch kv_pos kv_head d_head"] | None,
    v: Float[Tensor, "batch kv_pos kv_head d_head_v"] | None,
) -> Past:
    """Return keys and values of all positions (CACHE-1); a layer that makes none goes by those it
    is given (KV-1)."""
    if k is None or v is None:
        return needed(past, "keys and values", "KV-1")
    if past is None:
        return Past(k, v)
    return Past(recall(past.key, k), recall(past.value, v))


def add_key_bias(
    bias: Bias,
    v: Float[Tensor, "batch key kv_head d_head_v"],
    weights: Weights,
    variant: Variant,
) -> Bias:
    """Return the mask's bias and, where the family has one, that of the keys by their values
    (SCORE-5)."""
    if variant.key_bias is None:
        return bias
    return of_the_largest(bias_keys(v, weights, variant), bias, variant.key_bias.keep)


def project_gate(
    x: Float[Tensor, "batch pos d_model"],
    c: Float[Tensor, "batch pos q_rank"] | None,
    weights: Weights,
    variant: Variant,
) -> Float[Tensor, "batch pos head gate"]:
    """Return the gate before its activation (GATE-1), of x, whatever inputs are split, or of the
    query's latent c."""
    source = c if variant.gate_rises and c is not None else x
    return project_heads(
        copies(source, variant.heads), needed(weights.W_G, "W_G", "GATE-1"), weights.b_G
    )


def make_gate(
    logits: Float[Tensor, "batch pos head gate"], variant: Variant
) -> Float[Tensor, "batch pos head *gate"]:
    """Return what each head's mix is multiplied by (GATE-1): d_head_v numbers, or one."""
    kind = needed(variant.gate, "gate", "GATE-1")
    g = open_gate(logits, kind)
    return g if kind.per == "channel" else g[..., 0]


def mix_heads(
    p: Float[Tensor, "batch head pos key"],
    v: Float[Tensor, "batch key kv_head d_head_v"],
    g: Float[Tensor, "batch pos head *gate"] | None,
    weights: Weights,
    variant: Variant,
) -> Float[Tensor, "batch pos z_head d_z"]:
    """Return each head's mix of values (MIX-1), less its own value's part (MIX-3), or of each pair
    of heads the difference (DIFF-1); normalised and gated where the family does so."""
    if variant.differential is not None:
        z = mix_values(p, side_by_side(v))
        lambdas = needed(weights.lambdas, "lambdas", "DIFF-1")
        z = subtract(z, lambdas, variant.differential)
    else:
        z = mix_values(p, v)
    if variant.exclusive is not None:
        z = exclude(z, v[:, -p.shape[2] :], needed(weights.alpha, "alpha", "MIX-3"))
    z = norm_and_gate(z, g, weights.z_norm, variant.z_norm)
    return multiply(z, variant.z_multiplier)


def needed(given: T | None, what: str, clause: str) -> T:
    """Return what a layer cannot do without."""
    if given is None:
        raise ContractError(f"the layer was given no {what}; clause {clause} requires them")
    return given
