"""`ropebridge soak`: layers are drawn and judged until somebody stops it."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ropebridge_conformance.cli import app
from ropebridge_conformance.judging.soak import draw_round, maker_of, soak
from ropebridge_conformance.mutants.catalogue import MUTANT_BY_NAME
from ropebridge_conformance.subjects.loading import SubjectError
from ropebridge_conformance.subjects.reference import Factory
from ropebridge_spec import Variant

pytestmark = pytest.mark.slow
REFERENCE = "ropebridge_conformance.subjects.reference:Factory"


@pytest.mark.every
def test_the_same_seed_draws_the_same_layers_and_another_others() -> None:
    assert draw_round(3) == draw_round(3) != draw_round(4)


def test_each_layer_is_judged_by_every_subject_and_a_fault_is_told() -> None:
    stages = MUTANT_BY_NAME["mixed_heads_rolled"].stages

    def mutant(variant: Variant) -> Factory:
        return Factory(stages=stages, families={"ToyAttention": variant})

    makers = {"right": maker_of(REFERENCE), "wrong": mutant}
    found = list(islice(soak(makers, 0, None), 20))  # 10 layers: some have one head, which is right
    right, wrong = found[::2], found[1::2]
    assert [judged.drawn for judged in right] == [judged.drawn for judged in wrong]
    assert not any(judged.fault for judged in right)
    assert any(judged.fault and "hook_z is off by" in judged.fault for judged in wrong)


def test_the_command_writes_a_line_for_each_layer_and_says_how_many(tmp_path: Path) -> None:
    lines = tmp_path / "soak.jsonl"
    done = CliRunner().invoke(app, ["soak", "--minutes", "0", "--results", str(lines)])
    assert done.exit_code == 0, done.output
    judged = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [one["fault"] for one in judged] == [None, None]  # one layer, two subjects
    assert judged[0]["drawn"]["variant"]["heads"] >= 1
    assert "2 layers judged, 0 with a fault" in done.output


def test_a_subject_that_is_not_told_what_a_layer_computes_is_refused() -> None:
    path = "ropebridge_conformance.subjects.hugging_face:Factory"
    with pytest.raises(SubjectError, match="takes no families; a drawn layer is of no class"):
        maker_of(path)
