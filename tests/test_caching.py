"""Caches: of one run by name, and of every firing of whatever runs."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

from ropebridge import ContractError, HookNeverFired, UnknownHook, attach
from ropebridge.kernels import shown

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"
    ),
]

Z, PATTERN, SCORES = (f"blocks.0.attn.hook_{name}" for name in ("z", "pattern", "attn_scores"))
COS = "blocks.0.attn.hook_cos"


@pytest.fixture
def bridged(build: Any) -> Any:
    with attach(build("llama")) as bridged:
        yield bridged


# ---- every firing ----


def test_every_firing_of_a_generation_is_kept_in_order_with_its_step(
    bridged: Any, tokens: Tensor
) -> None:
    with bridged.caching(Z, PATTERN) as cache:
        bridged.model.generate(tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert set(cache) == {Z, PATTERN}
    assert [tensor.shape[1] for tensor in cache[Z]] == [12, 1, 1, 1]
    assert cache.steps(Z) == (0, 1, 2, 3)
    assert [firing.name for firing in cache.firings] == [PATTERN, Z] * 4
    assert repr(cache) == "Recording(8 firings of 2 hook points in 4 steps)"


def test_steps_joined_along_positions_are_one_run_of_the_whole_text(
    bridged: Any, tokens: Tensor
) -> None:
    with bridged.caching(Z, PATTERN, SCORES) as cache:
        text = bridged.model.generate(tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    _, whole = bridged.run_with_cache(text[:, :-1], names_filter=[Z, PATTERN, SCORES])
    for name in (Z, PATTERN, SCORES):
        torch.testing.assert_close(cache.joined(name), whole[name], rtol=1e-4, atol=1e-5)


def test_a_recording_holds_what_an_edit_left_and_may_be_kept_elsewhere_in_another_dtype(
    bridged: Any, tokens: Tensor
) -> None:
    with (
        bridged.hooks(fwd_hooks=[(Z, lambda z, hook: z * 0)]),
        bridged.caching(Z, device="cpu", dtype=torch.float16) as cache,
    ):
        bridged(tokens)
    (z,) = cache[Z]
    assert z.dtype == torch.float16
    assert not z.any()


def test_a_part_of_a_model_is_recorded_while_the_whole_runs(build: Any, tokens: Tensor) -> None:
    model = build("llama")
    with attach(model.model) as bridged, bridged.caching(Z) as cache:
        model(tokens)
        model(tokens)
    assert cache.steps(Z) == (0, 1)


def test_a_layer_that_runs_several_times_in_one_pass_keeps_all_of_them(build: Any) -> None:
    model = build("hrm_text")
    ids = torch.arange(8).unsqueeze(0)
    with attach(model) as bridged:
        name = next(name for name in bridged.hook_points if name.endswith("hook_z"))
        with bridged.caching(name) as cache:
            bridged(ids)
        assert len(cache[name]) > 1
        assert set(cache.steps(name)) == {0}
        with pytest.raises(ContractError, match="fired several times in one step"):
            cache.joined(name)
        with pytest.raises(ContractError, match=r"fired twice in this run(.|\n)*bridged\.caching"):
            bridged.run_with_cache(ids, names_filter=name)


def test_recomputation_under_checkpointing_is_no_firing_of_its_own(
    build: Any, tokens: Tensor
) -> None:
    model = build("llama").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with attach(model) as bridged, bridged.caching(Z) as cache:
        bridged(tokens, labels=tokens, use_cache=False).loss.backward()
    assert len(cache[Z]) == 1


def test_what_cannot_be_joined_or_was_not_recorded_is_said(bridged: Any, tokens: Tensor) -> None:
    with bridged.caching(Z, PATTERN) as cache:
        bridged(tokens)
        bridged(tokens[:1])
    with pytest.raises(ContractError, match="cannot be joined along positions"):
        cache.joined(Z)
    with pytest.raises(KeyError, match=r"was not recorded; nearest: blocks\.0\.attn\.hook_z"):
        cache["blocks.0.attn.hook_y"]
    with pytest.raises(UnknownHook), bridged.caching("hook_zz"):
        pass
    with pytest.raises(HookNeverFired), bridged.caching(Z):
        pass


def test_what_was_recorded_before_an_error_is_kept_and_no_hook_stays(
    bridged: Any, tokens: Tensor
) -> None:
    with pytest.raises(ContractError, match="was given the text"), bridged.caching(Z) as cache:
        bridged(tokens) and bridged("a text")
    assert len(cache[Z]) == 1
    assert not bridged.model.model._forward_pre_hooks
    assert not any(point.watched for point in bridged.hook_points.values())


# ---- one run ----


def test_a_cache_holds_what_hooks_given_with_it_left(bridged: Any, tokens: Tensor) -> None:
    output, cache = bridged.run_with_cache(
        tokens, names_filter=Z, fwd_hooks=[(Z, lambda z, hook: z * 0)]
    )
    assert not cache[Z].any()
    assert not torch.equal(output.logits, bridged(tokens).logits)


def test_gradients_are_kept_beside_values_on_request(bridged: Any, tokens: Tensor) -> None:
    kept: dict[str, Tensor] = {}
    with bridged.hooks(bwd_hooks=[(Z, lambda grad, hook: kept.update({hook.name: grad.clone()}))]):
        bridged(tokens, labels=tokens).loss.backward()
    _, cache = bridged.run_with_cache(tokens, labels=tokens, incl_bwd=True)
    torch.testing.assert_close(cache[f"{Z}_grad"], kept[Z])
    assert f"{COS}_grad" not in cache  # no gradient flows through the tables
    with pytest.raises(ContractError, match=r"pass labels=input_ids"):
        bridged.run_with_cache(tokens, incl_bwd=True)


@pytest.mark.parametrize(
    ("positions", "wanted"), [(-1, -1), (slice(2, 5), slice(2, 5)), ([0, 3], [0, 3])]
)
def test_positions_are_chosen_as_transformer_lens_does(
    bridged: Any, tokens: Tensor, positions: Any, wanted: Any
) -> None:
    _, whole = bridged.run_with_cache(tokens)
    _, cache = bridged.run_with_cache(tokens, pos_slice=positions)
    assert torch.equal(cache[Z], whole[Z][:, wanted])
    assert torch.equal(cache[PATTERN], whole[PATTERN][:, :, wanted])
    assert torch.equal(cache[COS], whole[COS][:, wanted])
    assert cache[Z].untyped_storage().nbytes() < whole[Z].untyped_storage().nbytes()


def test_a_batch_of_one_goes_away_on_request_and_a_longer_one_is_refused(
    bridged: Any, tokens: Tensor
) -> None:
    _, cache = bridged.run_with_cache(tokens[:1], names_filter=Z, remove_batch_dim=True)
    assert cache[Z].shape[0] == 12
    with pytest.raises(ContractError, match=r"batch axis of length 1(.|\n)*batch of 2"):
        bridged.run_with_cache(tokens, names_filter=Z, remove_batch_dim=True)


def test_a_cache_is_kept_in_another_dtype_and_integers_are_not(
    bridged: Any, tokens: Tensor
) -> None:
    _, cache = bridged.run_with_cache(tokens, names_filter=Z, dtype=torch.bfloat16)
    assert cache[Z].dtype == torch.bfloat16


def test_a_cache_is_read_as_transformer_lens_reads_it_and_names_what_is_near(
    bridged: Any, tokens: Tensor
) -> None:
    _, cache = bridged.run_with_cache(tokens)
    assert cache["pattern", 0] is cache[PATTERN]
    assert cache["hook_z", 0] is cache[Z]
    with pytest.raises(KeyError, match=r"does not hold 'blocks.0.attn.hook_zz'; nearest: blocks.0"):
        cache["blocks.0.attn.hook_zz"]


def test_a_cache_of_everything_in_many_layers_costs_what_its_hooks_cost(build: Any) -> None:
    """At most 1.5 times as long as the same hooks added one by one; medians of interleaved runs.
    Where hook points were looked up anew for each name it was ten times."""
    ids = torch.arange(8).unsqueeze(0)
    with attach(build("llama", num_hidden_layers=40), verify=False) as bridged:

        def one_by_one() -> None:
            kept: dict[str, Tensor] = {}
            handles = [
                point.add_hook(lambda tensor, hook: kept.update({hook.name: tensor.detach()}))
                for point in bridged.hook_points.values()
            ]
            bridged(ids)
            for handle in handles:
                handle.remove()

        def timed(run: Any) -> float:
            began = time.perf_counter()
            run()
            return time.perf_counter() - began

        pairs = [(timed(lambda: bridged.run_with_cache(ids)), timed(one_by_one)) for _ in range(12)]
        assert median(cached / single for cached, single in pairs) < 1.5


def test_z_does_not_wait_for_a_cache_that_keeps_the_pattern(
    build: Any, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made on the way, where nobody else is shown the pattern who may edit it."""
    bridged = attach(build("llama", "sdpa"), verify=False)
    name = "blocks.0.attn.hook_pattern"
    with torch.no_grad():
        plain = bridged(tokens).logits
        halved = bridged.run_with_hooks(tokens, fwd_hooks=[(name, lambda p, hook: p * 0.5)]).logits
        mixed: list[Any] = []
        real = shown.mix
        monkeypatch.setattr(shown, "mix", lambda *given: mixed.append(given) or real(*given))
        output, _ = bridged.run_with_cache(tokens, names_filter=name)
        assert not mixed
        torch.testing.assert_close(output.logits, plain, rtol=1e-4, atol=1e-5)
        output, cache = bridged.run_with_cache(
            tokens, names_filter=name, fwd_hooks=[(name, lambda p, hook: p.mul_(0.5))]
        )
    assert len(mixed) == 1
    torch.testing.assert_close(output.logits, halved, rtol=1e-4, atol=1e-5)
    assert float(cache[name].sum(-1).max()) < 0.51
