"""What exists on request: inputs split by head, and results by head (clauses SPLIT-1 to SPLIT-3,
RES-1, LOOK-1)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ropebridge import SubmoduleError, UnsupportedAttention

pytestmark = pytest.mark.slow

HEAD = 4
SPLITS = {
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_attn_in": "use_attn_in",
}
OPT_INS = {**SPLITS, "hook_result": "use_attn_result"}
every_opt_in = pytest.mark.parametrize("name", OPT_INS)


@pytest.fixture
def make(bridge_layer: Any, family: str) -> Any:
    """A bridge with the opt-in that a hook point needs, and inputs for it."""

    def make(name: str, **options: bool) -> tuple[Any, dict[str, Any]]:
        bridge = bridge_layer(family, **{OPT_INS[name]: True}, **options)
        return bridge, bridge.get_random_inputs(2, 9, seed=0, left_padding=2)

    return make


def output(bridge: Any, inputs: dict[str, Any], **hooks: Any) -> Tensor:
    handles = [bridge.hook_points[name].add_hook(fn) for name, fn in hooks.items()]
    out, _ = bridge(**inputs)
    for handle in handles:
        handle.remove()
    return out


def held(bridge: Any, inputs: dict[str, Any], name: str, **hooks: Any) -> Tensor:
    """What a hook point held, with other hooks in place."""
    kept: list[Tensor] = []
    output(
        bridge, inputs, **hooks, **{name: lambda tensor, hook: kept.append(tensor.detach().clone())}
    )
    return kept[0]


def edit_head(tensor: Tensor, hook: Any) -> None:
    tensor[:, :, HEAD] = tensor[:, :, HEAD] * 0.5 + 0.3


def edit_all(tensor: Tensor, hook: Any) -> None:
    tensor.mul_(2)


@every_opt_in
def test_a_hook_point_exists_only_where_it_is_opted_in_to(
    bridge_layer: Any, make: Any, family: str, name: str
) -> None:
    assert name not in bridge_layer(family).hook_points
    assert name in make(name)[0].hook_points


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@every_opt_in
def test_looking_gives_the_same_bits(make: Any, name: str, grad: bool) -> None:
    bridge, inputs = make(name)
    with torch.set_grad_enabled(grad):
        assert torch.equal(
            output(bridge, inputs, **{name: lambda tensor, hook: None}), output(bridge, inputs)
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@every_opt_in
@torch.no_grad()
def test_looking_gives_the_same_bits_in_half_precision(
    make: Any, name: str, dtype: torch.dtype
) -> None:
    bridge, _ = make(name)
    bridge.original_component.to(dtype)
    inputs = bridge.get_random_inputs(2, 9, seed=0)
    assert torch.equal(
        output(bridge, inputs, **{name: lambda tensor, hook: None}), output(bridge, inputs)
    )


@every_opt_in
@torch.no_grad()
def test_the_opt_in_alone_changes_the_output_by_no_more_than_rounding(
    bridge_layer: Any, make: Any, family: str, name: str
) -> None:
    bridge, inputs = make(name)
    torch.testing.assert_close(
        output(bridge, inputs), output(bridge_layer(family), inputs), rtol=1e-5, atol=2e-6
    )


@torch.no_grad()
def test_results_sum_to_the_output_without_its_bias(make: Any) -> None:
    bridge, inputs = make("hook_result")
    bias = bridge.b_O if bridge.b_O is not None else 0.0
    torch.testing.assert_close(
        held(bridge, inputs, "hook_result").sum(2) + bias,
        output(bridge, inputs),
        rtol=1e-5,
        atol=1e-5,
    )


@torch.no_grad()
def test_a_head_zeroed_in_result_is_missing_from_the_output(make: Any) -> None:
    bridge, inputs = make("hook_result")
    share = held(bridge, inputs, "hook_result")[:, :, HEAD]

    def zero_head(tensor: Tensor, hook: Any) -> None:
        tensor[:, :, HEAD] = 0

    torch.testing.assert_close(
        output(bridge, inputs, hook_result=zero_head),
        output(bridge, inputs) - share,
        rtol=1e-5,
        atol=1e-5,
    )
    assert share.abs().max() > 0.01


@pytest.mark.parametrize("name", SPLITS)
def test_each_head_is_shown_its_own_copy_of_the_input(make: Any, name: str) -> None:
    bridge, inputs = make(name)
    copies = held(bridge, inputs, name)
    assert copies.shape == (
        2,
        9,
        bridge.variant.kv_heads if name in ("hook_k_input", "hook_v_input") else 6,
        60,
    )
    assert torch.equal(copies, inputs["hidden_states"].unsqueeze(2).expand_as(copies))


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "gemma2", "gemma3", "qwen3", "cohere", "gpt_oss"]
)
@torch.no_grad()
def test_an_edit_of_a_heads_input_moves_that_heads_z_and_no_other(make: Any) -> None:
    """Not OLMo 2, whose norm takes all heads together."""
    bridge, inputs = make("hook_attn_in")
    plain, edited = (
        held(bridge, inputs, "hook_z"),
        held(bridge, inputs, "hook_z", hook_attn_in=edit_head),
    )
    moved = (plain != edited).flatten(0, 1).any(0).any(-1)
    assert moved.tolist() == [head == HEAD for head in range(6)]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        pytest.param("hook_q_input", [False, False, False, False, True, False], id="query_head_4"),
        pytest.param("hook_k_input", [False, False, False, True, True, True], id="key_head_1"),
        pytest.param("hook_v_input", [False, False, False, True, True, True], id="value_head_1"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gemma3", "cohere", "gpt_oss"])
@torch.no_grad()
def test_an_edit_of_split_input_moves_the_heads_that_read_it(
    make: Any, name: str, wanted: list[bool]
) -> None:
    def edit(tensor: Tensor, hook: Any) -> None:
        tensor[:, :, HEAD if name == "hook_q_input" else 1] *= -0.5

    bridge, inputs = make(name)
    plain, edited = held(bridge, inputs, "hook_z"), held(bridge, inputs, "hook_z", **{name: edit})
    assert (plain != edited).flatten(0, 1).any(0).any(-1).tolist() == wanted


@pytest.mark.parametrize("name", SPLITS)
@torch.no_grad()
def test_an_edit_of_every_head_is_the_same_edit_of_the_input(make: Any, name: str) -> None:
    """Put another input in every copy: query, key or value is that of a layer that is given it."""
    bridge, inputs = make(name)
    other = bridge.get_random_inputs(2, 9, seed=1)["hidden_states"]
    stages = {
        "hook_q_input": ["hook_q"],
        "hook_k_input": ["hook_k"],
        "hook_v_input": ["hook_v"],
        "hook_attn_in": ["hook_q", "hook_k", "hook_v"],
    }[name]

    def put(tensor: Tensor, hook: Any) -> Tensor:
        return other.unsqueeze(2).expand_as(tensor)

    given = torch.cat([held(bridge, inputs, stage, **{name: put}).flatten() for stage in stages])
    wanted = torch.cat(
        [held(bridge, {**inputs, "hidden_states": other}, stage).flatten() for stage in stages]
    )
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)


@every_opt_in
def test_a_gradient_retained_there_is_the_derivative_by_it(make: Any, name: str) -> None:
    """Against a finite difference in float64."""
    bridge, _ = make(name)
    bridge.original_component.double()
    inputs = bridge.get_random_inputs(2, 6, seed=0)
    inputs["hidden_states"].requires_grad_()
    shown: list[Tensor] = []

    def hold(tensor: Tensor, hook: Any) -> None:
        tensor.retain_grad()
        shown.append(tensor)

    output(bridge, inputs, **{name: hold}).square().sum().backward()
    direction = torch.randn(
        shown[0].shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    slope = float((shown[0].grad * direction).sum())

    def along(step: float) -> float:
        with torch.no_grad():
            return float(
                output(bridge, inputs, **{name: lambda tensor, hook: tensor + step * direction})
                .square()
                .sum()
            )

    assert slope == pytest.approx((along(1e-5) - along(-1e-5)) / 2e-5, rel=2e-4)


@every_opt_in
def test_gradients_of_input_and_weights_are_the_same_looked_at_or_not(make: Any, name: str) -> None:
    def gradients(**hooks: Any) -> list[Tensor]:
        bridge, inputs = make(name)
        inputs["hidden_states"].requires_grad_()
        output(bridge, inputs, **hooks).square().sum().backward()
        return [
            inputs["hidden_states"].grad,
            *(weight.grad for weight in bridge.original_component.parameters()),
        ]

    looked = gradients(**{name: lambda tensor, hook: None})
    torch.testing.assert_close(looked, gradients(), rtol=1e-4, atol=1e-4)


@every_opt_in
def test_a_gradient_shown_to_a_backward_hook_there_is_not_nothing(make: Any, name: str) -> None:
    bridge, inputs = make(name)
    inputs["hidden_states"].requires_grad_()
    shown: list[Tensor] = []
    with bridge.hook_points[name].add_hook(
        lambda gradient, hook: shown.append(gradient), dir="bwd"
    ):
        bridge(**inputs)[0].square().sum().backward()
    assert shown[0].any()


@pytest.mark.parametrize("name", SPLITS)
def test_an_edit_in_place_does_not_reach_what_the_caller_holds(make: Any, name: str) -> None:
    bridge, inputs = make(name)
    before = inputs["hidden_states"].clone()
    output(bridge, inputs, **{name: edit_all})
    assert torch.equal(inputs["hidden_states"], before)


def test_both_kinds_of_split_input_at_once_are_refused(bridge_layer: Any) -> None:
    with pytest.raises(
        SubmoduleError,
        match="use_attn_in and use_split_qkv_input; clause SPLIT-1 allows one of them",
    ):
        bridge_layer("llama", use_attn_in=True, use_split_qkv_input=True)


class Wrapped(nn.Module):
    """A projection with something around it, as LoRA and quantisation put it: no weight of its own
    to read."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.in_features, self.out_features, self.bias = (
            base,
            base.in_features,
            base.out_features,
            base.bias,
        )
        self.extra = nn.Linear(base.in_features, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.extra(x)


@pytest.mark.parametrize("option", ["use_attn_in", "use_split_qkv_input", "use_attn_result"])
def test_an_opt_in_through_a_wrapped_projection_is_refused(build: Any, option: str) -> None:
    from ropebridge import attach

    model: Any = build("llama")
    attention = model.model.layers[1].self_attn
    attention.o_proj = Wrapped(attention.o_proj)
    with pytest.raises(
        UnsupportedAttention,
        match=(
            rf"{option} needs the weight of 'o_proj', which is a .*test_bridge_opt_ins\.Wrapped and"
            r" does not hold it in one\n  merge it"
        ),
    ):
        attach(model, **{option: True})


@pytest.mark.parametrize("role", ["q_proj", "k_proj", "v_proj", "o_proj"])
@torch.no_grad()
def test_a_wrapped_projection_is_called_as_it_is(build: Any, tokens: Tensor, role: str) -> None:
    from ropebridge import attach

    model: Any = build("llama")
    attention = model.model.layers[0].self_attn
    setattr(attention, role, Wrapped(getattr(attention, role)))
    wanted = model(tokens).logits
    with attach(model) as bridged:
        torch.testing.assert_close(bridged(tokens).logits, wanted, rtol=1e-4, atol=1e-5)
