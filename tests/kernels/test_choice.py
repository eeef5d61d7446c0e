"""One place chooses the kernel of a call, and says why."""

from __future__ import annotations

import pytest

from ropebridge.kernels.demand import BETTER_IN_BLOCKS, Demand, KernelSettings, choose
from ropebridge_spec import ContractError

CHOICES = {
    "nobody watches": (Demand(), "fused", "nobody watches scores or pattern"),
    "with derivatives": (Demand(derivatives=True), "fused", "nobody watches scores or pattern"),
    "a length that blocks are faster at": (
        Demand(causal=True, rows=512),
        "row_blocks",
        "a causal pass of a length at which blocks are faster",
    ),
    "that length, with derivatives": (
        Demand(causal=True, rows=512, derivatives=True),
        "fused",
        "nobody watches scores or pattern",
    ),
    "that length, on an accelerator": (
        Demand(causal=True, rows=512, on_cpu=False),
        "fused",
        "nobody watches scores or pattern",
    ),
    "that length, compiled": (
        Demand(causal=True, rows=512, transformed=True),
        "fused",
        "nobody watches scores or pattern",
    ),
    "a softcap": (Demand(softcap=True), "row_blocks", "the layer has a softcap"),
    "sinks and other widths": (
        Demand(sinks=True, other_width=True),
        "row_blocks",
        "the layer has sinks and values of another width",
    ),
    "a softcap, compiled": (
        Demand(softcap=True, transformed=True),
        "composite",
        "the layer has a softcap, in a compiled graph or a transform of torch.func",
    ),
    "dropout": (
        Demand(dropout=True),
        "composite",
        "the layer has dropout; dropout draws for whole rows",
    ),
    "eager, with derivatives": (
        Demand(derivatives=True, of_any_order=True),
        "composite",
        "derivatives of a model that attends by eager, of any order",
    ),
    "pattern": (Demand(shown=True), "row_blocks", "the pattern is wanted"),
    "a decode step": (
        Demand(shown=True, rows=1),
        "composite",
        "the pattern is wanted; of one row few operations are fastest",
    ),
    "pattern with derivatives": (
        Demand(shown=True, derivatives=True),
        "gradients",
        "the pattern is wanted, and derivatives",
    ),
    "scores with derivatives": (
        Demand(shown=True, scores=True, derivatives=True),
        "composite",
        "the pattern is wanted, and derivatives",
    ),
    "pattern on an accelerator": (
        Demand(shown=True, on_cpu=False),
        "composite",
        "the pattern is wanted, on a device where few large operations are fastest",
    ),
}


@pytest.mark.parametrize(("demand", "kernel", "reason"), CHOICES.values(), ids=list(CHOICES))
def test_a_call_takes_the_kernel_that_does_no_more_than_is_asked(
    demand: Demand, kernel: str, reason: str
) -> None:
    choice = choose(demand)
    assert (choice.kernel, choice.reason) == (kernel, reason)


@pytest.mark.parametrize("rows", [BETTER_IN_BLOCKS.start - 1, BETTER_IN_BLOCKS.stop])
def test_other_lengths_go_through_the_fused_kernel(rows: int) -> None:
    assert choose(Demand(causal=True, rows=rows)).kernel == "fused"


def test_a_preference_holds_where_the_kernel_can_do_what_is_asked() -> None:
    blocks, fused = KernelSettings("row_blocks"), KernelSettings("fused")
    assert choose(Demand(), blocks).kernel == "row_blocks"
    assert choose(Demand(derivatives=True), blocks).kernel == "fused"
    assert choose(Demand(causal=True, rows=512), fused).kernel == "fused"
    assert choose(Demand(softcap=True), fused).kernel == "row_blocks"
    assert choose(Demand(shown=True), KernelSettings("composite")).kernel == "composite"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"prefer": "flash"},
            "KernelSettings(prefer='flash') names no kernel; it is one of 'fused', 'row_blocks',"
            " 'composite', None",
        ),
        ({"rows": 0}, "KernelSettings(rows=0) must be 1 or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ContractError) as error:
        KernelSettings(**settings)  # type: ignore[arg-type]
    assert str(error.value) == message
