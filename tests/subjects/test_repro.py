"""Each reproduction script stands alone, is short, and shows its fault with the versions that are
installed."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ropebridge_conformance import subjects
from ropebridge_conformance.judging.known_failures import read_known_failures

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "docs/subjects/repro").glob("*.py"))
KNOWN = {
    path.stem: read_known_failures(path) for path in Path(subjects.__file__).parent.glob("*.toml")
}


ONE_BY_ONE = """
import contextlib, io, json, runpy, sys
for script in sys.argv[1:]:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(script, run_name="__main__")
        left_with = 0
    except SystemExit as left:
        left_with = left.code
    print(json.dumps([left_with, printed.getvalue()]))
"""
"""Runs scripts in one process, which imports transformers once for all of them."""


@pytest.mark.every
def test_each_script_shows_its_fault():
    """Exit code 1 alone could be any error: what came and what was expected are printed."""
    ran = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE, *map(str, SCRIPTS)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(answers) == len(SCRIPTS), ran.stderr
    for script, (left_with, printed) in zip(SCRIPTS, answers, strict=True):
        assert left_with == 1, (
            f"{script.stem} no longer shows; take its entry off the known failures\n{printed}"
        )
        assert "expected" in printed


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_short_and_needs_nothing_of_ropebridge(script):
    source = script.read_text(encoding="utf-8")
    nodes = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
        for node in nodes
    }
    assert len(source.splitlines()) < 40
    assert names <= {"sys", "torch", "transformers"}


def test_each_script_belongs_to_a_known_failure_and_each_known_failure_has_one():
    linked = {ROOT / entry.link for entries in KNOWN.values() for entry in entries}
    assert linked == set(SCRIPTS)


def test_a_script_is_named_after_the_subject_it_is_about():
    assert all(
        Path(entry.link).stem.startswith(name)
        for name, entries in KNOWN.items()
        for entry in entries
    )
