"""`.ci/leg`, with stand-ins for its interpreters: what fails, and what is printed, when a release
of transformers does not pass."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "leg"
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *sysconfig*) echo {site} ;;
  *importlib.metadata*) echo {release} ;;
  *pip*) echo "$@" >> {site}/asked ;;
  *check*) exit {judged} ;;
  *pytest*) exit {tested} ;;
esac
"""


def interpreter(path: Path, release: str, judged: int = 0, tested: int = 0) -> None:
    """Write a stand-in for a Python with this release of transformers."""
    path.parent.mkdir(parents=True)
    site = path.parent.parent
    path.write_text(
        PYTHON.format(site=site, release=release, judged=judged, tested=tested), encoding="utf-8"
    )
    path.chmod(0o755)


def leg(
    tmp_path: Path, release: str, judged: int = 0, tested: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a leg whose environment has a release, beside a pinned 5.24.0."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(SCRIPT, tmp_path / ".ci" / "leg")
    interpreter(tmp_path / ".venv/bin/python", "5.24.0")
    interpreter(tmp_path / ".legs/newest/bin/python", release, judged, tested)
    return subprocess.run(
        [tmp_path / ".ci/leg", "newest", "transformers"],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_leg_that_passes_says_with_which_release(tmp_path: Path) -> None:
    ran = leg(tmp_path, "5.25.1")
    assert ran.returncode == 0
    assert "leg newest: transformers 5.25.1 (pinned: 5.24.0)" in ran.stdout
    assert "leg newest: passed with transformers 5.25.1" in ran.stdout
    assert "install --quiet --no-compile --upgrade transformers" in (
        tmp_path / ".legs/newest/asked"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("wrong", [{"judged": 1}, {"tested": 1}], ids=["judge", "generation"])
def test_a_release_newer_than_the_pin_that_fails_is_reported_loudly_and_stops_nothing(
    tmp_path: Path, wrong: dict[str, int]
) -> None:
    ran = leg(tmp_path, "5.25.1", **wrong)
    assert ran.returncode == 0
    assert (
        "# leg newest FAILED with transformers 5.25.1, which is newer than the pin 5.24.0"
        in ran.stderr
    )
    assert "# repeat: make leg-newest" in ran.stderr
    assert "passed" not in ran.stdout


def test_an_older_release_that_fails_stops_the_run(tmp_path: Path) -> None:
    ran = leg(tmp_path, "5.17.0", tested=1)
    assert ran.returncode == 1
    assert "leg newest: FAILED with transformers 5.17.0; repeat: make leg-newest" in ran.stderr


def test_a_newest_release_that_is_the_pin_is_not_judged_a_second_time(tmp_path: Path) -> None:
    ran = leg(tmp_path, "5.24.0", judged=1, tested=1)
    assert ran.returncode == 0
    assert "transformers 5.24.0 is the pin, which make run and make test judge" in ran.stdout
    assert "passed" not in ran.stdout
