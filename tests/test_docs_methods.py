"""Every Python block of the two guides runs, and says what is true."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parent.parent / "docs"
PACKAGES = {"TransformerLens": "transformer_lens", "nnsight": "nnsight"}
SECTIONS = (
    "See a pattern",
    "Ablate a head",
    "Queries after rotation",
    "Forbid a query to see a key",
    "The gradient at z",
)


def blocks_of(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run(block, names, folder):
    """Run a block from a file on disk: nnsight reads its own source."""
    path = folder / f"block{len(list(folder.iterdir()))}.py"
    path.write_text(block, encoding="utf-8")
    exec(compile(block, str(path), "exec"), names)


@pytest.mark.every
def test_every_block_of_methods_runs_and_shapes_are_what_is_said(tmp_path, monkeypatch, capsys):
    for package in ("matplotlib", "pandas"):
        pytest.importorskip(package)
    (tmp_path / "blocks").mkdir()
    monkeypatch.chdir(tmp_path)
    names, said = {}, 0
    for block in blocks_of((DOCS / "METHODS.md").read_text(encoding="utf-8")):
        run(block, names, tmp_path / "blocks")
        for value, shape in re.findall(r"^(\w+)\.shape  # (\(.*\))$", block, re.MULTILINE):
            assert str(tuple(names[value].shape)) == shape, value
            said += 1
    assert (
        said
        == len(re.findall(r"\.shape  # ", (DOCS / "METHODS.md").read_text(encoding="utf-8")))
        == 11
    )
    assert "<- induction head" in capsys.readouterr().out
    assert (tmp_path / "patterns.png").stat().st_size > 10_000
    assert (tmp_path / "patterns.html").stat().st_size > 10_000


def test_every_method_has_a_place_in_the_guide():
    from ropebridge import methods

    text = (DOCS / "METHODS.md").read_text(encoding="utf-8")
    assert not [
        name
        for name in methods.__all__
        if name[0].islower()
        and name not in ("logit_difference", "repeats_loss")
        and f"methods.{name}" not in text
    ]


def migrating():
    """The blocks before the first section, and those of each section, by who they are written
    for."""
    text = (DOCS / "MIGRATING.md").read_text(encoding="utf-8")
    parts = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    assert tuple(parts) == ("The model", *SECTIONS)
    return {
        name: {(re.match(r"# (.+)", block) or [None, "all"])[1]: block for block in blocks_of(part)}
        for name, part in parts.items()
    }


def result_of(section, who, folder):
    """What a section's block gives, run after the model was made and made ready."""
    blocks, names = migrating(), {}
    run(blocks["The model"]["all"], names, folder)
    run(blocks["The model"][who], names, folder)
    run(blocks[section][who], names, folder)
    return names["result"].detach()


CASES = [
    (section, who)
    for section, blocks in migrating().items()
    if section != "The model"
    for who in blocks
    if who != "here"
]


@pytest.mark.parametrize(
    ("section", "who"), CASES, ids=[f"{who}-{section}" for section, who in CASES]
)
@pytest.mark.filterwarnings("default")  # other libraries' own
def test_what_others_do_gives_the_same_result_here(section, who, tmp_path):
    if who in PACKAGES and importlib.util.find_spec(PACKAGES[who]) is None:
        pytest.skip(f"{who} is not installed")
    theirs, ours = result_of(section, who, tmp_path), result_of(section, "here", tmp_path)
    assert theirs.shape == ours.shape
    assert ours.abs().max() > 1e-3
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_no_edit_of_the_guide_is_without_effect(tmp_path):
    """Agreement would show nothing where nothing was changed."""
    blocks, names = migrating(), {}
    run(blocks["The model"]["all"], names, tmp_path)
    logits = names["model"](names["ids"]).logits
    for section in ("Ablate a head", "Forbid a query to see a key"):
        assert (result_of(section, "here", tmp_path) - logits).abs().max() > 1e-3


def test_each_section_shows_all_four_ways_but_for_the_one_that_cannot_be():
    ways = {"here", "TransformerLens", "nnsight", "raw hooks"}
    assert {
        section: ways - set(blocks) for section, blocks in migrating().items() if ways - set(blocks)
    } == {"Queries after rotation": {"raw hooks"}}


def test_everything_named_in_the_last_column_is_there():
    """The table's own column names real things."""
    from ropebridge import BridgedModel
    from ropebridge_spec import HOOK_BY_NAME

    rows = [
        line.split(" | ")
        for line in (DOCS / "MIGRATING.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and "---" not in line
    ]
    named = [name for row in rows[1:] for name in re.findall(r"`([^`]+)`", row[-1])]
    for name in named:
        word = re.match(r"(?:with )?(?:bridged\.)?(\w+)", name)[1]
        assert (
            hasattr(BridgedModel, word) or word in HOOK_BY_NAME or word in ("attach", "bwd_hooks")
        ), name
