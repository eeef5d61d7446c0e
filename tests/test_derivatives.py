"""A model set to eager stays differentiable twice, forwards, and under vmap, as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacfwd, jvp, vmap

from ropebridge import attach

pytestmark = pytest.mark.slow

Z = "blocks.0.attn.hook_z"


def look(tensor: Tensor, hook: Any) -> None:
    """A hook that changes nothing."""


def loss_at(model: nn.Module, embedded: Tensor, **kwargs: Any) -> Tensor:
    """A number that depends on the embeddings of all positions."""
    return model(inputs_embeds=embedded, use_cache=False, **kwargs).logits.square().mean()


@pytest.fixture
def embedded() -> Tensor:
    """(2, 6, d_model) embeddings."""
    return torch.randn(2, 6, 60, generator=torch.Generator().manual_seed(4))


def second(model: nn.Module, embedded: Tensor) -> Tensor:
    """The gradient of the squared gradient."""
    x = embedded.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_at(model, x), x, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), x)[0]


def forwards(model: nn.Module, embedded: Tensor) -> Tensor:
    """The derivative along the embeddings themselves."""
    return jvp(lambda x: loss_at(model, x), (embedded,), (embedded,))[1]


def each(model: nn.Module, embedded: Tensor) -> Tensor:
    """The loss of many batches at once."""
    return vmap(lambda x: loss_at(model, x))(torch.stack([embedded, 2 * embedded]))


def of_weights(model: nn.Module, embedded: Tensor) -> Tensor:
    """The derivative of the loss by the scale of one weight, forwards."""
    weight = dict(model.named_parameters())["model.layers.0.self_attn.q_proj.weight"]

    def loss(scale: Tensor) -> Tensor:
        own = {"model.layers.0.self_attn.q_proj.weight": weight.detach() * scale}
        return (
            functional_call(model, own, kwargs={"inputs_embeds": embedded, "use_cache": False})
            .logits.square()
            .mean()
        )

    return jacfwd(loss)(torch.tensor(1.0))


DERIVATIVES = {"second": second, "jvp": forwards, "vmap": each, "jacfwd": of_weights}


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("hooked", [False, True], ids=["alone", "watched"])
def test_an_eager_model_has_the_derivatives_that_it_had(
    build: Any, family: str, embedded: Tensor, derivative: str, hooked: bool
) -> None:
    if (family, derivative) == ("gpt_oss", "vmap"):
        pytest.skip("its experts do not run under vmap, alone either")
    model = build(family, "eager")
    wanted = DERIVATIVES[derivative](model, embedded)
    with attach(model) as bridged, bridged.hooks([(Z, look)] if hooked else []):
        got = DERIVATIVES[derivative](model, embedded)
    largest = float(wanted.detach().abs().max())
    torch.testing.assert_close(got, wanted, rtol=2e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("derivative", ["second", "jvp", "vmap"])
def test_watched_scores_in_half_precision_have_the_derivatives_of_the_model_alone(
    build: Any, embedded: Tensor, derivative: str
) -> None:
    """What hooks are shown is rounded; the derivatives go on through it."""
    model = build("llama", "eager").bfloat16()
    wanted = DERIVATIVES[derivative](model, embedded.bfloat16())
    with attach(model) as bridged, bridged.hooks([("blocks.0.attn.hook_attn_scores", look)]):
        got = DERIVATIVES[derivative](model, embedded.bfloat16())
    torch.testing.assert_close(got, wanted, rtol=0.1, atol=0.1 * float(wanted.detach().abs().max()))


def test_edits_are_differentiated_too(build: Any, embedded: Tensor) -> None:
    model = build("llama", "eager")
    halved = [("blocks.0.attn.hook_pattern", lambda pattern, hook: pattern * 0.5)]
    with attach(model) as bridged, bridged.hooks(halved):
        tangent = forwards(model, embedded)
        step = 1e-3
        numeric = (
            loss_at(model, embedded * (1 + step)) - loss_at(model, embedded * (1 - step))
        ) / (2 * step)
    torch.testing.assert_close(tangent, numeric, rtol=2e-2, atol=1e-3)


def test_checks_that_read_values_step_aside_under_vmap(build: Any, embedded: Tensor) -> None:
    model = build("llama", "eager")
    edits = [
        (f"blocks.0.attn.{name}", lambda tensor, hook: tensor * 1.0)
        for name in ("hook_attn_scores", "hook_pattern")
    ]
    wanted = each(model, embedded)
    with attach(model) as bridged, bridged.hooks(edits):
        torch.testing.assert_close(each(model, embedded), wanted, rtol=1e-4, atol=1e-5)
