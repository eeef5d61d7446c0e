"""Left padding in float64: the mask's lowest float64 becomes -inf where eager attention casts to
float32, and all logits are NaN (MASK-6)."""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
model = (
    LlamaForCausalLM._from_config(LlamaConfig(**sizes), attn_implementation="eager").eval().double()
)

tokens = torch.arange(6)[None]
padding = torch.tensor([[0, 0, 1, 1, 1, 1]])
logits = model(tokens, attention_mask=padding).logits
model.set_attn_implementation("sdpa")
expected = model(tokens, attention_mask=padding).logits

print("logits of the last token, eager:", logits[0, -1, :3].tolist())
print("expected, by sdpa:              ", expected[0, -1, :3].tolist())
sys.exit(int(logits[0, -1].isnan().any()))
