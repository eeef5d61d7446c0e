"""An attention function gets the key after the cache took it: what it puts in its place is not what
later steps see (clause EDIT-4)."""

import sys

import torch
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import eager_attention_forward

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


def with_keys_zeroed(module, query, key, value, mask, **options):
    return eager_attention_forward(module, query, torch.zeros_like(key), value, mask, **options)


AttentionInterface.register("with_keys_zeroed", with_keys_zeroed)
model.set_attn_implementation("with_keys_zeroed")
cache = model(torch.arange(5)[None], use_cache=True).past_key_values

left = cache.layers[0].keys.abs().max().item()
print(f"largest key in the cache after every key was replaced by 0: {left:.3f}")
print("expected, if an edit of the key entered the cache: 0")
sys.exit(int(left > 0))
