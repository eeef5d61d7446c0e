"""Methods that people run on hooks, one a file, each a short function of a bridged model that
returns plain tensors.

In use:

    from ropebridge import attach, methods

    with attach(model) as bridged:
        effect = methods.head_ablation(bridged, input_ids, methods.answer_logit(answers))  # (layer,
        head)

Everywhere the axis `layer` counts `bridged.layers`, in order; `inputs` are token ids (batch, pos),
or a mapping of what the model is called with; a metric is a function of the logits (batch, pos,
vocabulary) that returns one number. docs/METHODS.md says what each method holds still, and what its
numbers mean.
"""

from ropebridge.methods.ablation import ablated, head_ablation
from ropebridge.methods.attribution import attribution_patching
from ropebridge.methods.direct import direct_logit_attribution
from ropebridge.methods.errors import MethodError
from ropebridge.methods.induction import induction_scores, repeated_tokens, repeats_loss
from ropebridge.methods.knockout import attention_knockout, knocked_out
from ropebridge.methods.metrics import answer_logit, logit_difference
from ropebridge.methods.patching import activation_patching
from ropebridge.methods.paths import path_patching
from ropebridge.methods.running import Inputs, Metric, logits_of

__all__ = [
    "Inputs",
    "MethodError",
    "Metric",
    "ablated",
    "activation_patching",
    "answer_logit",
    "attention_knockout",
    "attribution_patching",
    "direct_logit_attribution",
    "head_ablation",
    "induction_scores",
    "knocked_out",
    "logit_difference",
    "logits_of",
    "path_patching",
    "repeated_tokens",
    "repeats_loss",
]
