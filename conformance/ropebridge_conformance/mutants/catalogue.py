"""All mutants: those of the stages, each in its stage's file, and those of the topics here; their
values serve as foils.

A *foil* is what a mutant would give on the very input a check uses: where every foil of a stage
stays within the bound, the input could not have told right from wrong, and the verdict is vacuous.
"""

from __future__ import annotations

from collections.abc import Mapping

from ropebridge_conformance.mutants import arguments, cache, gradients, hooks, layers, parts
from ropebridge_conformance.mutants.mutant import Mutant
from ropebridge_conformance.stages.functions import STAGES
from ropebridge_conformance.stages.oracle import STAGE_FILES
from ropebridge_conformance.zoo.scenarios import Scenario
from ropebridge_conformance.zoo.specimens import Specimen

TOPICS = (cache, arguments, hooks, parts, gradients, layers)
MUTANTS: tuple[Mutant, ...] = tuple(
    mutant for topic in (*STAGE_FILES, *TOPICS) for mutant in topic.MUTANTS
)
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
