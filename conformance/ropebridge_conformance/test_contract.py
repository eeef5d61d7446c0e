"""Contract as tests, one per check: see the check of the same name for what it does.

pytest -p ropebridge_conformance --pyargs ropebridge_conformance \\
    --ropebridge-subject package.module:Factory
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ropebridge_conformance.checks import CHECKS
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.questions import Check, Question
from ropebridge_conformance.plugin import expect_pass


def as_test(check: Check) -> Callable[[Bench, Question, pytest.Config], None]:
    """Return the test that puts a check's questions, under its name."""

    def test(subject_bench: Bench, question: Question, pytestconfig: pytest.Config) -> None:
        expect_pass(subject_bench, question, pytestconfig)

    test.__name__ = test.__qualname__ = f"test_{check.name}"
    test.__doc__ = check.ask.__doc__
    return test


globals().update({f"test_{check.name}": as_test(check) for check in CHECKS})
