"""Every form in which a scenario hands down its mask means what the mask means (MASK-1 to
MASK-5)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ropebridge_conformance.zoo.calls import calls
from ropebridge_conformance.zoo.masks import FAR_DOWN, FORMS
from ropebridge_conformance.zoo.scenarios import FREE_FORMS, SCENARIO_BY_ID, MaskForm
from ropebridge_conformance.zoo.specimens import Specimen, specimen
from ropebridge_conformance.zoo.visibility import Span, bias_of
from ropebridge_spec import MaskError


def layer(dtype: str = "bfloat16") -> Specimen:
    """A causal layer with a window."""
    return specimen("mistral", getattr(torch, dtype), "cpu")


def meant(own: Specimen, scenario: str) -> Tensor:
    """What the judge reads of a scenario's mask, (batch or 1, head or 1, query, key)."""
    (call,) = calls(SCENARIO_BY_ID[scenario], own, None)
    x, mask = call.given["hidden_states"], call.given["attention_mask"]
    return bias_of(mask, Span(0, x.shape[1]), own.variant, x.device)


def free(own: Specimen) -> Tensor:
    """The free mask, (batch, head, query, key), as numbers and -inf."""
    (call,) = calls(SCENARIO_BY_ID["free"], own, None)
    mask: Tensor = call.given["attention_mask"]
    return mask.double().masked_fill(mask == torch.finfo(mask.dtype).min, -torch.inf)


def lower(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask whose numbers at every third key lie lower, rounded to the layer's dtype."""
    mask = mask.clone()
    mask[..., ::3] = (mask[..., ::3].to(dtype) - FAR_DOWN).double()
    return mask


ZERO_OR_INF = {"booleans", "BlockMask", "booleans without a head axis"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("scenario", "form"), [(id, form) for id, _, form in FREE_FORMS])
def test_a_form_of_the_free_mask_means_what_it_means(
    scenario: str, form: MaskForm, dtype: str
) -> None:
    """Head by head and query by query, but for what the form leaves out."""
    own = layer(dtype)
    wanted = free(own)
    if form in ZERO_OR_INF:
        wanted = torch.where(wanted == -torch.inf, wanted, 0.0)
    if form in ("no head axis", "booleans without a head axis"):
        wanted = wanted[:, :1]
    if form == "one query for all":
        wanted = wanted[:, :, -1:].expand(-1, -1, wanted.shape[2], -1)
    if form == "one row of the batch for all":
        wanted = wanted[:1]
    if form == "large numbers":
        wanted = lower(wanted, own.dtype)
    assert torch.equal(meant(own, scenario), wanted)


def test_every_form_is_that_of_a_scenario() -> None:
    assert {scenario.form for scenario in SCENARIO_BY_ID.values()} == set(FORMS)


@pytest.mark.parametrize("scenario", ["padding_numbers", "padding_floats"])
def test_padding_in_numbers_means_what_it_means_in_booleans(scenario: str) -> None:
    assert torch.equal(meant(layer(), scenario), meant(layer(), "padding"))


def test_right_padding_hides_the_last_keys_of_the_last_row() -> None:
    hidden = (meant(layer(), "right_padding") == -torch.inf).all(2)[:, 0]  # (batch, key)
    assert hidden[-1].nonzero().flatten().tolist() == [10, 11, 12]
    assert not hidden[:-1].any()


@pytest.mark.parametrize(
    "mask",
    [torch.ones(3, 1, 2, 13), torch.ones(3, 13, 12), torch.ones(3, 1, 1, 13, 13), torch.ones(13)],
    ids=["two queries", "a key too few", "five axes", "one axis"],
)
def test_the_judge_reads_no_mask_of_another_shape(mask: Tensor) -> None:
    with pytest.raises(MaskError, match=r"MASK-4 requires None, .batch, 13., .batch, 13, 13."):
        bias_of(mask, Span(0, 13), layer().variant, torch.device("cpu"))
