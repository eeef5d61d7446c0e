"""gpt-oss in bfloat16: scores are rounded once more before softmax, where their largest is
subtracted in bfloat16 (clause PAT-1)."""

import sys

import torch
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention, eager_attention_forward

torch.manual_seed(0)
config = GptOssConfig(
    hidden_size=32, num_attention_heads=4, num_key_value_heads=4, head_dim=8, num_hidden_layers=1
)
module = GptOssAttention(config, layer_idx=0).eval().to(torch.bfloat16)
module.sinks.data.fill_(0.0)
q, k, v = torch.randn(3, 1, 4, 64, 8, dtype=torch.bfloat16) * 2

_, pattern = eager_attention_forward(module, q, k, v, None, scaling=module.scaling)
scores = (q @ k.transpose(2, 3) * module.scaling).double()
expected = torch.softmax(torch.cat([scores, torch.zeros(1, 4, 64, 1)], -1), -1)[..., :-1]

error = ((pattern - expected).abs() / expected).max().item()
print(f"largest relative error of a weight, given its own bfloat16 scores: {error:.4f}")
print(
    f"expected: at most {2**-8:.4f}, half a unit in the last place of bfloat16, where softmax runs"
    " in float32"
)
sys.exit(int(error > 2**-8 * 1.01))
