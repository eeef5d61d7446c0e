"""Profiles: how much is asked. Smoke to see that a subject works at all, default for a change, soak
for a release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ropebridge_conformance.judging.ids import DTYPES
from ropebridge_conformance.zoo.specimens import CORE

ProfileName = Literal["smoke", "default", "soak"]


@dataclass(frozen=True)
class Profile:
    """Hold one size of a run.

    families: cases or families of the zoo, as `--family` takes them.
    dtypes: as `--dtype` takes them.
    repeated: whether a layer is asked everything again for each class that has the same.
    examples: how many configurations hypothesis draws for each generative test.
    """

    name: ProfileName
    families: tuple[str, ...]
    dtypes: tuple[str, ...]
    repeated: bool
    examples: int


PROFILES: tuple[Profile, ...] = (
    Profile(
        "smoke",
        ("qwen3", "gpt_oss_local"),
        ("float32", "bfloat16"),
        repeated=False,
        examples=10,
    ),
    Profile("default", tuple(case.id for case in CORE), DTYPES, repeated=False, examples=120),
    Profile("soak", ("all",), DTYPES, repeated=True, examples=2000),
)
PROFILE_BY_NAME: Mapping[ProfileName, Profile] = {profile.name: profile for profile in PROFILES}


def register_profiles() -> None:
    """Register every profile with hypothesis as `ropebridge-smoke` and so on: the same draws on
    every machine, but for `soak`, which draws new ones every time; none has a deadline, because a
    first call is slow."""
    from hypothesis import HealthCheck, settings

    for each in PROFILES:
        settings.register_profile(
            f"ropebridge-{each.name}",
            max_examples=each.examples,
            deadline=None,
            derandomize=each.name != "soak",
            suppress_health_check=[HealthCheck.too_slow],
        )


def use_hypothesis_profile(profile: Profile) -> None:
    """Register every profile with hypothesis, and load this one."""
    from hypothesis import settings

    register_profiles()
    settings.load_profile(f"ropebridge-{profile.name}")
