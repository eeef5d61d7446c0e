"""attach stands for what the model really does: proved at lengths that its class knows of, by the
implementation that it runs, held to in every call, and without a trace."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama import modeling_llama

from ropebridge import FAMILIES, AttachError, ContractError, VerificationError, attach
from ropebridge.proof import lengths_of, numbers_of

pytestmark = pytest.mark.slow

OWN = modeling_llama.LlamaAttention.forward
CLAIMED = {**FAMILIES, "LlamaAttention": replace(FAMILIES["LlamaAttention"], source="")}
"""Somebody says that whatever is called LlamaAttention computes what it does in transformers."""


# ---- lengths ----


def log_n_scaling(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Scores grow with the logarithm of how many keys there are, beyond 256."""
    cache = kwargs.get("cache", kwargs.get("past_key_values"))
    keys = hidden_states.shape[1] + (cache.get_seq_length(self.layer_idx) if cache else 0)
    scale = self.scaling
    self.scaling = scale * max(1.0, math.log(keys) / math.log(256))
    try:
        return OWN(self, hidden_states, *args, **kwargs)
    finally:
        self.scaling = scale


def own_window(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Keys more than 256 positions back are not seen, whatever the mask says."""
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.shape[-1] > 256:
        mask = mask.clone()
        mask[..., : mask.shape[-1] - 256] = torch.finfo(mask.dtype).min
    return OWN(self, hidden_states, *args, **{**kwargs, "attention_mask": mask})


def far_positions(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Queries beyond position 256, as the tables show, are another size: the slowest pair of
    dimensions then has turned farther than it does within them."""
    cos, sin = kwargs["position_embeddings"]
    turned = torch.atan2(sin[..., SLOWEST], cos[..., SLOWEST]).abs().max()
    scale = self.scaling
    self.scaling = scale * (1.5 if turned > TURNED_AT_256 else 1.0)
    try:
        return OWN(self, hidden_states, *args, **kwargs)
    finally:
        self.scaling = scale


SLOWEST, TURNED_AT_256 = 9, 256 * 10000 ** (-18 / 20)
"""Of a head of width 20: the pair that turns least, and how far (radians) at position 256."""


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("patch", [log_n_scaling, own_window, far_positions])
def test_what_differs_beyond_a_length_of_the_config_is_found(
    build: Any, monkeypatch: pytest.MonkeyPatch, patch: Callable[..., Any], attn: str
) -> None:
    """Even where somebody claims the class, so that its source is not asked."""
    model = build("llama", attn, max_position_embeddings=256)
    with attach(model, families=CLAIMED):
        pass
    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", wraps(OWN)(patch))
    with pytest.raises(VerificationError, match="does not reproduce the LlamaAttention it wraps"):
        attach(model, families=CLAIMED)


def test_every_number_of_a_module_and_its_config_is_a_length_to_reach_beyond(build: Any) -> None:
    model = build("mistral", max_position_embeddings=777, sliding_window=33)
    layer = model.model.layers[0].self_attn
    layer.chunk = 4444
    layer.config.rope_parameters["original_max_position_embeddings"] = 555
    assert {777, 33, 4444, 555} <= {number for _, number in numbers_of(layer)}
    assert {777, 33, 4444, 555} <= set(lengths_of(layer))
    assert layer.config.vocab_size not in lengths_of(layer)


# ---- functions and switches ----


def other_attention(*args: Any, **kwargs: Any) -> Any:
    """sdpa, its output doubled."""
    out, pattern = sdpa_attention_forward(*args, **kwargs)
    return 2 * out, pattern


@pytest.fixture
def register() -> Any:
    """`register(name, function)` until the test ends."""
    before = dict(AttentionInterface._global_mapping)
    yield AttentionInterface.register
    AttentionInterface._global_mapping.clear()
    AttentionInterface._global_mapping.update(before)


REGISTERED = (
    r"attends by a function that was registered as 'sdpa' \(.*other_attention\), and the bridge"
    r" stands for transformers' own\n  register it under a name of its own"
)


def test_a_function_registered_under_a_known_name_is_refused(build: Any, register: Any) -> None:
    register("sdpa", other_attention)
    with pytest.raises(AttachError, match=REGISTERED):
        attach(build("llama", "sdpa"))
    attach(build("llama", "eager"))  # which does not run it


def test_a_function_registered_later_is_refused_at_the_next_call(
    build: Any, register: Any, tokens: Tensor
) -> None:
    with attach(build("llama", "sdpa")) as bridged:
        bridged(tokens)
        register("sdpa", other_attention)
        with pytest.raises(AttachError, match=REGISTERED):
            bridged(tokens)


@pytest.mark.parametrize("name", ["paged|eager", "mine"])
def test_an_implementation_set_later_is_refused_as_attach_would(
    build: Any, register: Any, tokens: Tensor, left_padding: Tensor, name: str
) -> None:
    register("mine", other_attention)
    with attach(build("llama")) as bridged:
        bridged.model.set_attn_implementation(name)
        with pytest.raises(AttachError, match=re.escape(f"attends by '{name}', and the bridge")):
            bridged(tokens, attention_mask=left_padding)


def test_an_implementation_that_is_served_may_be_set_later(build: Any, tokens: Tensor) -> None:
    model = build("llama", "eager")
    wanted = model(tokens).logits
    with attach(model) as bridged:
        model.set_attn_implementation("sdpa")
        torch.testing.assert_close(bridged(tokens).logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("switch", "value"), [("is_causal", False), ("scaling", 0.1), ("attention_dropout", 0.5)]
)
def test_a_switch_of_a_module_that_was_turned_is_an_error_at_the_next_call(
    build: Any, tokens: Tensor, switch: str, value: Any
) -> None:
    with attach(build("llama")) as bridged:
        layer = bridged.layers[1].wrapped
        then = getattr(layer, switch)
        setattr(layer, switch, value)
        message = (
            rf"^'blocks\.1\.attn' is not what it was when it was attached to: {switch} of its"
            rf" LlamaAttention was {then!r} and is {value!r}\n  attach again"
        )
        with pytest.raises(AttachError, match=message):
            bridged(tokens)
        setattr(layer, switch, then)
        bridged(tokens)


def test_a_switch_of_a_config_that_was_turned_is_an_error_at_the_next_call(
    build: Any, tokens: Tensor
) -> None:
    with attach(build("mistral")) as bridged:
        bridged.model.config.sliding_window = 3
        with pytest.raises(AttachError, match="sliding_window of its MistralConfig was 5 and is 3"):
            bridged(tokens)


def test_a_class_that_was_patched_later_is_an_error_at_the_next_call(
    build: Any, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attach(build("llama")) as bridged:
        monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", own_window)
        with pytest.raises(AttachError, match="the forward of its class LlamaAttention was repl"):
            bridged(tokens)
        monkeypatch.undo()
        bridged(tokens)


def test_train_mode_and_a_new_cache_are_no_switches(build: Any, tokens: Tensor) -> None:
    model = build("llama")
    wanted = model.generate(tokens, max_new_tokens=2, do_sample=False)
    alone = model(tokens).logits
    with attach(model) as bridged:
        model.train()
        torch.testing.assert_close(bridged(tokens).logits, alone, rtol=1e-5, atol=1e-5)
        model.eval()
        assert torch.equal(model.generate(tokens, max_new_tokens=2, do_sample=False), wanted)


# ---- decoders that are made encoders ----


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_a_decoder_that_its_config_makes_an_encoder_is_served(
    build: Any, tokens: Tensor, left_padding: Tensor, family: str, attn: str, padded: bool
) -> None:
    if attn == "sdpa" and family in ("gemma2", "gpt_oss"):
        pytest.skip("its model refuses sdpa")
    model = build(family, attn)
    causal = model(tokens).logits
    model.config.is_causal = False
    given = {"attention_mask": left_padding} if padded else {}
    real = left_padding.bool() if padded else torch.ones_like(tokens).bool()
    wanted = model(tokens, **given).logits[real]
    assert float((wanted - causal[real]).abs().max()) > 1e-2
    with attach(model) as bridged:
        assert not bridged.layers[0].variant.causal
        torch.testing.assert_close(
            bridged(tokens, **given).logits[real], wanted, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("made", [False, True])
def test_causality_that_a_call_asks_for_is_refused_with_what_to_do(
    build: Any, tokens: Tensor, made: bool
) -> None:
    model = build("llama")
    model.config.is_causal = not made
    wanted = (
        r"called with is_causal=True, and its layer is not causal (.|\n)*is_causal = True before"
        if made
        else r"called with is_causal=False, and its layer is causal (.|\n)*is_causal = False before"
    )
    with attach(model) as bridged, pytest.raises(ContractError, match=wanted):
        bridged(tokens, is_causal=made)


# ---- no trace ----


@torch.no_grad()
def test_proving_leaves_no_trace_in_a_rotary_module_that_scales_with_length(build: Any) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = build("llama", max_position_embeddings=16, rope_parameters=rope)
    long = torch.randint(3, 99, (1, 40), generator=torch.Generator().manual_seed(5))
    model(long)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    attach(model).detach()
    after = dict(model.named_buffers())
    assert all(torch.equal(after[name], buffer) for name, buffer in before.items())


@torch.no_grad()
def test_random_inputs_leave_no_trace_in_it_either(build: Any) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = build("llama", max_position_embeddings=16, rope_parameters=rope)
    with attach(model) as bridged:
        model(torch.arange(40).unsqueeze(0))
        before = model.model.rotary_emb.inv_freq.clone()
        bridged.layers[0].get_random_inputs(seq_len=8)
        assert torch.equal(model.model.rotary_emb.inv_freq, before)
