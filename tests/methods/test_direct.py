"""Direct logit attribution: on the known circuit, and, as an exact decomposition, on families that
norm differently."""

import pytest
import torch
from torch import nn

from ropebridge import attach
from ropebridge.methods import MethodError, ablated, direct_logit_attribution
from ropebridge.methods.frozen import freeze_norm

FAMILIES = (
    "llama",
    "mistral",
    "gemma2",
    "gemma3",
    "qwen3",
    "olmo2",
    "cohere",
    "gpt_oss",
    "phi",
    "gpt_neox",
    "granite",
    "glm4",
    "mixtral",
)
"""Norms before, after and at both ends of attention; layer norms with bias; parallel blocks;
experts; caps and multipliers."""


def answers_at(prompts, token):
    return torch.full_like(prompts, token)


def test_the_head_that_copies_adds_the_whole_logit_and_the_others_nothing(
    circuit, prompts, answers
):
    """The previous-token head matters as much when ablated, and adds nothing directly."""
    got = direct_logit_attribution(circuit, prompts, answers[:, None].expand(2, 7))
    assert got.shape == (2, 4, 2, 7)
    expected = torch.zeros(2, 4, 2)
    expected[1, 2] = 10.0
    torch.testing.assert_close(got[..., -1], expected, rtol=0, atol=1e-3)


def test_what_speaks_to_nobody_adds_nothing_though_it_moves_the_final_norm(circuit_model, prompts):
    """Frozen, the norm's scale is nobody's doing; through a norm that is not, every head that
    writes anything would count."""
    import copy

    model = copy.deepcopy(circuit_model)
    model.model.norm.variance_epsilon = 1e-6
    model.model.norm.weight.data.fill_(1.0)
    with attach(model) as bridged:
        whole = bridged(prompts).logits[:, -1]
        muted = ablated(bridged, prompts, [(1, 0), (1, 1), (1, 3)])[:, -1]
        got = direct_logit_attribution(bridged, prompts, answers_at(prompts, 7))
    assert (muted[0, 7] - whole[0, 7]).abs() > 0.01
    assert got[1, [0, 1, 3]].abs().max() < 1e-6
    torch.testing.assert_close(got[1, 2, 0, -1], whole[0, 7].float(), rtol=1e-4, atol=0)


def test_a_logit_difference_is_the_difference(circuit, prompts):
    right, wrong = answers_at(prompts, 7), answers_at(prompts, 9)
    both = direct_logit_attribution(circuit, prompts, right, wrong)
    torch.testing.assert_close(
        both,
        direct_logit_attribution(circuit, prompts, right)
        - direct_logit_attribution(circuit, prompts, wrong),
    )
    assert both[1, 2, 0, -1] > 9.9
    assert both[1, 2, 1, -1] < -9.9


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_biases_and_all_else_come_to_the_logit_in_every_family(build, tokens, family):
    """The method checks the sum itself, and raises where it is short; the heads' part is not
    nothing."""
    with attach(build(family).double()) as bridged:
        got = direct_logit_attribution(bridged, tokens, tokens)
    assert got.shape == (len(bridged.layers), bridged.layers[0].variant.heads, *tokens.shape)
    assert (got.abs().amax((1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_a_head_of_the_last_layer_adds_what_a_small_step_of_it_adds(build, tokens, family):
    """Finite differences with the norms' scales held by hand: an independent witness of the
    derivative."""
    model = build(
        family,
        num_hidden_layers=1,
        **({"layer_types": ["full_attention"]} if family == "gemma2" else {}),
    ).double()
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    with attach(model) as bridged:
        got = direct_logit_attribution(bridged, tokens, tokens)[0]
        held = [hold(module) for module in norms]
        branch = hold_output(model.model.layers[0].mlp)
        bridged(tokens)
        for one in (*held, branch):
            one.kept = True
        whole = unembedded(bridged, model, tokens)
        without = torch.stack(
            [
                unembedded(bridged, model, tokens, head)
                for head in range(bridged.layers[0].variant.heads)
            ]
        )
        for one in (*held, branch):
            one.handle.remove()
    expected = (
        (whole - without)
        .gather(-1, tokens.expand(without.shape[0], -1, -1).unsqueeze(-1))
        .squeeze(-1)
    )
    torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-5)


class hold:  # noqa: N801 - used as a function
    """Keep a norm's factor (output less bias over centred input) from its first call, and use it
    again in later ones."""

    def __init__(self, module):
        self.kept, self.bias = False, getattr(module, "bias", None)
        self.centred = isinstance(module, nn.LayerNorm)
        self.handle = module.register_forward_hook(self)

    def __call__(self, module, args, output):
        x = args[0] - (args[0].mean(-1, keepdim=True) if self.centred else 0)
        bias = 0 if self.bias is None else self.bias
        if not self.kept:
            self.factor = (output - bias) / x
            return None
        return self.factor * x + bias


class hold_output:  # noqa: N801 - used as a function
    """Keep a branch's output from its first call."""

    def __init__(self, module):
        self.kept = False
        self.handle = module.register_forward_hook(self)

    def __call__(self, module, args, output):
        if self.kept:
            return self.output
        self.output = output
        return None


@torch.no_grad()
def unembedded(bridged, model, tokens, without=None):
    found = []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: found.append(output)
    )

    def mute(z, hook):
        if without is not None:
            z[:, :, without] = 0

    bridged.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_z", mute)])
    handle.remove()
    return found[0]


def test_a_path_that_is_not_known_is_refused(build, tokens):
    """A block that multiplies its residual by itself is no sum of parts."""
    model = build("llama")
    model.model.layers[1].register_forward_hook(lambda module, args, output: output * output)
    with (
        attach(model) as bridged,
        pytest.raises(
            MethodError, match=r"the parts come short of the logit by .*\n  the model has a path"
        ),
    ):
        direct_logit_attribution(bridged, tokens, tokens)


def test_a_norm_that_is_none_is_refused():
    x = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))

    class CubicNorm(nn.Module):
        def forward(self, x):
            return x**3

    with pytest.raises(MethodError, match="does not compute weight"):
        freeze_norm(CubicNorm(), x, CubicNorm()(x), [])
    with pytest.raises(
        MethodError, match="RMSNorm norms 7 numbers; a norm of an odd width is not served"
    ):
        freeze_norm(nn.RMSNorm(7), x[..., :7], x[..., :7], [])


@pytest.mark.parametrize(
    "norm", [nn.RMSNorm(8), nn.LayerNorm(8), nn.LayerNorm(8, elementwise_affine=False)], ids=repr
)
def test_a_frozen_norm_gives_the_same_values_and_a_linear_gradient(norm):
    """The gradient of a frozen norm along its own input is its output less its bias; of the norm
    itself it is 0."""
    draw = torch.Generator().manual_seed(0)
    for parameter in norm.parameters():
        parameter.data = torch.randn(8, generator=draw)
    x = torch.randn(2, 3, 8, generator=draw, requires_grad=True)
    frozen = freeze_norm(norm, x, norm(x), [])
    assert torch.equal(frozen, norm(x))
    direction = torch.randn(2, 3, 8, generator=draw)
    (gradient,) = torch.autograd.grad((frozen * direction).sum(), x)
    bias = getattr(norm, "bias", None)
    expected = ((norm(x) - (0 if bias is None else bias)) * direction).sum()
    torch.testing.assert_close((gradient * x).sum(), expected, rtol=1e-4, atol=1e-5)


def test_answers_of_another_shape_are_refused(circuit, prompts, answers):
    with pytest.raises(
        MethodError,
        match=r"answers of shape \(2,\); there must be a token for every batch and pos: \(2, 7\)",
    ):
        direct_logit_attribution(circuit, prompts, answers)


def test_a_body_without_unembedding_is_refused(circuit_model, prompts):
    with (
        attach(circuit_model.model) as bridged,
        pytest.raises(MethodError, match="LlamaModel has no unembedding to attribute to"),
    ):
        direct_logit_attribution(bridged, prompts, prompts)


def test_nothing_is_left_on_the_model(circuit, prompts):
    before = circuit(prompts).logits
    direct_logit_attribution(circuit, prompts, prompts)
    assert not any(module._forward_hooks for module in circuit.model.modules())
    assert torch.equal(circuit(prompts).logits, before)
