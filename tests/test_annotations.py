"""The annotations of the reference are the documentation of its shapes. Checking them at every call
takes as long as the mathematics, so it is done in processes of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CHECKED = "--jaxtyping-packages=ropebridge_reference,beartype.beartype"
CORE_LAYERS = (
    "--pyargs",
    "ropebridge_conformance",
    "--ropebridge-subject=ropebridge_conformance.subjects.reference:Factory",
    "--ropebridge-dtype=bfloat16",
    "--ropebridge-device=cpu",
    "-k",
    "shapes or test_reference or test_gradcheck or hooks_fire_once or an_edit_of_a_part",
)


def test_shapes_and_dtypes_are_what_the_annotations_say():
    """Of each function alone, and of every layer of the core."""
    alone = ("tests/annotated/shapes.py", "tests/test_reference.py", "tests/test_gradcheck.py")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            CHECKED,
            *alone,
            *CORE_LAYERS,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.every
def test_a_wrong_shape_is_refused_where_annotations_are_checked_and_there_alone():
    """The file of wrong shapes fails where nothing checks them: it can fail."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/annotated/shapes.py",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "DID NOT RAISE" in done.stdout
