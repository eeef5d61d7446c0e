"""In a float64 Cohere model query and key are rotated in float32, so they are right to seven digits
only (clause ROT-1)."""

import sys

import torch
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb

torch.manual_seed(0)
q, k = torch.randn(2, 1, 4, 6, 8, dtype=torch.float64)
angle = torch.rand(1, 6, 4, dtype=torch.float64).repeat_interleave(2, -1)

rotated, _ = apply_rotary_pos_emb(q, k, angle.cos(), angle.sin())
even, odd = q[..., ::2], q[..., 1::2]
turned = torch.stack((-odd, even), -1).flatten(-2)
error = (rotated - (q * angle.cos()[:, None] + turned * angle.sin()[:, None])).abs().max().item()
print(f"largest error of a rotated query: {error:.1e}")
print("expected: about 1e-16, as float64 allows; 1e-7 is what float32 allows")
sys.exit(int(error > 1e-12))
