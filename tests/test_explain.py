"""What `ropebridge explain` prints is the contract's own, whole, for every hook point and
clause."""

import re

import pytest
from rich.console import Console

from ropebridge_conformance.results.explanation import explanation
from ropebridge_spec import CLAUSE_BY_ID, CLAUSES, HOOK_BY_NAME, HOOKS, RESERVED, UnknownHook
from ropebridge_spec.document import EXISTS


def printed(name, width=600):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(explanation(name), highlight=False)
    return capture.get()


def also_named(hook):
    return re.search(r"^also named in +(.+?) *$", printed(hook), re.MULTILINE)[1].split(", ")


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_a_hook_point_is_explained_whole(hook):
    text = printed(hook.name)
    for part in (
        hook.name,
        f"blocks.{{layer}}.attn.{hook.name}",
        hook.stage,
        hook.meaning,
        hook.axes,
        EXISTS[hook.exists],
    ):
        assert part in text
    for id in (hook.value_clause, hook.axes_clause):
        assert f"clause {id}" in text
        assert CLAUSE_BY_ID[id].text in text
        assert all(part in text for part in CLAUSE_BY_ID[id].formula.split(";  "))


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.id)
def test_a_clause_is_explained_whole(clause):
    text = printed(clause.id)
    assert clause.text in text
    about = [hook.name for hook in HOOKS if clause.id in (hook.value_clause, hook.axes_clause)]
    assert ("hook points  " + ", ".join(about) in text) == bool(about)


@pytest.mark.parametrize("name", ["blocks.0.attn.hook_rot_q", "encoder.blocks.12.attn.hook_rot_q"])
def test_a_full_name_is_its_hook_point(name):
    assert printed(name) == printed("hook_rot_q")


def test_other_clauses_that_name_a_hook_point_are_pointed_to():
    assert also_named("hook_rot_q") == ["NORM-3"]
    assert "PAT-3" in also_named("hook_pattern")
    assert "PAT-1" not in also_named("hook_pattern")


def test_a_reserved_name_is_said_to_be_reserved():
    for name, meaning in RESERVED.items():
        assert f"{name} is reserved" in printed(name)
        assert meaning in printed(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("hook_rot", "hook_rot_q"),
        ("blocks.0.attn.hook_patern", "hook_pattern"),
        ("hook_score", "hook_attn_scores"),
        ("ROT-9", "ROT-2"),
    ],
)
def test_an_unknown_name_is_refused_with_near_ones(name, near):
    with pytest.raises(UnknownHook) as raised:
        explanation(name)
    first, second, third, _ = str(raised.value).splitlines()
    assert first == f"there is no hook point {name!r}"
    assert near in second
    assert third == f"  hook points: {', '.join(HOOK_BY_NAME)}"


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.hook_rot_q", "blocks.attn.hook_rot_q", "blocks.0.mlp.hook_rot_q"],
)
def test_a_path_that_is_no_full_name_is_not_guessed_at(name):
    with pytest.raises(
        UnknownHook, match=r"a full name is blocks\.\{layer\}\.attn\.\{hook point\}"
    ):
        explanation(name)


def test_what_is_explained_fits_a_narrow_terminal():
    assert max(map(len, printed("hook_rot_q", width=60).splitlines())) <= 60
