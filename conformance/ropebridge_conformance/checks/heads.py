"""Heads: an edit of one head's input moves what that head uses, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.findings import Finding, failed, passed
from ropebridge_conformance.judging.questions import Question, check
from ropebridge_conformance.subjects.traces import Trace, record
from ropebridge_conformance.zoo.calls import calls
from ropebridge_spec import HookSpec, Variant

OWN: Mapping[str, tuple[str, ...]] = {
    "hook_attn_in": ("q", "k", "v"),
    "hook_q_input": ("q",),
    "hook_k_input": ("k",),
    "hook_v_input": ("v",),
}
"""What each split input is projected to."""


def split(hook: HookSpec) -> bool:
    """Return the inputs that are split by head."""
    return hook.stage == "split input"


def of_split(hook: HookSpec | None) -> str:
    """Return the clause that says what an input's heads read."""
    return "SPLIT-3" if hook is not None and hook.name == "hook_attn_in" else "SPLIT-1"


@check(of_split, scenarios=("split", "attn_in"), hooks=split, dtypes=("float32", "bfloat16"))
def an_edit_of_one_heads_input_moves_that_head_alone(bench: Bench, q: Question) -> Finding:
    """SPLIT-1, SPLIT-3: the last head of a split input is edited; its projections move, and those
    of all other heads stay bit for bit.

    Under hook_attn_in the same holds of each head's scores, pattern and z, but for a norm that
    takes all heads together.
    """
    assert q.hook is not None
    layer = bench.layer(q.specimen, q.situation.opted_in)
    clean = bench.traces(q.specimen, q.situation, "all")[0]
    edited = record(
        layer,
        calls(q.situation, q.specimen, layer),
        bench.watched(q.specimen, q.situation, "all"),
        {q.hook: edit_one_head},
    )[0]
    stages = [(f"hook_{role}", 2, role in OWN[q.hook]) for role in "qkv"]
    if q.hook == "hook_attn_in" and not mingled(q.specimen.variant):
        stages += [("hook_attn_scores", 1, True), ("hook_pattern", 1, True), ("hook_z", 2, True)]
    gaps = bench.gaps(q.specimen)
    for name, axis, moves in (stage for stage in stages if stage[0] not in gaps):
        finding = alone(name, axis, clean, edited, moves=moves)
        if finding is not None:
            return finding
    return passed()


def edit_one_head(x: Tensor) -> None:
    """Change what one head reads, in place."""
    x[:, :, -1] = x[:, :, -1].roll(1, -1) * 1.5


def mingled(variant: Variant) -> bool:
    """Return whether heads are mingled before z, by a norm over all of them or by differences."""
    flat = any(norm is not None and norm.over == "flat" for norm in (variant.norm, variant.z_norm))
    return flat or variant.differential is not None


def alone(name: str, axis: int, clean: Trace, edited: Trace, *, moves: bool) -> Finding | None:
    """Return a finding where a head moved that should not have, or the edited one did not."""
    one, other = clean.values[name].transpose(0, axis), edited.values[name].transpose(0, axis)
    moved = {head for head in range(one.shape[0]) if not torch.equal(one[head], other[head])}
    last = one.shape[0] - 1
    if moved - {last}:
        return failed(
            f"heads {sorted(moved - {last})} of {name} moved with an edit of what head {last}"
            " reads",
            divergent=name,
        )
    if moves and last not in moved:
        return failed(f"head {last} of {name} did not move with what it reads", divergent=name)
    return (
        failed(f"{name} moved, and does not read this input", divergent=name)
        if moved and not moves
        else None
    )
