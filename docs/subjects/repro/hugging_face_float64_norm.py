"""In a float64 model the norms of query and key are computed in float32, so they are right to seven
digits only (clause NORM-1)."""

import sys

import torch
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

torch.manual_seed(0)
module = (
    Qwen3Attention(
        Qwen3Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8),
        layer_idx=0,
    )
    .eval()
    .double()
)
x = torch.randn(1, 6, 4, 8, dtype=torch.float64)

normed = module.q_norm(x)
expected = (
    x
    / (x.square().mean(-1, keepdim=True) + module.q_norm.variance_epsilon).sqrt()
    * module.q_norm.weight
)
error = (normed - expected).abs().max().item()
print(f"largest error of a normed query: {error:.1e}")
print("expected: about 1e-16, as float64 allows; 1e-8 is what float32 allows")
sys.exit(int(error > 1e-12))
