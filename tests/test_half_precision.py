"""Whole models in half precision: the bridge is no further from the float64 truth than the model
alone (PAR-2)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from few import FAMILIES, few
from ropebridge import attach
from ropebridge_conformance.zoo.builder import build_model, extra_of, inputs_of
from ropebridge_conformance.zoo.recipes import INSTALLED, RECIPE_BY_NAME
from ropebridge_conformance.zoo.specimens import randomise

pytestmark = pytest.mark.slow

NOISE = 1.25
"""How far the ratio of two medians of rounding errors may be from 1, over some ninety positions.
Over all families it is 0.97 (docs/BENCHMARKS.md)."""


def inputs_in(name: str, model: Any, dtype: torch.dtype) -> dict[str, Any]:
    """An odd batch of odd length, unless the model is given other tensors of a fixed shape
    beside."""
    extra = extra_of(name)
    given = {**inputs_of(name, model.config, batch=2 if extra else 7, pos=13), **extra}
    return {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in given.items()
    }


def final(output: Any) -> Tensor:
    return (output.logits if hasattr(output, "logits") else output[0]).double()


def error(got: Tensor, truth: Tensor) -> float:
    """The median over positions of the root-mean-square error: experts that are routed otherwise at
    a few do not decide."""
    return float((got - truth).square().mean(-1).sqrt().median())


def truth_of(model: Any, given: dict[str, Any]) -> Tensor:
    """The model alone in float64; in float32, a thousand times as fine as half precision, where
    transformers gives NaN in float64 (BLT)."""
    for wide in (torch.float64, torch.float32):
        truth = final(
            copy.deepcopy(model).to(wide)(
                **{
                    key: value.to(wide) if value.is_floating_point() else value
                    for key, value in given.items()
                }
            )
        )
        if truth.isfinite().all():
            return truth
    raise AssertionError("the model alone gives no finite truth")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", few(FAMILIES, [recipe.name for recipe in INSTALLED]))
@torch.no_grad()
def test_half_precision_is_as_near_the_truth_as_the_model_alone(
    name: str, dtype: torch.dtype
) -> None:
    model = build_model(name)
    randomise(model)
    model = model.to(dtype)
    given = inputs_in(name, model, dtype)
    truth = truth_of(model, given)
    alone = final(model(**given))
    with attach(model, verify=False) as bridged:
        unwatched = final(model(**given))
        with bridged.caching():
            watched = final(model(**given))
    for got in (unwatched, watched):
        assert error(got, truth) <= NOISE * error(alone, truth), (
            f"{RECIPE_BY_NAME[name].model_class} in {dtype}"
        )
