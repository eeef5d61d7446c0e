"""Mutants: the reference with one named fault in one stage. They prove the judge, and their values
serve as foils.

A *foil* is what a mutant would give on the very input a check uses: where every foil of a stage
stays within the bound, the input could not have told right from wrong, and the verdict is vacuous.
"""

from __future__ import annotations

from collections.abc import Mapping

from ropebridge_conformance.mutants import (
    arguments,
    cache,
    gradients,
    hooks,
    layers,
    masks,
    mixing,
    norm,
    output,
    parts,
    pattern,
    projection,
    rotary,
    scores,
)
from ropebridge_conformance.mutants.equivalent import EQUIVALENTS, Equivalent
from ropebridge_conformance.mutants.mutant import ARMS, Mutant
from ropebridge_conformance.zoo.scenarios import Scenario
from ropebridge_conformance.zoo.specimens import Specimen
from ropebridge_reference import STAGES

__all__ = ["ARMS", "EQUIVALENTS", "MUTANTS", "MUTANT_BY_NAME", "Equivalent", "Mutant", "foils"]

TOPICS = (
    projection,
    norm,
    rotary,
    scores,
    masks,
    pattern,
    mixing,
    output,
    cache,
    arguments,
    hooks,
    parts,
    gradients,
    layers,
)
MUTANTS: tuple[Mutant, ...] = tuple(mutant for topic in TOPICS for mutant in topic.MUTANTS)
MUTANT_BY_NAME: Mapping[str, Mutant] = {mutant.name: mutant for mutant in MUTANTS}


def foils(hook: str, specimen: Specimen, scenario: Scenario) -> list[Mutant]:
    """Return the mutants whose wrong value at this hook an input must be able to tell from the
    right one.

    A fault of the whole output stands aside where results are made head by head: it is then another
    stage's.
    """
    by_results = hook == "hook_out" and "attn_result" in scenario.opted_in
    return [
        m
        for m in MUTANTS
        if m.foil
        and m.stages is not STAGES
        and hook in m.hooks(specimen, scenario)
        and not by_results
    ]
