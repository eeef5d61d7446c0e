"""An attached model computes what it computed: logits, generated tokens, attention weights (clauses
PAR-1, PAT-3)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from few import FAMILIES, FOUR
from ropebridge import attach

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
"""Of the largest logit: two layers of float32 rounding, forty times less than any wrong stage
does."""

REFUSES_SDPA = {"gemma2", "gpt_oss"}
KERNELS = [
    pytest.param(
        family,
        attn,
        id=f"{family}-{attn}",
        marks=() if family in FOUR else pytest.mark.every,
    )
    for family in FAMILIES
    for attn in ("eager", "sdpa")
    if attn == "eager" or family not in REFUSES_SDPA
]
every_kernel = pytest.mark.parametrize(("family", "attn"), KERNELS)


def far(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, in units of the largest number wanted."""
    return float((got - wanted).abs().max() / wanted.abs().max())


def continued(model: Any, tokens: Tensor, mask: Tensor, **options: Any) -> Tensor:
    """Eight tokens more, chosen greedily."""
    return model.generate(
        tokens, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False, **options
    )


@every_kernel
@torch.no_grad()
def test_the_logits_are_those_of_the_model_alone(
    build: Any, tokens: Tensor, family: str, attn: str
) -> None:
    model = build(family, attn)
    wanted = model(tokens).logits
    with attach(model) as bridged:
        assert far(bridged(tokens).logits, wanted) <= TOLERANCE


@every_kernel
@torch.no_grad()
def test_left_padding_gives_the_logits_of_the_model_alone(
    build: Any, tokens: Tensor, left_padding: Tensor, family: str, attn: str
) -> None:
    model, real = build(family, attn), left_padding.bool()
    wanted = model(tokens, attention_mask=left_padding).logits[real]
    with attach(model) as bridged:
        assert far(bridged(tokens, attention_mask=left_padding).logits[real], wanted) <= TOLERANCE


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "gpt_oss"])
@torch.no_grad()
def test_the_window_of_these_inputs_is_felt(build: Any, tokens: Tensor, family: str) -> None:
    """Else the tests above would say nothing of windows."""
    model, wide = build(family), build(family, sliding_window=64)
    assert far(wide(tokens).logits, model(tokens).logits) > 100 * TOLERANCE


@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
@every_kernel
@torch.no_grad()
def test_generate_gives_the_tokens_of_the_model_alone(
    build: Any, tokens: Tensor, left_padding: Tensor, family: str, attn: str, cache: str
) -> None:
    options = {
        "dynamic": {},
        "static": {"cache_implementation": "static"},
        "none": {"use_cache": False},
    }[cache]
    model = build(family, attn)
    wanted = continued(model, tokens, left_padding, **options)
    with attach(model):
        assert torch.equal(continued(model, tokens, left_padding, **options), wanted)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@torch.no_grad()
def test_generate_while_all_is_watched_gives_the_tokens_of_the_model_alone(
    build: Any, tokens: Tensor, left_padding: Tensor, family: str, cache: str
) -> None:
    options = {"dynamic": {}, "static": {"cache_implementation": "static"}}[cache]
    model = build(family)
    wanted = continued(model, tokens, left_padding, **options)
    with attach(model) as bridged, bridged.hooks([(lambda _: True, lambda tensor, hook: None)]):
        assert torch.equal(continued(model, tokens, left_padding, **options), wanted)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64], ids=["bfloat16", "float16", "float64"]
)
@torch.no_grad()
def test_other_dtypes_stay_at_their_own_rounding(
    build: Any, tokens: Tensor, family: str, dtype: torch.dtype
) -> None:
    """Judged by the root mean square against the float64 model: no worse than the model alone, by
    more than chance."""
    truth = build(family).double()(tokens).logits
    model = build(family).to(dtype)
    alone = (model(tokens).logits - truth).square().mean().sqrt()
    with attach(model) as bridged:
        bridged_error = (bridged(tokens).logits - truth).square().mean().sqrt()
    # in float64 Hugging Face's own norms and softmax round to float32
    floor = 1e-6 * truth.square().mean().sqrt()
    assert bridged_error <= 1.3 * alone + floor


@torch.no_grad()
def test_attention_weights_that_are_asked_for_are_the_patterns(
    build: Any, tokens: Tensor, family: str
) -> None:
    model = build(family)
    wanted = model(tokens, output_attentions=True).attentions
    with attach(model) as bridged:
        output, cache = bridged.run_with_cache(
            tokens, output_attentions=True, names_filter=lambda name: name.endswith("hook_pattern")
        )
    assert [torch.equal(a, b) for a, b in zip(output.attentions, cache.values(), strict=True)] == [
        True,
        True,
    ]
    assert max(far(a, b) for a, b in zip(output.attentions, wanted, strict=True)) <= TOLERANCE


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("edited", ["cache", "attentions"])
def test_attention_weights_and_the_cached_pattern_are_two_tensors(
    build: Any, tokens: Tensor, family: str, edited: str, grad: bool
) -> None:
    """EDIT-2: what a hook was shown is nobody else's."""
    name = "blocks.0.attn.hook_pattern"
    with attach(build(family)) as bridged, torch.set_grad_enabled(grad):
        output, cache = bridged.run_with_cache(tokens, output_attentions=True, names_filter=name)
    tensors = {"cache": cache[name], "attentions": output.attentions[0].detach()}
    other = tensors["attentions" if edited == "cache" else "cache"]
    before = other.clone()
    tensors[edited].zero_()
    assert torch.equal(other, before)


@torch.no_grad()
def test_attention_weights_are_copied_only_where_the_pattern_is_watched(
    build: Any, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[tuple[int, ...]] = []
    clone = Tensor.clone
    monkeypatch.setattr(
        Tensor,
        "clone",
        lambda tensor, **options: (copied.append(tuple(tensor.shape)), clone(tensor, **options))[1],
    )
    with attach(build("llama")) as bridged:
        copied.clear()
        bridged(tokens, output_attentions=True)
        assert (2, 6, 12, 12) not in copied
        bridged.run_with_cache(tokens, output_attentions=True, names_filter="blocks.0.attn.hook_z")
        assert (2, 6, 12, 12) not in copied
        bridged.run_with_cache(tokens, names_filter="blocks.0.attn.hook_pattern")
        assert (2, 6, 12, 12) not in copied
        bridged.run_with_cache(
            tokens, output_attentions=True, names_filter="blocks.0.attn.hook_pattern"
        )
        assert copied.count((2, 6, 12, 12)) == 1


@torch.no_grad()
def test_attention_weights_come_from_a_model_loaded_with_sdpa_too(
    build: Any, tokens: Tensor
) -> None:
    """Hugging Face's own sdpa has none to give."""
    wanted = build("llama", "eager")(tokens, output_attentions=True).attentions
    with attach(build("llama", "sdpa")) as bridged:
        given = bridged(tokens, output_attentions=True).attentions
    assert max(far(a, b) for a, b in zip(given, wanted, strict=True)) <= TOLERANCE


@torch.no_grad()
def test_attention_weights_are_left_out_where_nobody_asks(build: Any, tokens: Tensor) -> None:
    with attach(build("llama")) as bridged:
        assert bridged(tokens).attentions is None


@pytest.mark.parametrize("watched", [False, True], ids=["unwatched", "watched"])
def test_gradients_of_the_weights_are_those_of_the_model_alone(
    build: Any, tokens: Tensor, family: str, watched: bool
) -> None:
    model = build(family)
    wanted = weight_gradients(model, tokens)
    hooks = [(lambda _: True, lambda tensor, hook: None)] if watched else []
    with attach(model) as bridged, bridged.hooks(hooks):
        given = weight_gradients(model, tokens)
    assert max(far(given[name], wanted[name]) for name in wanted) <= 5 * TOLERANCE


def weight_gradients(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    """The gradient of a loss by every parameter that takes part."""
    model.zero_grad()
    model(tokens, labels=tokens).loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
