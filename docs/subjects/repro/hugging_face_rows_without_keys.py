"""A row that sees no key: eager attention in transformers gives it equal weights on all keys,
hidden ones too (clause MASK-6)."""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
model = LlamaForCausalLM._from_config(LlamaConfig(**sizes), attn_implementation="eager").eval()

tokens = torch.arange(6)[None]
padding = torch.tensor([[0, 0, 1, 1, 1, 1]])
pattern = model(tokens, attention_mask=padding, output_attentions=True).attentions[0]

print("pattern of position 0, which is padding and sees nothing:", pattern[0, 0, 0].tolist())
print("expected: zeros, since every key is masked for it")
sys.exit(int(pattern[0, :, 0].abs().max() > 0))
