"""The executable spec: rotary attention as named-axis einsums, one short function a clause. Written
to be read.

Start with `attention.py`: its text is the order of the hooks.
"""

from ropebridge_reference.attention import STAGES, Output, Past, Stages, attention
from ropebridge_reference.differential import side_by_side, strength, subtract
from ropebridge_reference.gate import gate, gated
from ropebridge_reference.key_bias import key_bias, of_the_largest
from ropebridge_reference.masks import bias_of_mask, causal_bias, padding_bias, selection_bias
from ropebridge_reference.mix import exclude, mix, output, result, sum_of_results
from ropebridge_reference.norm import normalise
from ropebridge_reference.pattern import pattern
from ropebridge_reference.project import adapt, clip, latent, multiply, project, with_rotary_part
from ropebridge_reference.rotary import rotate, turns
from ropebridge_reference.scores import heat, scores, temper
from ropebridge_reference.split import split_inputs
from ropebridge_reference.weights import Affine, Weights

__all__ = [
    "STAGES",
    "Affine",
    "Output",
    "Past",
    "Stages",
    "Weights",
    "adapt",
    "attention",
    "bias_of_mask",
    "causal_bias",
    "clip",
    "exclude",
    "gate",
    "gated",
    "heat",
    "key_bias",
    "latent",
    "mix",
    "multiply",
    "normalise",
    "of_the_largest",
    "output",
    "padding_bias",
    "pattern",
    "project",
    "result",
    "rotate",
    "scores",
    "selection_bias",
    "side_by_side",
    "split_inputs",
    "strength",
    "subtract",
    "sum_of_results",
    "temper",
    "turns",
    "with_rotary_part",
]
