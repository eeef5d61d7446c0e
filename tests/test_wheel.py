"""The wheel, installed where nothing of the project is, judges from an empty folder."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A Python that has the project from its wheel alone, and the other packages from here: nothing
    is downloaded."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (Path(site) / "others.pth").write_text(f"{here}\n", encoding="utf-8")
    return python


@pytest.fixture
def run(installed, tmp_path):
    return lambda *words: subprocess.run(
        [installed, "-I", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )


def test_the_project_comes_from_the_wheel(run):
    """Also where the packages from here hold a way to the sources: what is installed goes first."""
    code = (
        "import ropebridge, ropebridge_spec, ropebridge_reference, ropebridge_conformance as c;"
        " print(ropebridge.__file__, c.__file__, sep='\\n')"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert all("/env/lib/" in line for line in done.stdout.splitlines())
    assert str(ROOT) not in done.stdout


def test_the_command_judges_from_an_empty_folder_and_makes_its_page(installed, run, tmp_path):
    main = ("-c", "from ropebridge_conformance.command import main; main()")
    narrow = (
        "--family",
        "llama",
        "--dtype",
        "float32",
        "--device",
        "cpu",
        "--jobs",
        "1",
        "--results",
        "r.jsonl",
    )
    done = run(*main, "check", *narrow)
    assert done.returncode == 0, done.stderr
    assert run(*main, "report", "r.jsonl", "-o", "report.html").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.jsonl", "report.html"]


def test_the_suite_runs_from_an_empty_folder(run):
    narrow = (
        "--subject",
        "ropebridge.subject:Factory",
        "--family",
        "llama",
        "--dtype",
        "float32",
        "--device",
        "cpu",
        "-p",
        "no:cacheprovider",
    )
    done = run(
        "-m",
        "pytest",
        "-q",
        "-p",
        "ropebridge_conformance",
        "--pyargs",
        "ropebridge_conformance",
        *narrow,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert " passed" in done.stdout
