"""TransformerLens' own class, around the layer that the benchmark takes, where it is installed.

It is not among what this project asks for: `pip install transformer-lens` beside it, and its rows
stand in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.contests import SIZES, Contest, bridged, layer, look

INSTALLED = find_spec("transformer_lens") is not None
BUILDER = "transformer_lens.model_bridge.sources._bridge_builder"


def contest_with_lens(pos: int, *, watch: Sequence[str] = ()) -> Contest:
    """A layer over so many positions against TransformerLens' bridge of a model of one layer, the
    same hook points watched in both. Each is handed the mask that its model would hand it."""
    config = LlamaConfig(**SIZES, num_hidden_layers=1, intermediate_size=64, vocab_size=64)
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).eval()
    module, rotary = layer("llama", "sdpa", torch.float32, False)
    model.model.layers[0].self_attn.load_state_dict(module.state_dict())
    ours = bridged(module, rotary)
    build: Any = import_module(BUILDER).build_bridge_from_module
    theirs = build(model, "LlamaForCausalLM", hf_config=deepcopy(config)).blocks[0].attn
    for name in watch:
        ours.hook_points[name].add_hook(look)
        getattr(theirs, name).add_hook(look)
    inputs = ours.get_random_inputs(1, pos, seed=0)
    mask = inputs.pop("attention_mask")
    return Contest(
        lambda: ours(**inputs, attention_mask=None)[0],
        lambda: theirs(**inputs, attention_mask=mask)[0],
    )
