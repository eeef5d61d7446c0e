"""Functions that a layer is composed of, as a record: a mutant replaces one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ropebridge_reference.differential import subtract
from ropebridge_reference.gate import norm_and_gate, open_gate
from ropebridge_reference.key_bias import bias_keys
from ropebridge_reference.latent import make_latent
from ropebridge_reference.masks import bias_of_mask, causal_bias, padding_bias, selection_bias
from ropebridge_reference.memory import recall
from ropebridge_reference.mix import exclude, mix_values
from ropebridge_reference.norm import normalise
from ropebridge_reference.output import project_output, result, sum_of_results
from ropebridge_reference.pattern import make_pattern
from ropebridge_reference.project import (
    adapt,
    clip,
    multiply,
    project_heads,
    with_rotary_part,
)
from ropebridge_reference.rotary import rotate, turns
from ropebridge_reference.scores import scale_by_temperature, score_keys


@dataclass(frozen=True)
class Stages:
    """Hold the functions the layer is composed of, and those that read its mask."""

    causal_bias: Callable[..., Tensor] = causal_bias
    padding_bias: Callable[..., Tensor] = padding_bias
    bias_of_mask: Callable[..., Tensor] = bias_of_mask
    selection_bias: Callable[..., Tensor] = selection_bias
    latent: Callable[..., Tensor] = make_latent
    project: Callable[..., Tensor] = project_heads
    adapt: Callable[..., Tensor] = adapt
    with_rotary_part: Callable[..., Tensor] = with_rotary_part
    multiply: Callable[..., Tensor] = multiply
    clip: Callable[..., Tensor] = clip
    normalise: Callable[..., Tensor] = normalise
    turns: Callable[..., Tensor] = turns
    rotate: Callable[..., Tensor] = rotate
    recall: Callable[..., Tensor] = recall
    scale_by_temperature: Callable[..., Tensor] = scale_by_temperature
    key_bias: Callable[..., Tensor] = bias_keys
    scores: Callable[..., Tensor] = score_keys
    pattern: Callable[..., Tensor] = make_pattern
    gate: Callable[..., Tensor] = open_gate
    mix: Callable[..., Tensor] = mix_values
    subtract: Callable[..., Tensor] = subtract
    exclude: Callable[..., Tensor] = exclude
    norm_and_gate: Callable[..., Tensor] = norm_and_gate
    result: Callable[..., Tensor] = result
    output: Callable[..., Tensor] = project_output
    sum_of_results: Callable[..., Tensor] = sum_of_results


STAGES = Stages()
