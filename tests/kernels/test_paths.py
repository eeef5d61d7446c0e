"""Every way to attend is judged in its own right: each kernel, forced wherever it can do what is
asked, on the core of the zoo."""

from __future__ import annotations

import pytest

from ropebridge import subject
from ropebridge_conformance.bench import Bench
from ropebridge_conformance.judge import judge, plan
from ropebridge_conformance.verdicts import Outcome
from ropebridge_conformance.zoo import CORE

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", [case.id for case in CORE])
@pytest.mark.parametrize("path", ["fused", "row_blocks", "composite"])
def test_every_question_about_a_layer_passes_on_each_kernel(path: str, case: str) -> None:
    bench = Bench(getattr(subject, path)())
    verdicts = [judge(bench, question) for question in plan([case], ["float32"])]
    assert len(verdicts) > 300
    assert [v.reason for v in verdicts if v.outcome != Outcome.PASS] == []
