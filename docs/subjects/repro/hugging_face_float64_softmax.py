"""In a float64 model eager attention computes softmax in float32, so the pattern is right to seven
digits only (clause PAT-1)."""

import sys

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, eager_attention_forward

torch.manual_seed(0)
config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=4)
module = LlamaAttention(config, layer_idx=0).eval().double()
q, k, v = torch.randn(3, 1, 4, 6, 8, dtype=torch.float64)

_, pattern = eager_attention_forward(module, q, k, v, None, scaling=module.scaling)
expected = torch.softmax(q @ k.transpose(2, 3) * module.scaling, -1)

error = (pattern - expected).abs().max().item()
print(f"largest error of a weight: {error:.1e}")
print("expected: about 1e-16, as float64 allows; 1e-8 is what float32 allows")
sys.exit(int(error > 1e-12))
