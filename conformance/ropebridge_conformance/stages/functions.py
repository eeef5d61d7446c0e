"""Functions of the reference that a layer is composed of, by name: a mutant replaces one of
them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

import ropebridge_reference as reference


@dataclass(frozen=True)
class Stages:
    """Hold the functions that make a layer, and those that read its mask; each under the name that
    it has in the reference."""

    causal_bias: Callable[..., Tensor] = reference.causal_bias
    padding_bias: Callable[..., Tensor] = reference.padding_bias
    with_four_axes: Callable[..., Tensor] = reference.with_four_axes
    bias_of_mask: Callable[..., Tensor] = reference.bias_of_mask
    selection_bias: Callable[..., Tensor] = reference.selection_bias
    make_latent: Callable[..., Tensor] = reference.make_latent
    project_heads: Callable[..., Tensor] = reference.project_heads
    adapt: Callable[..., Tensor] = reference.adapt
    with_rotary_part: Callable[..., Tensor] = reference.with_rotary_part
    multiply: Callable[..., Tensor] = reference.multiply
    clip: Callable[..., Tensor] = reference.clip
    normalise: Callable[..., Tensor] = reference.normalise
    turns: Callable[..., Tensor] = reference.turns
    rotate: Callable[..., Tensor] = reference.rotate
    recall: Callable[..., Tensor] = reference.recall
    scale_by_temperature: Callable[..., Tensor] = reference.scale_by_temperature
    bias_keys: Callable[..., Tensor] = reference.bias_keys
    score_keys: Callable[..., Tensor] = reference.score_keys
    make_pattern: Callable[..., Tensor] = reference.make_pattern
    open_gate: Callable[..., Tensor] = reference.open_gate
    mix_values: Callable[..., Tensor] = reference.mix_values
    subtract: Callable[..., Tensor] = reference.subtract
    exclude: Callable[..., Tensor] = reference.exclude
    norm_and_gate: Callable[..., Tensor] = reference.norm_and_gate
    result: Callable[..., Tensor] = reference.result
    project_output: Callable[..., Tensor] = reference.project_output
    sum_of_results: Callable[..., Tensor] = reference.sum_of_results


STAGES = Stages()
