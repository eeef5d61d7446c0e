"""Layers that no family has: hypothesis draws what a layer computes, and both subjects must compute
it alike."""

from dataclasses import replace

import pytest
from hypothesis import example, find, given, settings

from ropebridge.subject import Factory as Bridge
from ropebridge_conformance.judging.profiles import PROFILES
from ropebridge_conformance.mutants.catalogue import MUTANT_BY_NAME
from ropebridge_conformance.strategies import (
    CORPUS,
    MINIMAL,
    Drawn,
    drawn_layers,
    first_fault,
    register_profiles,
    variants,
)
from ropebridge_conformance.subjects.reference import Factory as Reference

pytestmark = pytest.mark.slow

register_profiles()
A_FEW, MANY = (settings.get_profile(f"ropebridge-{name}") for name in ("smoke", "default"))
SUBJECTS = pytest.mark.parametrize("subject", [Reference, Bridge], ids=["reference", "bridge"])


def fault(subject, drawn: Drawn):
    return first_fault(subject(families={"ToyAttention": drawn.variant}), drawn)


@SUBJECTS
@settings(A_FEW)
@given(drawn=drawn_layers())
@example(drawn=CORPUS[0])
@example(drawn=CORPUS[1])
@example(drawn=CORPUS[2])
@example(drawn=CORPUS[-2])
@example(drawn=CORPUS[-1])
def test_any_layer_is_computed_stage_by_stage_as_the_contract_says(subject, drawn):
    assert fault(subject, drawn) is None


@pytest.mark.every
@pytest.mark.timeout(600)  # all draws are one test
@SUBJECTS
@settings(MANY)
@given(drawn=drawn_layers())
def test_many_layers_are_computed_stage_by_stage_as_the_contract_says(subject, drawn):
    assert fault(subject, drawn) is None


@SUBJECTS
@pytest.mark.parametrize("drawn", CORPUS, ids=range(len(CORPUS)))
def test_the_corpus_is_computed_stage_by_stage_as_the_contract_says(subject, drawn):
    assert fault(subject, drawn) is None


@pytest.mark.every
def test_a_failure_shrinks_to_a_small_layer():
    """Two heads are the fewest that can be confused; whatever else is there goes."""
    smallest = find(
        variants(),
        lambda variant: variant.heads > 1,
        settings=settings(deadline=None, derandomize=True, database=None),
    )
    assert smallest == replace(MINIMAL, heads=2)
    mutant, drawn = MUTANT_BY_NAME["mixed_heads_rolled"], replace(CORPUS[0], variant=smallest)
    assert first_fault(
        Reference(stages=mutant.stages, families={"ToyAttention": smallest}), drawn
    ).startswith("hook_z is off by")


def test_the_profiles_draw_more_and_more():
    names = [profile.name for profile in PROFILES]
    counts = [settings.get_profile(f"ropebridge-{name}").max_examples for name in names]
    assert names == ["smoke", "default", "soak"]
    assert counts == sorted(counts) == [profile.examples for profile in PROFILES]
    assert not settings.get_profile("ropebridge-soak").derandomize


def test_a_drawn_layer_is_the_same_one_every_time():
    one, other = CORPUS[1].specimen.module, CORPUS[1].specimen.module
    assert all((a == b).all() for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(NotImplementedError, match="a drawn layer has no forward of its own"):
        one(None)
