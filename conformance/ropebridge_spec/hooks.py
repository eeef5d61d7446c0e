"""Hook points of one attention layer, in firing order: the table everything else is made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ropebridge_spec.variant import OptIn, Variant

Stage = Literal[
    "input",
    "split input",
    "project",
    "norm",
    "position",
    "rotate",
    "score",
    "softmax",
    "gate",
    "mix",
    "result",
    "output",
]
Own = Literal[
    "always",
    "makes_kv",
    "q_latent",
    "latent",
    "normed",
    "k_normed",
    "v_normed",
    "rotates",
    "rotates_v",
    "sourced",
    "gated",
    "q_gated",
]
Exists = Own | OptIn
Role = Literal["q", "k", "v"]


@dataclass(frozen=True)
class HookSpec:
    """Describe one hook point of the contract.

    name: as TransformerLens spells it; the full name in a model is `blocks.{layer}.attn.{name}`.
    stage: the stage of the forward pass that ends in this hook.
    axes: full-word axis names, space-separated; a product in parentheses is one flattened axis.
    exists: the condition under which a layer has it.
    value_clause, axes_clause: the clauses that fix what it holds and how it lies.
    meaning: the value, as a formula or a half-sentence.
    role: whether it holds something of the query, of the key or of the value alone; None where it
        holds another thing.
    """

    name: str
    stage: Stage
    axes: str
    exists: Exists
    value_clause: str
    axes_clause: str
    meaning: str
    role: Role | None = None


HOOKS: tuple[HookSpec, ...] = (
    HookSpec(
        "hook_in",
        "input",
        "batch pos d_model",
        "always",
        "IN-1",
        "IN-2",
        "what the layer is given: hidden_states",
    ),
    HookSpec(
        "hook_kv_in",
        "input",
        "batch source d_model",
        "sourced",
        "KV-2",
        "KV-2",
        "the other sequence that key and value are made of too",
    ),
    HookSpec(
        "hook_attn_in",
        "split input",
        "batch pos head d_model",
        "attn_in",
        "SPLIT-1",
        "SPLIT-2",
        "hook_in, one copy per query head",
    ),
    HookSpec(
        "hook_q_input",
        "split input",
        "batch pos head d_model",
        "split_qkv_input",
        "SPLIT-1",
        "SPLIT-2",
        "hook_in, one copy per query head",
        role="q",
    ),
    HookSpec(
        "hook_k_input",
        "split input",
        "batch pos kv_head d_model",
        "split_qkv_input",
        "SPLIT-1",
        "SPLIT-2",
        "hook_in, one copy per key head",
        role="k",
    ),
    HookSpec(
        "hook_v_input",
        "split input",
        "batch pos kv_head d_model",
        "split_qkv_input",
        "SPLIT-1",
        "SPLIT-2",
        "hook_in, one copy per value head",
        role="v",
    ),
    HookSpec(
        "hook_q_latent",
        "project",
        "batch pos q_rank",
        "q_latent",
        "LAT-1",
        "LAT-2",
        "the query's latent, normed",
        role="q",
    ),
    HookSpec(
        "hook_kv_latent",
        "project",
        "batch pos kv_rank",
        "latent",
        "LAT-1",
        "LAT-2",
        "the latent of key and value, normed",
    ),
    HookSpec(
        "hook_q",
        "project",
        "batch pos head d_head",
        "always",
        "PROJ-1",
        "PROJ-2",
        "x W_Q + b_Q",
        role="q",
    ),
    HookSpec(
        "hook_k",
        "project",
        "batch pos kv_head d_head",
        "makes_kv",
        "PROJ-1",
        "PROJ-2",
        "x W_K + b_K",
        role="k",
    ),
    HookSpec(
        "hook_v",
        "project",
        "batch pos kv_head d_head_v",
        "makes_kv",
        "PROJ-1",
        "PROJ-2",
        "x W_V + b_V",
        role="v",
    ),
    HookSpec(
        "hook_q_normed",
        "norm",
        "batch pos head d_head",
        "normed",
        "NORM-1",
        "NORM-2",
        "norm(q)",
        role="q",
    ),
    HookSpec(
        "hook_k_normed",
        "norm",
        "batch pos kv_head d_head",
        "k_normed",
        "NORM-1",
        "NORM-2",
        "norm(k)",
        role="k",
    ),
    HookSpec(
        "hook_v_normed",
        "norm",
        "batch pos kv_head d_head_v",
        "v_normed",
        "NORM-1",
        "NORM-2",
        "norm(v)",
        role="v",
    ),
    HookSpec(
        "hook_cos",
        "position",
        "table_batch pos rotary_dim",
        "rotates",
        "POS-1",
        "POS-2",
        "the cos table the layer is given",
    ),
    HookSpec(
        "hook_sin",
        "position",
        "table_batch pos rotary_dim",
        "rotates",
        "POS-1",
        "POS-2",
        "the sin table the layer is given",
    ),
    HookSpec(
        "hook_rot_q",
        "rotate",
        "batch pos head d_head",
        "always",
        "ROT-1",
        "ROT-2",
        "rotate(q, cos, sin)",
        role="q",
    ),
    HookSpec(
        "hook_rot_k",
        "rotate",
        "batch pos kv_head d_head",
        "makes_kv",
        "ROT-1",
        "ROT-2",
        "rotate(k, cos, sin)",
        role="k",
    ),
    HookSpec(
        "hook_rot_v",
        "rotate",
        "batch pos kv_head d_head_v",
        "rotates_v",
        "ROT-3",
        "ROT-2",
        "rotate(v, cos, sin)",
        role="v",
    ),
    HookSpec(
        "hook_attn_scores",
        "score",
        "batch head query key",
        "always",
        "SCORE-1",
        "SCORE-2",
        "what softmax is given: scaled, capped, masked",
    ),
    HookSpec(
        "hook_pattern",
        "softmax",
        "batch head query key",
        "always",
        "PAT-1",
        "PAT-2",
        "what softmax gave, a sink's share gone",
    ),
    HookSpec(
        "hook_q_gate",
        "gate",
        "batch pos head d_head_v",
        "q_gated",
        "GATE-1",
        "GATE-2",
        "the gate's rows of the query projection",
    ),
    HookSpec(
        "hook_gate",
        "gate",
        "batch pos head d_head_v",
        "gated",
        "GATE-1",
        "GATE-2",
        "what each head's mix of values is multiplied by",
    ),
    HookSpec(
        "hook_z",
        "mix",
        "batch pos head d_head_v",
        "always",
        "MIX-1",
        "MIX-2",
        "pattern . v, normalised and gated where the family does so",
    ),
    HookSpec(
        "hook_result",
        "result",
        "batch pos head d_model",
        "attn_result",
        "RES-1",
        "RES-2",
        "z W_O, head by head",
    ),
    HookSpec(
        "hook_out",
        "output",
        "batch pos d_model",
        "always",
        "OUT-1",
        "OUT-2",
        "sum over heads of z W_O, + b_O",
    ),
)

HOOK_BY_NAME: Mapping[str, HookSpec] = {hook.name: hook for hook in HOOKS}

RESERVED: Mapping[str, str] = {
    "hook_compressed_kv": (
        "batch block d_head: the keys and values that a learned compressor makes of blocks of"
        " positions"
    ),
}
"""Names kept for families this version does not serve, so that nobody gives them another
meaning."""


def exists(hook: HookSpec, variant: Variant, opted_in: Collection[OptIn] = ()) -> bool:
    """Return whether a layer of this variant has this hook point (clause FIRE-1)."""
    has: Mapping[str, object] = {
        "always": True,
        "makes_kv": not variant.shared_kv_argument,
        "latent": variant.latent,
        "q_latent": variant.latent and variant.latent.q_rank,
        "normed": variant.norm,
        "k_normed": variant.norm and not variant.shared_kv_argument,
        "v_normed": variant.value_norm and not variant.shared_kv_argument,
        "rotates": variant.rotary,
        "sourced": variant.source,
        "rotates_v": variant.rotary and variant.rotary.values,
        "gated": variant.gate,
        "q_gated": variant.gate and variant.gate.in_query,
    }
    return bool(has.get(hook.exists)) or hook.exists in opted_in


def hook_order(variant: Variant, opted_in: Collection[OptIn] = ()) -> tuple[HookSpec, ...]:
    """Return the hook points a layer of this variant has, in the order in which they fire (clause
    FIRE-1)."""
    there = [resolve(hook, variant) for hook in HOOKS if exists(hook, variant, opted_in)]
    if variant.norm is None or not variant.norm.after_rotation:
        return tuple(there)
    later = [hook for hook in there if hook.exists in ("normed", "k_normed")]
    rest = [hook for hook in there if hook not in later]
    after = next(place for place, hook in enumerate(rest) if hook.stage == "score")
    return (*rest[:after], *later, *rest[after:])


def attention_inputs(variant: Variant) -> tuple[str, str, str]:
    """Return the hook points that hold the query, key and value which scores and mix are made of,
    and the cache keeps."""
    return hook_chain("q", variant)[-1], hook_chain("k", variant)[-1], hook_chain("v", variant)[-1]


def hook_chain(role: Role, variant: Variant) -> tuple[str, ...]:
    """Return the hook points that query, key or value passes on its way from its projection to the
    scores or the mix, in order: norm and rotation where the variant has them, and as it orders
    them (NORM-3); those of a key or value that is given (KV-1) as if the layer made it."""
    makes_its_own = replace(variant, shared_kv_argument=None)
    return tuple(
        hook.name
        for hook in hook_order(makes_its_own)
        if hook.role == role
        and hook.stage in ("project", "norm", "rotate")
        and "d_head" in hook.axes  # a latent has no heads yet
    )


def hook_before(hook: str, variant: Variant) -> str:
    """Return the hook point whose heads a norm or a rotation is given."""
    role = HOOK_BY_NAME[hook].role
    assert role is not None, f"{hook} is of none of query, key and value"
    chain = hook_chain(role, variant)
    return chain[chain.index(hook) - 1]


def resolve(hook: HookSpec, variant: Variant) -> HookSpec:
    """Return the hook point with the axes this variant gives it: a flat norm shows (head d_head) as
    one axis, a gate per head has no d_head_v."""
    if variant.source is not None and on_keys(hook, variant):
        return resolve(
            replace(hook, axes=hook.axes.replace("pos", "kv_pos")), replace(variant, source=None)
        )
    if (
        hook.exists in ("normed", "k_normed")
        and variant.norm is not None
        and variant.norm.over == "flat"
    ):
        *leading, head, d_head = hook.axes.split()
        return replace(hook, axes=f"{' '.join(leading)} ({head} {d_head})")
    if variant.differential is not None and hook.stage in ("mix", "result"):
        return replace(hook, axes=hook.axes.replace("d_head_v", "d_pair").replace("head", "pair"))
    if variant.d_out is not None and hook.stage in ("result", "output"):
        return replace(hook, axes=hook.axes.replace("d_model", "d_out"))
    if hook.name == "hook_gate" and variant.gate is not None and variant.gate.per == "head":
        return replace(hook, axes="batch pos head")
    return hook


def on_keys(hook: HookSpec, variant: Variant) -> bool:
    """Return whether a hook point has the positions of another sequence too: key, value, and tables
    that are of both (KV-2)."""
    tables = (
        hook.name in ("hook_cos", "hook_sin")
        and variant.source is not None
        and variant.source.place == "before"
    )
    return tables or hook.name in (
        "hook_k",
        "hook_v",
        "hook_k_normed",
        "hook_v_normed",
        "hook_rot_k",
    )


def axis_names(axes: str) -> tuple[str, ...]:
    """Split an axes string: `batch pos (head d_head)` has three axes."""
    names: list[str] = []
    for word in axes.split():
        if names and names[-1].startswith("(") and not names[-1].endswith(")"):
            names[-1] += f" {word}"
        else:
            names.append(word)
    return tuple(names)


def axis_size(axis: str, sizes: Mapping[str, int]) -> int:
    """Return length of one axis; a flattened axis in parentheses is the product of its parts."""
    product = 1
    for part in axis.strip("()").split():
        product *= sizes[part]
    return product


def shape_of(hook: HookSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the shape the contract requires at a hook, given the length of every named axis."""
    return tuple(axis_size(axis, sizes) for axis in axis_names(hook.axes))


def axis_sizes(
    variant: Variant, *, batch: int, pos: int, key: int, table_batch: int = 1, source: int = 0
) -> dict[str, int]:
    """Return the length of every named axis in one call of a layer; `key` counts cached keys and
    those of another sequence too."""
    return {
        "batch": batch,
        "pos": pos,
        "source": source,
        "kv_pos": pos + source,
        "query": pos,
        "key": key,
        "table_batch": table_batch,
        "head": variant.heads,
        "kv_head": variant.kv_heads,
        "d_head": variant.d_head,
        "d_head_v": variant.d_head_v,
        "pair": variant.heads // 2,
        "d_pair": 2 * variant.d_head_v,
        "d_model": variant.d_model,
        "d_out": variant.d_out or variant.d_model,
        "q_rank": variant.latent.q_width if variant.latent else 0,
        "kv_rank": variant.latent.kv_rank if variant.latent else 0,
        "rotary_dim": variant.rotary.table_width if variant.rotary else 0,
    }


def ungrouped(variant: Variant, opted_in: Collection[OptIn]) -> Variant:
    """Return the variant as `attn_in` makes it: every query head has a key and a value of its own
    (SPLIT-3), so kv_head = head."""
    return replace(variant, kv_heads=variant.heads) if "attn_in" in opted_in else variant
