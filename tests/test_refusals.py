"""Refusals name the true cause and the remedy: what wrapped a forward, what holds a weight, what
runs in a thread; and what need not be refused is served."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ropebridge import (
    FAMILIES,
    AttachError,
    UnsupportedAttention,
    VerificationError,
    attach,
    get_bridged_model,
)

pytestmark = pytest.mark.slow


class Int8Linear(nn.Module):
    """A linear map that keeps its weight as bytes, with a scale for each row, as quantisation
    libraries do; it cannot be made float64."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale.detach())
        self.register_buffer("bytes", (linear.weight / scale).round().to(torch.int8).detach())

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise NotImplementedError("Int8Linear dispatch: no kernel for float64")
        weight: Any = self.bytes
        return nn.functional.linear(x, weight.to(x.dtype) * self.scale)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        raise NotImplementedError("Int8Linear dispatch: aten._to_copy")


@torch.no_grad()
def test_quantised_projections_are_proved_and_run_as_they_are(build: Any, tokens: Tensor) -> None:
    model = build("llama")
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, Int8Linear(getattr(layer.self_attn, name)))
    wanted = model(tokens).logits
    with attach(model) as bridged:
        torch.testing.assert_close(bridged(tokens).logits, wanted, rtol=1e-5, atol=1e-5)
    wrong = replace(bridged.layers[0].variant, scale=1.0)
    with pytest.raises(VerificationError, match="does not reproduce the LlamaAttention"):
        attach(model, families={**FAMILIES, "LlamaAttention": wrong})


def test_a_layer_that_cannot_be_copied_is_refused_with_a_way_on(build: Any) -> None:
    class Uncopied(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise NotImplementedError("no copy")

    model = build("llama")
    layer = model.model.layers[0].self_attn
    layer.q_proj = Uncopied(60, 120, bias=False)
    with pytest.raises(
        VerificationError,
        match=(
            r"cannot be copied into float64, in which it would be proved: NotImplementedError: no"
            r" copy\n  pass verify=False"
        ),
    ):
        attach(model)
    with attach(model, verify=False) as bridged:
        bridged(torch.arange(4).unsqueeze(0))


def test_what_replaced_a_forward_is_named(build: Any) -> None:
    model = build("llama")
    layer = model.model.layers[0].self_attn
    own = layer.forward

    def traced(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    layer.forward = traced
    with pytest.raises(
        AttachError,
        match=(
            r"the forward of 'model\.layers\.0\.self_attn' was replaced on the instance, by"
            r" .*test_refusals\.test_what_replaced_a_forward_is_named\.<locals>\.traced, and the"
            r" bridge stands for the class's own\n  attach first"
        ),
    ):
        attach(model)


def test_an_opt_in_names_the_class_that_holds_a_weight_in_parts(build: Any) -> None:
    class Linear(nn.Module):
        """A LoRA adapter around a linear map, which libraries call Linear too."""

        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base
            self.in_features, self.out_features = base.in_features, base.out_features

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x)

    model = build("llama")
    layer = model.model.layers[0].self_attn
    layer.q_proj = Linear(layer.q_proj)
    with pytest.raises(
        UnsupportedAttention,
        match=r"'q_proj', which is a .*test_refusals\..*\.Linear and(.|\n)*merge_and_unload\(\)",
    ):
        attach(model, use_split_qkv_input=True)


@pytest.mark.parametrize("made", ["attached", "copied", "unpickled"])
def test_continuous_batching_is_refused_where_it_is_asked_for(
    build: Any, tokens: Tensor, made: str
) -> None:
    """It runs in a thread, where the bridge's error went unheard and no token came back."""
    model = build("llama")
    attach(model)
    if made == "copied":
        model = copy.deepcopy(model)
    if made == "unpickled":
        model = pickle.loads(pickle.dumps(model))
    with pytest.raises(AttachError, match=r"generate_batch batches continuously, by paged atten"):
        model.generate_batch([tokens[0].tolist()])
    get_bridged_model(model).detach()
    assert "generate_batch" not in vars(model)
