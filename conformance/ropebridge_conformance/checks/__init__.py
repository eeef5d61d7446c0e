"""Every check, by topic."""

from __future__ import annotations

from collections.abc import Mapping

from ropebridge_conformance.checks import edits, firing, looking, masking, parity, values
from ropebridge_conformance.questions import Check

CHECKS: tuple[Check, ...] = (*firing.CHECKS, *values.CHECKS, *edits.CHECKS, *looking.CHECKS, *parity.CHECKS, *masking.CHECKS)
CHECK: Mapping[str, Check] = {check.name: check for check in CHECKS}
