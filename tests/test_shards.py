"""Shards of a plan: disjoint, together the whole, equally many to each, and the same on every
machine."""

import random
import subprocess
import sys
from itertools import pairwise

import pytest

from ropebridge_conformance.judging.planning import Selection, part_of, plan_hash, units_of
from ropebridge_conformance.judging.profiles import PROFILE_BY_NAME, PROFILES
from ropebridge_conformance.judging.shards import Shard, ShardError, read_shard
from ropebridge_conformance.plugin import DEFAULT_SUBJECTS


@pytest.fixture(scope="module")
def units():
    return units_of(DEFAULT_SUBJECTS, Selection(devices=("cpu",)), PROFILE_BY_NAME["default"])


def test_units_about_one_layer_come_one_after_another(units):
    """A process then has the model at hand that the units before it were about."""
    cases = [unit.case for unit in units]
    assert len(set(cases)) == sum(case != before for case, before in pairwise([None, *cases]))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_shards_are_disjoint_and_together_the_whole(units, count):
    parts = [part_of(units, Shard(index, count)) for index in range(1, count + 1)]
    keys = [unit.key for part in parts for unit in part]
    assert sorted(keys) == sorted(unit.key for unit in units)
    assert len(set(keys)) == len(keys)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_shard_has_the_questions_of_its_units_and_no_other(units):
    whole = {(unit.subject, q) for unit in units for q in unit.questions}
    parts = [
        {(unit.subject, q) for unit in part_of(units, Shard(index, 3)) for q in unit.questions}
        for index in (1, 2, 3)
    ]
    assert set.union(*parts) == whole
    assert sum(map(len, parts)) == len(whole) == sum(len(unit.questions) for unit in units)


def test_a_shard_keeps_the_order_of_the_plan_and_does_not_depend_on_it(units):
    part = part_of(units, Shard(2, 5))
    assert part == [unit for unit in units if unit in part]
    mixed = random.Random(0).sample(units, len(units))
    assert {unit.key for unit in part_of(mixed, Shard(2, 5))} == {unit.key for unit in part}


def test_a_shard_is_the_same_in_another_process():
    """Whatever the process's own seed of hashes is."""
    code = (
        "from ropebridge_conformance.judging.shards import Shard;"
        " print(Shard(2, 5).of([str(i) for i in range(40)], str))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**environment(), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert said == {f"{Shard(2, 5).of([str(i) for i in range(40)], str)}\n"}


def environment():
    import os

    return dict(os.environ)


def test_plans_that_ask_the_same_have_one_hash_and_others_have_not(units):
    mixed = random.Random(0).sample(units, len(units))
    assert plan_hash(mixed) == plan_hash(units)
    assert plan_hash(units[1:]) != plan_hash(units)
    narrowed = units_of(
        DEFAULT_SUBJECTS, Selection(devices=("cpu",), hooks=("hook_z",)), PROFILE_BY_NAME["default"]
    )
    assert plan_hash(narrowed) != plan_hash(units)


def test_the_suite_deals_out_the_same_shards_as_the_command(units, pytestconfig):
    from ropebridge_conformance.plugin import this_shard

    class Config:
        def getoption(self, name):
            return {"--ropebridge-shard": "2/3", "--ropebridge-device": ["cpu"]}.get(name)

    assert {"|".join(layer) for layer in this_shard(Config())} == {
        unit.key for unit in part_of(units, Shard(2, 3))
    }


@pytest.mark.parametrize("text", ["0/4", "5/4", "2", "a/b", "-1/2", "1/0", ""])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ShardError, match=r"a shard is i/n, i from 1 to n: 2/4"):
        read_shard(text)


def test_a_shard_says_itself():
    assert str(read_shard("2/4")) == "2/4"


def test_more_shards_than_parts_are_refused():
    with pytest.raises(
        ShardError,
        match=(
            r"2 parts of the plan cannot be shared out among 3 shards\n  give a shard i/n with n at"
            r" most 2"
        ),
    ):
        Shard(1, 3).of(["a", "b"], str)


# ---- profiles ----


def test_profiles_grow():
    sizes = [
        sum(len(unit.questions) for unit in units_of(["s"], Selection(devices=("cpu",)), profile))
        for profile in PROFILES[:2]
    ]
    assert 1000 < sizes[0] < sizes[1] / 4
    assert [profile.examples for profile in PROFILES] == sorted(
        profile.examples for profile in PROFILES
    )
    assert PROFILE_BY_NAME["soak"].families == ("all",)


def test_what_is_given_goes_before_the_profile():
    (unit,) = units_of(
        ["s"], Selection(("qwen3",), ("float16",), ("cpu",)), PROFILE_BY_NAME["smoke"]
    )
    assert (unit.case, unit.dtype) == ("qwen3", "float16")


@pytest.mark.slow
@pytest.mark.every
def test_a_profile_is_one_of_hypothesis_too(tmp_path):
    """In a process of its own: what is loaded is for all tests of a session."""
    (tmp_path / "test_drawn.py").write_text(DRAWN, encoding="utf-8")
    pytest_with_plugin = [sys.executable, "-m", "pytest", "-q", "-p", "ropebridge_conformance"]
    command = [*pytest_with_plugin, "-p", "no:cacheprovider", "--ropebridge-profile", "smoke"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout


DRAWN = """
from hypothesis import settings

def test_the_profile_is_loaded():
    assert settings().max_examples == 10
    assert settings().derandomize
"""
