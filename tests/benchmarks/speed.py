"""Time of one attention layer, bridged and not: interleaved runs in one process, medians, printed
as ratios.

Run by `make bench`. Machines are shared and noisy: the ratios say more than the times.
"""

import platform
from random import Random
from statistics import median
from time import perf_counter

import torch
import transformers
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from ropebridge import PositionEmbeddingsAttentionBridge

LENGTHS = (128, 512, 2048)
ROUNDS, WARM_UP = 25, 3


def layer(implementation):
    """A Llama attention layer: d_model 1024, 16 heads, 4 kv heads, d_head 64, float32."""
    config = LlamaConfig(
        hidden_size=1024, num_attention_heads=16, num_key_value_heads=4, head_dim=64
    )
    config._attn_implementation = implementation
    torch.manual_seed(0)
    return LlamaAttention(config, 0).eval().requires_grad_(False), LlamaRotaryEmbedding(config)


def bridged(module, rotary):
    bridge = PositionEmbeddingsAttentionBridge("blocks.0.attn", None)
    bridge.set_original_component(module)
    bridge.set_rotary_emb(rotary)
    return bridge


def contestants(pos):
    """Name -> a call of the layer on the same input."""
    sdpa, rotary = layer("sdpa")
    eager, _ = layer("eager")
    unwatched, watched = bridged(sdpa, rotary), bridged(sdpa, rotary)
    watched.hook_points["hook_pattern"].add_hook(lambda tensor, hook: None)
    inputs = unwatched.get_random_inputs(1, pos, seed=0)
    causal = {**inputs, "attention_mask": None}
    return {
        "Hugging Face sdpa": lambda: sdpa(**causal),
        "Hugging Face eager": lambda: eager(**inputs),
        "bridge, nobody watches": lambda: unwatched(**causal),
        "bridge, hook_pattern watched": lambda: watched(**causal),
    }


@torch.no_grad()
def race(pos):
    """Median seconds of each contestant, all of them once a round, in an order drawn anew, after a
    few rounds to warm up."""
    calls, order = contestants(pos), Random(0)
    times = {name: [] for name in calls}
    for turn in range(WARM_UP + ROUNDS):
        for name in order.sample(list(calls), len(calls)):
            start = perf_counter()
            calls[name]()
            if turn >= WARM_UP:
                times[name].append(perf_counter() - start)
    return {name: median(seconds) for name, seconds in times.items()}


def main():
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__},"
        f" {torch.get_num_threads()} threads, {platform.machine()}"
    )
    print(
        "one Llama layer, d_model 1024, 16 heads, 4 kv heads, d_head 64, float32, batch 1; ratio to"
        " Hugging Face sdpa (milliseconds)\n"
    )
    rows = {pos: race(pos) for pos in LENGTHS}
    print(
        "| | "
        + " | ".join(f"S = {pos}" for pos in LENGTHS)
        + " |\n| --- |"
        + " ---: |" * len(LENGTHS)
    )
    for name in next(iter(rows.values())):
        cells = (
            f"{rows[pos][name] / rows[pos]['Hugging Face sdpa']:.2f} ({1e3 * rows[pos][name]:.1f})"
            for pos in LENGTHS
        )
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
