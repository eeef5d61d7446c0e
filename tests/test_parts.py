"""Parts of what a hook point holds: what a hook is given, what becomes of its edit, and in which
order (clauses PART-1, PART-2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ropebridge import Selection, Watch, attach, bytes_needed
from ropebridge_spec import ContractError, HookNeverFired, UnknownHook
from ropebridge_spec.parts import resolve_numbers

pytestmark = pytest.mark.slow

SCORES, PATTERN, Z = (f"blocks.0.attn.hook_{name}" for name in ("attn_scores", "pattern", "z"))
PARTS: list[dict[str, Any]] = [
    {"heads": 1},
    {"heads": [3, 0]},
    {"query": -1},
    {"query": slice(-4, None)},
    {"key": [5, 2]},
    {"heads": slice(1, 3), "query": [9, 3], "key": slice(0, 8, 3)},
    {"heads": [0, 3], "query": slice(None, None, 2), "key": 0},
    {"heads": -1, "query": slice(8, 20)},
    {"query": slice(5, 5)},
]


def mesh(part: dict[str, Any], shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Where a part of (batch, head, query, key) lies."""
    chosen = [torch.arange(length) for length in shape]
    for axis, name in ((1, "heads"), (2, "query"), (3, "key")):
        numbers = part.get(name)
        if numbers is not None:
            index = [numbers] if isinstance(numbers, int) else numbers
            chosen[axis] = chosen[axis][index]
    return torch.meshgrid(*chosen, indexing="ij")


@pytest.fixture(scope="module", params=["llama", "gpt_oss"])
def bridged(request: Any) -> Any:
    """Beside a fused kernel, and beside row blocks; the judge asks the other families."""
    from conftest import build_model

    attn = "sdpa" if request.param == "llama" else "eager"
    return attach(build_model(request.param, attn), verify=False)


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_a_part_is_what_the_whole_holds_there(
    bridged: Any, tokens: Tensor, left_padding: Tensor, part: dict[str, Any], grad: bool
) -> None:
    names = [SCORES, PATTERN]
    with torch.set_grad_enabled(grad):
        for extra in ({}, {"attention_mask": left_padding}):
            _, whole = bridged.run_with_cache(tokens, names_filter=names, **extra)
            _, parts = bridged.run_with_cache(tokens, names_filter=names, **part, **extra)
            for name in names:
                wanted = whole[name][mesh(part, whole[name].shape)]
                torch.testing.assert_close(parts[name], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("names", [[SCORES], [PATTERN], [SCORES, PATTERN]], ids=" ".join)
def test_an_edit_of_a_part_is_an_edit_of_the_whole(
    bridged: Any, tokens: Tensor, part: dict[str, Any], names: list[str], grad: bool
) -> None:
    def edit(tensor: Tensor, hook: Any) -> Tensor:
        return tensor * 0.5 + (0.1 if hook.name == PATTERN else 0.0)

    def edit_there(tensor: Tensor, hook: Any) -> Tensor:
        edited = tensor.clone()
        there = mesh(part, tensor.shape)
        edited[there] = edit(tensor[there], hook)
        return edited

    with torch.set_grad_enabled(grad):
        pairs = [(name, edit) for name in names]
        left = bridged.run_with_hooks(tokens, fwd_hooks=pairs, **part).logits
        pairs = [(name, edit_there) for name in names]
        wanted = bridged.run_with_hooks(tokens, fwd_hooks=pairs).logits
        plain = bridged(tokens).logits
    torch.testing.assert_close(left, wanted, rtol=1e-4, atol=3e-5)
    if part.get("query") != slice(5, 5):
        assert not torch.allclose(left, plain, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_looking_at_parts_leaves_the_output_as_it_is_to_the_bit(
    build: Any, tokens: Tensor, dtype: torch.dtype
) -> None:
    bridged = attach(build("llama", "sdpa").to(dtype), verify=False)
    with torch.no_grad():
        plain = bridged(tokens).logits
        output, _ = bridged.run_with_cache(tokens, query=-1, heads=0)
        assert torch.equal(output.logits, plain)


@pytest.mark.parametrize("name", [SCORES, PATTERN, Z])
@pytest.mark.parametrize("whole", [False, True], ids=["parts_alone", "beside_the_whole"])
def test_parts_are_called_in_order_and_see_what_those_before_left(
    build: Any, tokens: Tensor, name: str, whole: bool
) -> None:
    bridged = attach(build("llama", "sdpa"), verify=False)
    called: list[str] = []
    seen: dict[str, Tensor] = {}
    at = 1 if name == Z else 2  # the axis of positions

    def look(word: str) -> Any:
        def hook(tensor: Tensor, hook: Any) -> None:
            called.append(word)
            seen[word] = tensor.clone()

        return hook

    def halve(tensor: Tensor, hook: Any) -> None:
        called.append("halve")
        tensor.mul_(0.5)

    pairs = [
        (Watch(name, heads=0), look("before")),
        (Watch(name, query=slice(4, 8)), halve),
        (Watch(name, query=[7, 3]), look("after")),
        (Watch(name, heads=0), look("head")),
    ]
    if whole:
        pairs.insert(2, (name, look("whole")))
    with torch.no_grad():
        bridged.run_with_hooks(tokens, fwd_hooks=pairs)
    expected = ["before", "halve", *(["whole"] if whole else []), "after", "head"]
    assert called == expected
    wanted = seen["before"].clone()
    wanted.narrow(at, 4, 4).mul_(0.5)
    assert torch.equal(seen["head"], wanted)
    assert torch.equal(seen["after"].select(at, 0)[:, :1], seen["head"].select(at, 7)[:, :1])
    assert torch.equal(seen["after"].select(at, 1)[:, :1], seen["head"].select(at, 3)[:, :1])


def test_a_hook_is_told_which_part_it_is_given(build: Any, tokens: Tensor) -> None:
    bridged = attach(build("llama"), verify=False)
    told: list[Any] = []

    def look(tensor: Tensor, hook: Any) -> None:
        told.append((hook.selection, tuple(tensor.shape), hook.name, hook.layer()))

    with torch.no_grad():
        bridged.run_with_hooks(
            tokens,
            fwd_hooks=[
                (Watch(PATTERN, heads=-1, query=slice(-3, None), key=[4, 2]), look),
                (Watch(Z, query=2), look),
                (PATTERN, look),
            ],
        )
    batch, pos = tokens.shape
    variant = bridged.layers[0].variant
    last = range(variant.heads - 1, variant.heads)
    assert told == [
        (Selection(last, range(pos - 3, pos), (4, 2)), (batch, 1, 3, 2), PATTERN, 0),
        (None, (batch, variant.heads, pos, pos), PATTERN, 0),
        (
            Selection(None, range(2, 3), None),
            (batch, 1, variant.heads, variant.d_head_v),
            Z,
            0,
        ),
    ]


@pytest.mark.parametrize("part", [{"heads": [0, 2], "query": slice(3, 6)}, {"key": 0}], ids=str)
@pytest.mark.parametrize("name", [SCORES, PATTERN, Z])
def test_gradients_at_a_part_are_those_of_the_whole(
    build: Any, tokens: Tensor, part: dict[str, Any], name: str
) -> None:
    """Taken at what a hook was given (retain_grad), shown to a backward hook, and changed there."""
    if name == Z and "key" in part:
        part = {"query": 2}
    bridged = attach(build("llama", "sdpa"), verify=False)
    shown: dict[str, Tensor] = {}

    def keep(tensor: Tensor, hook: Any) -> None:
        tensor.retain_grad()
        shown["at"] = tensor

    def look(gradient: Tensor, hook: Any) -> None:
        shown["backward"] = gradient.clone()

    def gradient_of_weights(hook: Any, **narrowing: Any) -> Tensor:
        bridged.model.zero_grad()
        with bridged.hooks(bwd_hooks=[(name, hook)], **narrowing):
            bridged(tokens).logits.pow(2).sum().backward()
        return bridged.model.model.layers[0].self_attn.q_proj.weight.grad.clone()

    with bridged.hooks([(Watch(name, **part), keep)], [(Watch(name, **part), look)]):
        bridged(tokens).logits.pow(2).sum().backward()
    with bridged.hooks(bwd_hooks=[(name, lambda g, hook: shown.update(whole=g.clone()))]):
        bridged(tokens).logits.pow(2).sum().backward()
    axes = {"heads": 1, "query": 2, "key": 3} if name != Z else {"heads": 2, "query": 1}
    wanted = shown["whole"]
    for way, numbers in part.items():
        index = [numbers] if isinstance(numbers, int) else numbers
        wanted = wanted[(slice(None),) * axes[way] + (index,)]
    torch.testing.assert_close(shown["at"].grad, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shown["backward"], wanted, rtol=1e-4, atol=1e-5)
    stopped = gradient_of_weights(lambda g, hook: torch.zeros_like(g), **part)
    assert not torch.allclose(stopped, gradient_of_weights(lambda g, hook: None, **part))


def test_a_part_that_is_not_counted_by_torch_is_an_edit_too(build: Any, tokens: Tensor) -> None:
    """Written through numpy, and in inference mode."""
    bridged = attach(build("llama", "sdpa"), verify=False)

    def counted(tensor: Tensor, hook: Any) -> Tensor:
        return tensor * 0.5

    def uncounted(tensor: Tensor, hook: Any) -> None:
        tensor.numpy()[:] *= 0.5

    with torch.inference_mode():
        one, other = (
            bridged.run_with_hooks(tokens, fwd_hooks=[(PATTERN, fn)], query=-1).logits
            for fn in (counted, uncounted)
        )
    assert torch.equal(one, other)


def test_a_decoding_step_counts_its_own_positions(build: Any, tokens: Tensor) -> None:
    bridged = attach(build("llama", "sdpa"), verify=False)
    with torch.no_grad():
        with bridged.caching(PATTERN, query=-1, heads=[1]) as cache:
            written = bridged.model.generate(tokens, max_new_tokens=4, do_sample=False)
        _, whole = bridged.run_with_cache(written[:, :-1], names_filter=PATTERN)
    steps = slice(tokens.shape[1] - 1, None)
    wanted = whole[PATTERN][:, 1:2, steps]
    assert cache.joined(PATTERN).shape == wanted.shape
    torch.testing.assert_close(cache.joined(PATTERN), wanted, rtol=1e-4, atol=1e-6)


def test_bytes_needed_of_a_part_are_those_that_a_cache_takes(build: Any, tokens: Tensor) -> None:
    bridged = attach(build("llama"), verify=False)
    watches = [Watch(PATTERN, heads=[1, 3], query=slice(-4, None)), Watch(Z, query=-1)]
    with torch.no_grad():
        _, cache = bridged.run_with_cache(tokens, names_filter=watches)
    taken = sum(tensor.nbytes for tensor in cache.values())
    assert bytes_needed(bridged, watches, *tokens.shape) == taken


def test_hook_points_without_the_axis_stay_whole(build: Any, tokens: Tensor) -> None:
    """Where many are narrowed at once."""
    bridged = attach(build("llama"), verify=False)
    with torch.no_grad():
        _, cache = bridged.run_with_cache(tokens, heads=0, key=slice(0, 2))
    batch, pos = tokens.shape
    variant = bridged.layers[0].variant
    assert cache[PATTERN].shape == (batch, 1, pos, 2)
    assert cache["blocks.0.attn.hook_rot_k"].shape == (batch, pos, 1, variant.d_head)
    assert cache["blocks.0.attn.hook_in"].shape == (batch, pos, variant.d_model)


REFUSED = [
    (
        {"heads": "first"},
        "heads='first' names no part; it is a number, a slice, a list of numbers, or None for all"
        " (clause PART-1)",
    ),
    ({"query": 1.5}, "query=1.5 names no part; it is a number, a slice, a list of numbers"),
    ({"query": True}, "query=True names no part"),
    ({"key": torch.tensor([True, False])}, "names no part"),
    (
        {"key": [1, 1]},
        "key=[1, 1] names a place twice; clause PART-1 requires each number once",
    ),
    (
        {"query": [2, -10]},
        "hook 'blocks.0.attn.hook_pattern', query=[2, -10] names a place twice",
    ),
    (
        {"query": [99]},
        "hook 'blocks.0.attn.hook_pattern', query=[99] names 99, and the axis is 12 long; clause"
        " PART-1 requires numbers from 0, or from -1 at the end; a slice takes those that there"
        " are",
    ),
]


@pytest.mark.parametrize(("part", "words"), REFUSED, ids=str)
def test_what_is_no_part_is_refused(
    build: Any, tokens: Tensor, part: dict[str, Any], words: str
) -> None:
    bridged = attach(build("llama", "sdpa"), verify=False)
    with pytest.raises(ContractError) as error:
        bridged.run_with_cache(tokens, names_filter=PATTERN, **part)
    assert words in str(error.value)
    assert not any(point.watched for point in bridged.hook_points.values())


def test_an_axis_that_is_not_there_is_refused(build: Any, tokens: Tensor) -> None:
    bridged = attach(build("llama"), verify=False)
    with pytest.raises(ContractError) as error:
        bridged.run_with_cache(tokens, names_filter=Watch("blocks.0.attn.hook_in", heads=0))
    assert str(error.value) == (
        "hook 'blocks.0.attn.hook_in' cannot be narrowed by heads=: its axes are batch pos d_model,"
        " and clause PART-1 requires one of head, kv_head, pair"
    )
    with pytest.raises(ContractError) as error:
        bridged.run_with_cache(tokens, names_filter="blocks.0.attn.hook_in", key=0)
    assert str(error.value) == (
        "key=0 narrows nothing: no hook point that is asked for has one of the axes key (clause"
        " PART-1)"
    )
    with pytest.raises(ContractError, match="cannot be narrowed by key="):
        bridged.hook_points[Z].add_hook(lambda tensor, hook: None, key=0)


def test_two_parts_of_one_hook_point_cannot_be_kept_under_one_name(
    build: Any, tokens: Tensor
) -> None:
    bridged = attach(build("llama"), verify=False)
    watches = [Watch(PATTERN, heads=0), Watch(PATTERN, heads=1)]
    with pytest.raises(ContractError) as error:
        bridged.run_with_cache(tokens, names_filter=watches)
    assert str(error.value) == (
        "two parts of 'blocks.0.attn.hook_pattern' are to be kept, and a cache keeps one tensor for"
        " each name\n  run for each of them, or keep them by hooks of your own: with"
        " bridged.hooks([(Watch(name, heads=0), fn), ...])"
    )
    with pytest.raises(ContractError, match="pos_slice=-1 and query=3, which both"):
        bridged.run_with_cache(tokens, pos_slice=-1, query=3)
    with pytest.raises(UnknownHook):
        bridged.run_with_cache(tokens, names_filter=Watch("blocks.9.attn.hook_z", heads=0))


def test_an_edit_of_a_part_is_held_to_the_contract(build: Any, tokens: Tensor) -> None:
    bridged = attach(build("llama", "sdpa"), verify=False)

    def refused(name: str, fn: Any) -> str:
        with torch.no_grad(), pytest.raises(ContractError) as error:
            bridged.run_with_hooks(tokens, fwd_hooks=[(name, fn)], heads=1, query=slice(2, 5))
        return str(error.value)

    def fill(number: float) -> Any:
        return lambda tensor, hook: torch.full_like(tensor, number)

    assert "clause SCORE-3 requires finite" in refused(SCORES, fill(torch.nan))
    assert "clause SCORE-6" in refused(SCORES, fill(0.0))
    assert "left NaN in the pattern" in refused(PATTERN, fill(torch.nan))
    assert "clause PAT-2 requires (2, 1, 3, 12)" in refused(PATTERN, lambda t, hook: t[:1])
    with pytest.raises(HookNeverFired), bridged.hooks([(PATTERN, fill(0.0))], query=-1):
        pass


@pytest.mark.parametrize(
    ("numbers", "resolved"),
    [
        (slice(-3, None), range(7, 10)),
        (slice(8, 20), range(8, 10)),
        (slice(None, None, -4), range(9, -1, -4)),
        ((-1, 0), (9, 0)),
        ((3, 4, 5), range(3, 6)),
        ((), range(0)),
    ],
    ids=str,
)
def test_numbers_are_resolved_as_python_does(numbers: Any, resolved: Any) -> None:
    assert resolve_numbers(numbers, 10, "x") == resolved
