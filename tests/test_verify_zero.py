"""Verification of layers whose weights were set by hand: zeros are numbers like others."""

import pytest
import torch

from ropebridge import VerificationError, attach

pytestmark = pytest.mark.slow


def test_a_layer_that_gives_exactly_0_is_proved(build):
    """Difference and bound are then both 0."""
    model = build("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            for parameter in layer.self_attn.o_proj.parameters():
                parameter.zero_()
    with attach(model) as bridged:
        assert bridged.layers


def test_a_layer_that_gives_nan_is_not(build):
    model = build("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight[0, 0] = torch.nan
    with pytest.raises(VerificationError, match="its output is off by nan times the bound"):
        attach(model)
