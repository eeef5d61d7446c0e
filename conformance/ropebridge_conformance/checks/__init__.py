"""Every check, by topic."""

from __future__ import annotations

from collections.abc import Mapping

from ropebridge_conformance.checks import (
    caching,
    costs,
    edit_forms,
    edits,
    firing,
    gradients,
    heads,
    isolation,
    lengths,
    looking,
    masking,
    numerics,
    owning,
    parity,
    parts,
    refusals,
    selecting,
    training,
    values,
)
from ropebridge_conformance.judging.questions import Check

TOPICS = (
    firing,
    values,
    edits,
    edit_forms,
    owning,
    parts,
    looking,
    parity,
    masking,
    selecting,
    caching,
    heads,
    gradients,
    refusals,
    numerics,
    lengths,
    training,
    costs,
    isolation,
)
CHECKS: tuple[Check, ...] = tuple(
    found
    for topic in TOPICS
    for found in vars(topic).values()
    if isinstance(found, Check) and found.ask.__module__ == topic.__name__
)
"""Every check that a topic's file has, in the order in which they stand there."""
CHECK_BY_NAME: Mapping[str, Check] = {check.name: check for check in CHECKS}
