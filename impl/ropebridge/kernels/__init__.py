"""Kernels: from rotated query and key to each head's mix of values, in several ways.

`choose` says which one a call takes, and why:

- `fused`: torch's scaled_dot_product_attention; there are no scores and no pattern.
- `row_blocks`: scores and pattern of 64 query rows at a time, in memory that is used again.
- `gradients`: the same, with first derivatives.
- `composite`: plain operations of torch, which every transform and every derivative passes through.

Everything here has axes batch head pos d_head, the layout the matrix products want. Key and value
heads are never copied for the query heads that share them.
"""
