"""Reductions of the pattern are those of the full one, in every path, and nobody can edit them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ropebridge import (
    Entropy,
    Largest,
    MeanOverQueries,
    Reduction,
    TopK,
    TopWeights,
    Watch,
    WeightOn,
    attach,
    bytes_needed,
)
from ropebridge_spec import ContractError, Selection

pytestmark = pytest.mark.slow

PATTERN = "blocks.0.attn.hook_pattern"
REDUCTIONS: list[tuple[Reduction, Callable[[Tensor], Tensor]]] = [
    (TopK(3), lambda p: p.topk(3).values),
    (Entropy(), lambda p: torch.special.entr(p).sum(-1)),
    (Largest(), lambda p: p.amax(-1)),
    (MeanOverQueries(), lambda p: p.mean(2)),
    (WeightOn([0, 7]), lambda p: p[..., [0, 7]].sum(-1)),
    (WeightOn(slice(0, 5)), lambda p: p[..., :5].sum(-1)),
]
PARTS: list[dict[str, Any]] = [
    {},
    {"heads": [2, 0]},
    {"query": slice(-5, None)},
    {"heads": slice(1, 2), "query": [9, 3]},
]


def part_of(pattern: Tensor, part: dict[str, Any]) -> Tensor:
    heads, query = part.get("heads", slice(None)), part.get("query", slice(None))
    return pattern[:, heads][:, :, query]


def values_of(reduced: Tensor | TopWeights) -> Tensor:
    return reduced.values if isinstance(reduced, TopWeights) else reduced


@pytest.mark.parametrize(
    ("how", "wanted"), REDUCTIONS, ids=lambda x: repr(x) if isinstance(x, Reduction) else ""
)
@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_a_reduction_is_that_of_the_full_pattern(
    build: Any,
    tokens: Tensor,
    left_padding: Tensor,
    name: str,
    how: Reduction,
    wanted: Any,
    part: dict[str, Any],
    grad: bool,
) -> None:
    """Of rows that see no key too; beside the whole as alone."""
    bridged = attach(build(name, "sdpa" if name == "llama" else "eager"), verify=False)
    shown: dict[str, Any] = {}

    def keep(tensor: Any, hook: Any) -> None:
        shown["beside"] = values_of(tensor)

    with torch.set_grad_enabled(grad):
        for extra in ({}, {"attention_mask": left_padding}):
            pairs = [(Watch(PATTERN, reduce=how, **part), keep)]
            _, whole = bridged.run_with_cache(
                tokens, names_filter=PATTERN, fwd_hooks=pairs, **extra
            )
            watch = Watch(PATTERN, reduce=how, **part)
            output, cache = bridged.run_with_cache(tokens, names_filter=watch, **extra)
            right = wanted(part_of(whole[PATTERN], part))
            for got in (values_of(cache[PATTERN]), shown["beside"]):
                torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-6)
            plain = bridged(tokens, **extra).logits
            torch.testing.assert_close(output.logits, plain, rtol=1e-4, atol=1e-5)
            need = bytes_needed(bridged, watch, *tokens.shape)
            kept = cache[PATTERN]
            held = kept if isinstance(kept, tuple) else (kept,)
            assert need == sum(each.nbytes for each in held)


def test_top_weights_name_their_keys(build: Any, tokens: Tensor) -> None:
    """-1 where a query sees fewer keys than are kept."""
    bridged = attach(build("llama", "sdpa"), verify=False)
    with torch.no_grad():
        _, whole = bridged.run_with_cache(tokens, names_filter=PATTERN)
        _, cache = bridged.run_with_cache(tokens, names_filter=Watch(PATTERN, reduce=TopK(4)))
        _, more = bridged.run_with_cache(tokens, names_filter=Watch(PATTERN, reduce=TopK(50)))
    top: Any = cache[PATTERN]
    assert top.keys.dtype == torch.int64
    there = top.keys >= 0
    found = whole[PATTERN].gather(-1, top.keys.clamp_min(0))
    assert torch.allclose(found[there], top.values[there], atol=1e-6)
    assert not top.values[~there].any()
    assert torch.equal(there.sum(-1)[0, 0], torch.arange(1, 13).clamp_max(4))
    assert more[PATTERN].values.shape == (*whole[PATTERN].shape[:3], 50)  # type: ignore[attr-defined]
    assert bool((more[PATTERN].keys[..., 12:] == -1).all())  # type: ignore[attr-defined]


def test_a_reduction_is_of_what_hooks_left(build: Any, tokens: Tensor) -> None:
    """Wherever in the list of hooks it stands, and at keys that a query may not see too."""
    bridged = attach(build("llama", "sdpa"), verify=False)
    seen: list[Tensor] = []

    def spread(pattern: Tensor, hook: Any) -> Tensor:
        return torch.full_like(pattern, 0.5)

    def keep(tensor: Tensor, hook: Any) -> None:
        seen.append(tensor)

    reduce = Watch(PATTERN, reduce=WeightOn(slice(0, 4)))
    for edited in (Watch(PATTERN, query=slice(0, 2)), PATTERN):
        with torch.no_grad():
            bridged.run_with_hooks(tokens, fwd_hooks=[(reduce, keep), (edited, spread)])
    alone, whole = seen
    assert torch.equal(alone[:, :, :2], torch.full_like(alone[:, :, :2], 2.0))
    assert torch.equal(whole, torch.full_like(whole, 2.0))
    assert not torch.allclose(alone[:, :, 2:], whole[:, :, 2:])


def test_a_reduction_has_derivatives(build: Any, tokens: Tensor) -> None:
    """The mean entropy can be trained on."""
    bridged = attach(build("llama", "sdpa"), verify=False)
    kept: list[Tensor] = []

    def keep(tensor: Tensor, hook: Any) -> None:
        kept.append(tensor)

    weight = bridged.model.model.layers[0].self_attn.q_proj.weight
    for watch in (Watch(PATTERN, reduce=Entropy()), PATTERN):
        bridged.run_with_hooks(tokens, fwd_hooks=[(watch, keep)])
    whole = -(kept[1] * kept[1].clamp_min(1e-30).log()).sum(-1)
    of_whole = torch.autograd.grad(whole.mean(), weight)[0]
    of_reduced = torch.autograd.grad(kept[0].mean(), weight)[0]
    assert float(of_whole.abs().max()) > 0
    torch.testing.assert_close(of_reduced, of_whole, rtol=1e-4, atol=1e-7)


def test_a_hook_of_a_reduction_is_told_what_it_is(build: Any, tokens: Tensor) -> None:
    bridged = attach(build("llama", "sdpa"), verify=False)
    told: list[Any] = []

    def look(tensor: Tensor, hook: Any) -> None:
        told.append((hook.name, hook.selection, hook.spec.axes, tuple(tensor.shape)))

    with torch.no_grad():
        bridged.run_with_hooks(
            tokens, fwd_hooks=[(Watch(PATTERN, heads=1, reduce=MeanOverQueries()), look)]
        )
    assert told == [(PATTERN, Selection(range(1, 2)), "batch head key", (2, 1, 12))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_reductions_are_in_at_least_float32(build: Any, tokens: Tensor, dtype: torch.dtype) -> None:
    bridged = attach(build("llama", "sdpa").to(dtype), verify=False)
    with torch.no_grad():
        _, whole = bridged.run_with_cache(tokens, names_filter=PATTERN)
        _, mean = bridged.run_with_cache(
            tokens, names_filter=Watch(PATTERN, reduce=MeanOverQueries())
        )
    wide = torch.promote_types(dtype, torch.float32)
    assert mean[PATTERN].dtype == wide
    right = whole[PATTERN].to(wide).mean(2)
    torch.testing.assert_close(mean[PATTERN], right, rtol=1e-2, atol=1e-3)


def test_a_reduction_is_to_look_at(build: Any, tokens: Tensor) -> None:
    bridged = attach(build("llama", "sdpa"), verify=False)

    def refused(run: Callable[[], Any]) -> str:
        with pytest.raises(ContractError) as error:
            run()
        assert not any(point.watched for point in bridged.hook_points.values())
        return str(error.value)

    watch = Watch(PATTERN, reduce=Largest())
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            words = refused(
                lambda: bridged.run_with_hooks(tokens, fwd_hooks=[(watch, lambda t, hook: t * 2)])
            )
        assert words == (
            "hook 'blocks.0.attn.hook_pattern' was given Largest() of the pattern and returned"
            " Tensor; a reduction is to look at\n  edit the pattern by a part: Watch(name,"
            " heads=..., query=...)"
        )
    z = Watch("blocks.0.attn.hook_z", reduce=Largest())
    words = refused(lambda: bridged.run_with_cache(tokens, names_filter=z))
    assert words == (
        "hook 'blocks.0.attn.hook_z' cannot be reduced by Largest(): reductions are of hook_pattern"
    )
    words = refused(lambda: bridged.hooks(bwd_hooks=[(watch, lambda t, hook: None)]).__enter__())
    assert words == (
        "a backward hook at 'blocks.0.attn.hook_pattern' cannot be given Largest(): reductions are"
        " of the pattern, and not of gradients"
    )
    words = refused(
        lambda: bridged.run_with_cache(tokens, names_filter=Watch(PATTERN, reduce=WeightOn(99)))
    )
    assert "WeightOn [99] names 99, and the axis is 12 long" in words


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TopK(0), "TopK(0) must keep a whole number of weights, 1 or more"),
        (lambda: TopK(True), "TopK(True) must keep a whole number"),
        (lambda: WeightOn(None), "WeightOn(None) names no keys; give numbers or a slice"),
        (lambda: WeightOn([1, 1]), "keys=[1, 1] names a place twice"),
        (
            lambda: Watch(PATTERN, reduce="entropy"),  # type: ignore[arg-type]
            "reduce='entropy' is no reduction; it is one of ropebridge's TopK(k), Entropy(),"
            " Largest(), MeanOverQueries(), WeightOn(keys)",
        ),
        (
            lambda: Watch(PATTERN, key=0, reduce=Entropy()),
            "reduce=Entropy() and key=(0,) are given together; a reduction is over all keys, or"
            " WeightOn(keys) over some",
        ),
    ],
    ids=["no_weights", "true", "no_keys", "twice", "a_word", "some_keys"],
)
def test_what_is_no_reduction_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ContractError) as error:
        make()
    assert words in str(error.value)
