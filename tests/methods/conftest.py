"""A rotary transformer whose weights were set by hand, so that what every head does is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ropebridge import BridgedModel, attach

TOKENS, HEADS, WIDTH = 12, 4, 32
"""Vocabulary, heads a layer, d_head."""
HERE, BEFORE, NEXT, JUNK = (slice(TOKENS * i, TOKENS * (i + 1)) for i in range(4))
"""Parts of the residual stream: the token here, the token before, the prediction, and what nobody
reads."""
PREVIOUS, COPIES = (0, 1), (1, 2)
"""The head that looks one back, and the head that finds the token before equal to this one and
copies: induction."""
SURE, EPS, AMOUNT = 300.0, 1e8, 10.0
"""How steep the two heads' softmaxes are; an epsilon so large that each norm is a factor; the logit
that copying gives."""


def circuit_config() -> LlamaConfig:
    # every plane but the first two hardly turns
    return LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=HEADS * WIDTH,
        intermediate_size=4,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=WIDTH,
        max_position_embeddings=64,
        rms_norm_eps=EPS,
        attention_bias=True,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e30,
        },
        bos_token_id=None,
        eos_token_id=None,
    )


def build_circuit() -> LlamaForCausalLM:
    """Two layers: a previous-token head, an induction head that reads it through its key, and heads
    that speak to nobody."""
    model = LlamaForCausalLM(circuit_config()).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(EPS**0.5 if "norm" in name else 0.0)
        model.model.embed_tokens.weight[:, HERE] = torch.eye(TOKENS)
        model.lm_head.weight[:, NEXT] = torch.eye(TOKENS)
        for layer in range(2):
            babble(model.model.layers[layer].self_attn, seed=layer)
        look_back(model.model.layers[0].self_attn, PREVIOUS[1])
        find_and_copy(model.model.layers[1].self_attn, COPIES[1])
    return model.eval()


def rows(head: int) -> slice:
    return slice(WIDTH * head, WIDTH * (head + 1))


def babble(attention: Any, seed: int) -> None:
    """Every head attends somehow, and writes to where nobody reads."""
    draw = torch.Generator().manual_seed(seed)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.weight.copy_(
            torch.randn(projection.weight.shape, generator=draw, dtype=torch.double) * 0.3
        )
    attention.o_proj.weight[JUNK] = (
        torch.randn(TOKENS, HEADS * WIDTH, generator=draw, dtype=torch.double) * 0.3
    )


def look_back(attention: Any, head: int) -> None:
    """Query and key are constants, one turned against the other: the score is highest one step
    back. The token seen is put at BEFORE."""
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.weight[rows(head)] = 0
    planes = torch.tensor([0, 1])
    turn = 1e30 ** (-2.0 * planes / WIDTH)
    attention.k_proj.bias[WIDTH * head + planes] = (SURE * WIDTH**0.5) ** 0.5
    attention.q_proj.bias[WIDTH * head + planes] = (SURE * WIDTH**0.5) ** 0.5 * torch.cos(
        turn
    ).double()
    attention.q_proj.bias[WIDTH * head + planes + WIDTH // 2] = (
        -((SURE * WIDTH**0.5) ** 0.5) * torch.sin(turn).double()
    )
    carry(attention, head, BEFORE, 1.0)


def find_and_copy(attention: Any, head: int) -> None:
    """The query says what token is here, the key what token came before; they meet in the planes
    that hardly turn."""
    for projection, part in ((attention.q_proj, HERE), (attention.k_proj, BEFORE)):
        projection.weight[rows(head)] = 0
        still = WIDTH * head + torch.tensor([3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
        projection.weight[still, part] = (SURE * WIDTH**0.5) ** 0.5 * torch.eye(
            TOKENS, dtype=torch.double
        )
    attention.v_proj.weight[rows(head)] = 0
    carry(attention, head, NEXT, AMOUNT)


def carry(attention: Any, head: int, to: slice, amount: float) -> None:
    """Value and output: the token that is attended to goes to a part of the residual stream, and
    nothing else does."""
    attention.v_proj.weight[WIDTH * head : WIDTH * head + TOKENS, HERE] = torch.eye(
        TOKENS, dtype=torch.double
    )
    attention.o_proj.weight[:, rows(head)] = 0
    attention.o_proj.weight[to, WIDTH * head : WIDTH * head + TOKENS] = amount * torch.eye(
        TOKENS, dtype=torch.double
    )


@pytest.fixture(scope="session")
def circuit_model() -> LlamaForCausalLM:
    """The hand-built model, in float64."""
    return build_circuit()


@pytest.fixture
def circuit(circuit_model: LlamaForCausalLM) -> Iterator[BridgedModel]:
    """The hand-built model, bridged."""
    with attach(circuit_model, use_split_qkv_input=True) as bridged:
        yield bridged


@pytest.fixture(scope="session")
def prompts() -> torch.Tensor:
    """(2, 7): the last token stood at place 2 (row 0), at place 1 (row 1), and what followed it is
    asked for: 7, then 9."""
    return torch.tensor([[1, 2, 5, 7, 3, 4, 5], [6, 8, 9, 1, 0, 2, 8]])


@pytest.fixture(scope="session")
def answers() -> torch.Tensor:
    """(2,): what followed."""
    return torch.tensor([7, 9])


@pytest.fixture(scope="session")
def corrupted() -> torch.Tensor:
    """(2, 7): the same, but what stands before the answer is a token that is not asked for
    again."""
    return torch.tensor([[1, 2, 10, 7, 3, 4, 5], [6, 10, 9, 1, 0, 2, 8]])
