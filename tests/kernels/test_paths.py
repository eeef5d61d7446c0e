"""Every fast way to attend is judged in its own right: each kernel, forced wherever it can do what
is asked.

`make kernels` does so on the whole core of the zoo; `make run` judges those that the bridge
chooses.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from ropebridge import subject
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.judge import judge, plan
from ropebridge_conformance.judging.verdicts import Outcome
from ropebridge_conformance.zoo.specimens import CORE

pytestmark = pytest.mark.slow

EVERY = tuple(case.id for case in CORE)
KERNELS = ("row_blocks", "fused")


@pytest.mark.every
@pytest.mark.parametrize(("path", "case"), [*product(KERNELS, EVERY)])
def test_every_question_about_a_layer_passes_on_each_kernel(path: str, case: str) -> None:
    bench = Bench(getattr(subject, path)())
    verdicts = [judge(bench, question) for question in plan([case], ["float32"])]
    assert len(verdicts) > 300
    assert [v.reason for v in verdicts if v.outcome != Outcome.PASS] == []


def test_a_row_whose_keys_a_hook_hides_has_no_weight(bridge_layer: Any) -> None:
    """Although by its position it sees some."""
    bridge = bridge_layer("llama", attn="sdpa")
    inputs = bridge.get_random_inputs(2, 9, seed=0)
    shown: dict[str, torch.Tensor] = {}

    def hide(scores: torch.Tensor, hook: Any) -> None:
        scores[:, :, 4] = -torch.inf

    def keep(tensor: torch.Tensor, hook: Any) -> None:
        shown[hook.spec.name] = tensor

    bridge.hook_points["hook_attn_scores"].add_hook(hide)
    for name in ("hook_pattern", "hook_z"):
        bridge.hook_points[name].add_hook(keep)
    with torch.no_grad():
        bridge(**{**inputs, "attention_mask": None})
    assert not shown["hook_pattern"][:, :, 4].any()
    assert not shown["hook_z"][:, 4].any()
    assert shown["hook_pattern"][:, :, 5].any()


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("hook", ["hook_attn_scores", "hook_pattern"])
@pytest.mark.parametrize(
    "way", [lambda t: t.data, lambda t: t.detach().numpy()], ids=["data", "numpy"]
)
def test_an_edit_that_torch_does_not_count_is_an_edit(
    bridge_layer: Any, way: Any, hook: str, grad: bool
) -> None:
    """Written through `.data` or numpy it flows as one that was written to the tensor."""
    bridge = bridge_layer("llama", attn="sdpa")
    inputs = {**bridge.get_random_inputs(2, 9, seed=0), "attention_mask": None}

    def counted(tensor: torch.Tensor, hook: Any) -> None:
        tensor[:, 1] *= 0.5

    def uncounted(tensor: torch.Tensor, hook: Any) -> None:
        way(tensor)[:, 1] *= 0.5

    outputs = []
    with torch.set_grad_enabled(grad):
        for edit in (counted, uncounted, lambda tensor, hook: None):
            with bridge.hook_points[hook].add_hook(edit):
                outputs.append(bridge(**inputs)[0].detach())
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])
