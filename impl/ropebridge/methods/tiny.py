"""Two-layer rotary transformer, trained on repeated random tokens in seconds: small enough to
study, real enough to have learned something."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from ropebridge.methods.errors import MethodError
from ropebridge.methods.running import bar

VOCABULARY, LENGTH, BATCH, RATE, WARMUP = 12, 40, 32, 3e-3, 50
PERIODS = range(6, 20)
"""After how many tokens the training rows repeat: drawn anew each step, or a head could learn one
fixed distance instead."""
LEARNED, STEPS = 0.3, 2000
"""Training ends when the running mean of the loss on what can be known (nats; 2.48 for a guess) is
this low; and within so many steps."""


def train_on_repeats(*, seed: int = 0, steps: int = STEPS, quiet: bool = False) -> LlamaForCausalLM:
    """Return a tiny Llama (2 layers, 4 heads, d_model 64) that continues what repeats, on the CPU,
    in eval mode.

    Draws its weights and rows from `seed` alone and leaves torch's own random state as it was.

    Raises:
        MethodError: it has not learned within `steps`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(tiny_config())
    draw = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    warmup = torch.optim.lr_scheduler.LinearLR(optimiser, 1 / WARMUP, total_iters=WARMUP)
    mean = log(VOCABULARY)
    for _ in bar(range(steps), "training", quiet):
        mean = 0.95 * mean + 0.05 * step(model, draw, optimiser)
        warmup.step()
        if mean < LEARNED:
            trained: LlamaForCausalLM = model.eval().requires_grad_(False)
            return trained
    raise MethodError(
        f"after {steps} steps the loss is {mean:.2f} and not {LEARNED}; give it more steps, or"
        f" another seed than {seed}"
    )


def tiny_config() -> LlamaConfig:
    """Return the configuration of the tiny model."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
    )


def step(model: LlamaForCausalLM, draw: torch.Generator, optimiser: torch.optim.Optimizer) -> float:
    """Train on one batch of rows that repeat, and return the loss, in nats, of the tokens that can
    be known."""
    period = int(torch.randint(PERIODS[0], PERIODS[-1] + 1, (), generator=draw))
    rows = repeating(period, draw)
    forward: Any = model
    logits = forward(rows, use_cache=False).logits[:, period:-1]
    optimiser.zero_grad()
    loss: Any = F.cross_entropy(logits.flatten(0, 1), rows[:, period + 1 :].flatten())
    loss.backward()
    optimiser.step()
    return float(loss.detach())


def repeating(period: int, draw: torch.Generator) -> Tensor:
    """Return (BATCH, LENGTH) token ids, each row repeating after `period`."""
    first = torch.randint(VOCABULARY, (BATCH, period), generator=draw)
    return first.repeat(1, -(-LENGTH // period))[:, :LENGTH]
