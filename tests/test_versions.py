"""The releases of transformers that were tested: one pair of numbers, which README, pins and the
oldest allowed release agree with."""

from __future__ import annotations

import re
import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest

import ropebridge
from ropebridge import UntestedTransformers, attach, versions
from ropebridge_conformance.zoo.builder import build_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def test_the_pin_is_the_newest_tested() -> None:
    (pinned,) = re.findall(
        r"^transformers==(\d+\.\d+)",
        (ROOT / "constraints.txt").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert pinned == versions.NEWEST_TESTED


def test_the_oldest_allowed_is_the_oldest_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"transformers>={versions.OLDEST_TESTED}" in project["dependencies"]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_a_page_states_the_range(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert f"transformers {versions.OLDEST_TESTED} to {versions.NEWEST_TESTED}" in text


@pytest.mark.parametrize("installed", ["5.17.0", "5.24.0", "5.24.3", "5.24.0.dev0"])
def test_a_release_that_was_tested_passes_in_silence(installed: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versions.warn_if_untested(installed)


@pytest.mark.parametrize("installed", ["5.25.0", "5.25.0.dev0", "6.0.0"])
def test_a_newer_release_is_warned_of_with_what_to_do(installed: str) -> None:
    with pytest.warns(UntestedTransformers) as caught:
        versions.warn_if_untested(installed)
    assert (
        str(caught[0].message)
        == f"transformers {installed} is newer than 5.24, the newest that this ropebridge was"
        " tested with\n  what attach does not understand it refuses; to be sure: pip install"
        " 'transformers==5.24.*', or a newer ropebridge"
    )


def test_attach_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "NEWEST_TESTED", "5.0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            attach(build_model("llama"), verify=False).detach()
    assert [warning.category for warning in caught] == [UntestedTransformers]


def test_nothing_that_a_bridge_does_is_deprecated_in_the_installed_transformers() -> None:
    """Attaching, a forward, a step from a cache, and generation raise no warning of any kind."""
    model: Any = build_model("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with attach(model) as bridged:
            bridged.run_with_cache(**ropebridge_inputs(model))
            model.generate(**ropebridge_inputs(model), max_new_tokens=3, do_sample=False)
    assert "UntestedTransformers" in ropebridge.__all__


def ropebridge_inputs(model: Any) -> dict[str, Any]:
    from ropebridge_conformance.zoo.builder import inputs_of

    return inputs_of("llama", model.config)
