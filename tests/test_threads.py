"""Hooks belong to the thread or the `with` block that set them: never another's tensors, never
another's edit."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from ropebridge import ContractError, HookNeverFired, attach, get_bridged_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"
    ),
]

Z = "blocks.0.attn.hook_z"
ROUNDS = 25


def zero(tensor: Tensor, hook: Any) -> Tensor:
    """A hook that replaces by nothing."""
    return torch.zeros_like(tensor)


def look(tensor: Tensor, hook: Any) -> None:
    """A hook that changes nothing."""


@pytest.fixture
def bridged(build: Any) -> Any:
    with attach(build("llama")) as bridged:
        yield bridged


@pytest.fixture(scope="module")
def rows() -> list[Tensor]:
    """Four inputs, no two alike."""
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(3, 99, (1, 8), generator=draw) for _ in range(4)]


def test_caches_of_four_threads_hold_their_own_tensors(bridged: Any, rows: list[Tensor]) -> None:
    wanted = [bridged.run_with_cache(ids, names_filter=Z)[1][Z] for ids in rows]
    start = threading.Barrier(4)

    def run(number: int) -> int:
        start.wait()
        return sum(
            torch.equal(bridged.run_with_cache(rows[number], names_filter=Z)[1][Z], wanted[number])
            for _ in range(ROUNDS)
        )

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(4))) == [ROUNDS] * 4


def test_an_edit_of_one_thread_reaches_no_run_of_another(bridged: Any, rows: list[Tensor]) -> None:
    ids = rows[0]
    plain = bridged(ids).logits
    edited = bridged.run_with_hooks(ids, fwd_hooks=[(Z, zero)]).logits
    start = threading.Barrier(2)

    def run(hooked: bool) -> int:
        start.wait()
        wanted = edited if hooked else plain
        hooks = [(Z, zero)] if hooked else []
        return sum(
            torch.equal(bridged.run_with_hooks(ids, fwd_hooks=hooks).logits, wanted)
            for _ in range(2 * ROUNDS)
        )

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, (True, False))) == [2 * ROUNDS] * 2


def in_thread(run: Any) -> Any:
    """What `run` returns in a thread of its own, in which no event loop runs: the browser of other
    tests keeps one running in theirs."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def test_a_block_of_one_thread_is_not_that_of_another(bridged: Any, tokens: Tensor) -> None:
    plain = bridged(tokens).logits
    with bridged.hooks(fwd_hooks=[(Z, zero)]):
        assert torch.equal(in_thread(lambda: bridged(tokens).logits), plain)
        assert not torch.equal(bridged(tokens).logits, plain)


def test_hooks_that_waited_for_another_thread_are_told_so(bridged: Any, tokens: Tensor) -> None:
    with pytest.raises(HookNeverFired, match="in the thread that set them"):  # noqa: SIM117
        with bridged.hooks(fwd_hooks=[(Z, look)]):
            in_thread(lambda: bridged(tokens))


def test_a_hook_added_in_one_thread_is_an_error_in_another(bridged: Any, tokens: Tensor) -> None:
    handle = bridged.hook_points[Z].add_hook(zero)
    with pytest.raises(ContractError, match=r"added in another thread(.|\n)*hooks\(fwd_hooks="):
        in_thread(lambda: bridged(tokens))
    handle.remove()
    in_thread(lambda: bridged(tokens))


def test_what_to_thread_runs_sees_the_block_of_its_caller(bridged: Any, tokens: Tensor) -> None:
    edited = bridged.run_with_hooks(tokens, fwd_hooks=[(Z, zero)]).logits

    async def run() -> Tensor:
        with bridged.hooks(fwd_hooks=[(Z, zero)]):
            return (await asyncio.to_thread(bridged, tokens)).logits

    assert torch.equal(in_thread(lambda: asyncio.run(run())), edited)


def test_two_tasks_of_one_loop_do_not_see_the_blocks_of_each_other(
    bridged: Any, tokens: Tensor
) -> None:
    plain = bridged(tokens).logits
    edited = bridged.run_with_hooks(tokens, fwd_hooks=[(Z, zero)]).logits

    async def run(hooked: bool) -> Tensor:
        with bridged.hooks(fwd_hooks=[(Z, zero)] if hooked else []):
            await asyncio.sleep(0.01)  # the other task is in its block too
            return bridged(tokens).logits

    async def both() -> list[Tensor]:
        return await asyncio.gather(run(True), run(False))

    got = in_thread(lambda: asyncio.run(both()))
    assert torch.equal(got[0], edited)
    assert torch.equal(got[1], plain)


@pytest.mark.parametrize("hooked", [True, False])
def test_a_backward_pass_in_another_thread_recomputes_under_the_hooks_of_its_forward_pass(
    build: Any, tokens: Tensor, hooked: bool
) -> None:
    """On a GPU autograd recomputes in threads of its own."""
    model = build("llama").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    fired: list[bool] = []

    def half(tensor: Tensor, hook: Any) -> Tensor:
        fired.append(hook.recomputing)
        return tensor * 0.5

    def gradient(elsewhere: bool) -> Tensor:
        model.zero_grad()
        hooks = [(Z, half)] if hooked else []
        with bridged.hooks(fwd_hooks=hooks):
            loss = bridged(tokens, labels=tokens, use_cache=False).loss
            in_thread(loss.backward) if elsewhere else loss.backward()
        return model.model.layers[0].self_attn.q_proj.weight.grad.clone()

    with attach(model) as bridged:
        torch.testing.assert_close(gradient(True), gradient(False))
    assert fired == [False, True] * (2 * hooked)


def test_hooks_of_a_deep_copy_and_of_a_pickle_fire_for_who_made_it(
    bridged: Any, tokens: Tensor
) -> None:
    plain = bridged(tokens).logits
    bridged.hook_points[Z].add_hook(zero)
    edited = bridged(tokens).logits
    copied = copy.deepcopy(bridged.model)
    read = pickle.loads(pickle.dumps(bridged.model))
    bridged.reset_hooks()
    assert torch.equal(bridged(tokens).logits, plain)
    assert torch.equal(get_bridged_model(copied)(tokens).logits, edited)
    assert torch.equal(get_bridged_model(read)(tokens).logits, edited)


def test_each_thread_has_a_ctx_of_its_own(bridged: Any) -> None:
    point = bridged.hook_points[Z]
    point.ctx["seen"] = 1
    assert in_thread(lambda: dict(point.ctx)) == {}
    assert point.ctx == {"seen": 1}
    point.remove_hooks()
    assert point.ctx == {}


def test_a_recording_counts_the_passes_of_its_own_thread(bridged: Any, tokens: Tensor) -> None:
    with bridged.caching(Z) as recording:
        bridged(tokens)
        in_thread(lambda: bridged(tokens))
        bridged(tokens)
    assert recording.steps(Z) == (0, 1)
