"""The annotations of the reference are the documentation of its shapes. Checking them at every call
takes as long as the mathematics, so it is done in processes of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CHECKED = "--jaxtyping-packages=ropebridge_reference,beartype.beartype"
WRONG = "tests/annotated/shapes.py"
ALONE = (WRONG, "tests/test_reference.py")
CORE_LAYERS = (
    "--pyargs",
    "ropebridge_conformance",
    "--ropebridge-subject=ropebridge_conformance.subjects.reference:Factory",
    "--ropebridge-dtype=bfloat16",
    "--ropebridge-device=cpu",
    "-k",
    "hooks_fire_once or an_edit_of_a_part",
)


def run(*words):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "words",
    [ALONE, pytest.param(CORE_LAYERS, marks=pytest.mark.every)],
    ids=["alone", "core_layers"],
)
def test_shapes_and_dtypes_are_what_the_annotations_say(words):
    done = run(CHECKED, *words)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.every
def test_a_wrong_shape_is_refused_where_annotations_are_checked_and_there_alone():
    """The file of wrong shapes fails where nothing checks them: it can fail."""
    done = run(WRONG)
    assert done.returncode == 1
    assert "DID NOT RAISE" in done.stdout
