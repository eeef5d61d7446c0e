"""Documents that are generated are fresh, and code that is shown runs."""

import ast
import doctest
import re
from pathlib import Path

import pytest

from ropebridge_spec import SPEC_VERSION, spec_hash
from ropebridge_spec.document import spec_document, with_hook_table

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md"))


def test_spec_md_is_what_the_contract_says():
    assert (ROOT / "SPEC.md").read_text(encoding="utf-8") == spec_document(), "stale: run make spec"


def test_the_readme_has_the_contracts_hook_table():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "hook_attn_scores" in text
    assert with_hook_table(text) == text, "stale: run make spec"


def test_the_readme_does_what_it_shows():
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted > 10
    assert result.failed == 0


def test_what_the_readme_shows_imports_what_it_uses():
    """Each snippet that is no session stands alone, but for the reader's own names."""
    import ropebridge

    snippets = [
        text
        for text in re.findall(
            r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
        )
        if ">>>" not in text
    ]
    assert snippets
    for snippet in snippets:
        nodes = list(ast.walk(ast.parse(snippet)))
        imported = {
            alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        used = {node.id for node in nodes if isinstance(node, ast.Name)}
        names = set(ropebridge.__all__)
        assert used & names == imported & names


def test_the_readme_shows_the_error_that_is_raised():
    """Its ContractError is the one a wrong replacement gets, to the letter."""
    import torch

    from ropebridge import ContractError, HookPoint
    from ropebridge_spec import HOOK_BY_NAME

    point = HookPoint(HOOK_BY_NAME["hook_rot_q"], "blocks.0.attn.hook_rot_q")
    point.add_hook(lambda tensor, hook: tensor.transpose(1, 2))
    with pytest.raises(ContractError) as raised:
        point(torch.zeros(2, 5, 8, 64))
    assert f"ContractError: {raised.value}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "document",
    DOCUMENTS,
    ids=lambda path: path.name,
)
def test_links_to_files_lead_somewhere(document):
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", document.read_text(encoding="utf-8"))
    assert not [link for link in links if not (document.parent / link).exists()]


def test_the_changelog_speaks_of_this_version_of_the_contract():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"spec {SPEC_VERSION}" in text
    assert spec_hash() in text


TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_target_that_is_named_exists(document):
    text = document.read_text(encoding="utf-8")
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.M)) <= TARGETS


def test_hooks_of_git_run_what_lint_runs():
    """ruff and its format before a commit, mypy before a push, each as it lies in .venv."""
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert [(hook["entry"].split()[0], hook.get("stages")) for hook in hooks] == [
        (".venv/bin/ruff", None),
        (".venv/bin/ruff", None),
        (".venv/bin/mypy", ["pre-push"]),
    ]
