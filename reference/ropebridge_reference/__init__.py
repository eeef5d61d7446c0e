"""Executable spec: rotary attention as named-axis einsums, one short function per clause. Written
to be read.

Start with `attention.py`: its text is the order of the hooks.
"""

from ropebridge_reference.attention import Output, Select, attention_layer
from ropebridge_reference.differential import side_by_side, strength, subtract
from ropebridge_reference.gate import norm_and_gate, open_gate
from ropebridge_reference.key_bias import bias_keys, of_the_largest
from ropebridge_reference.latent import make_latent
from ropebridge_reference.masks import (
    bias_of_mask,
    causal_bias,
    padding_bias,
    selection_bias,
    with_four_axes,
)
from ropebridge_reference.memory import Past, recall
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
from ropebridge_reference.rotary import rotate, rows_for, turns
from ropebridge_reference.scores import scale_by_temperature, score_keys, temperature_at, unrounded
from ropebridge_reference.split import a_key_for_every_head, copies, join_source
from ropebridge_reference.weights import Affine, Weights

__all__ = [
    "Affine",
    "Output",
    "Past",
    "Select",
    "Weights",
    "a_key_for_every_head",
    "adapt",
    "attention_layer",
    "bias_keys",
    "bias_of_mask",
    "causal_bias",
    "clip",
    "copies",
    "exclude",
    "join_source",
    "make_latent",
    "make_pattern",
    "mix_values",
    "multiply",
    "norm_and_gate",
    "normalise",
    "of_the_largest",
    "open_gate",
    "padding_bias",
    "project_heads",
    "project_output",
    "recall",
    "result",
    "rotate",
    "rows_for",
    "scale_by_temperature",
    "score_keys",
    "selection_bias",
    "side_by_side",
    "strength",
    "subtract",
    "sum_of_results",
    "temperature_at",
    "turns",
    "unrounded",
    "with_four_axes",
    "with_rotary_part",
]
