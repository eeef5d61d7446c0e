"""The coverage page and the baseline it is made from: what transformers has, what is served, and
what changed since."""

from collections import Counter

import pytest
import torch
import transformers

from ropebridge_conformance import coverage
from ropebridge_conformance.installed import Found, classes_of, installed_classes
from ropebridge_conformance.zoo import CASES, specimen
from ropebridge_spec import FAMILIES

ATTENTION = '''
class {name}(nn.Module):
    """Words."""

    def forward(self, hidden_states, position_embeddings=None):
        {body}
'''
same_transformers = pytest.mark.skipif(
    transformers.__version__ != coverage.read_baseline()["transformers"],
    reason="the page speaks of another version of transformers",
)


@pytest.fixture(scope="module")
def installed():
    return list(installed_classes())


@same_transformers
def test_the_baseline_is_what_is_installed_and_what_the_table_serves(installed):
    known = {
        c["class"]: (c["file"], c["fingerprint"], c["status"], c["reason"])
        for c in coverage.read_baseline()["classes"]
    }
    assert known == {f.name: (f.file, f.fingerprint, f.status, f.reason) for f in installed}, (
        "stale: run ropebridge coverage"
    )


def test_the_page_is_what_the_baseline_says(pytestconfig):
    page = pytestconfig.rootpath / "docs" / "COVERAGE.md"
    assert page.read_text(encoding="utf-8") == coverage.page_of(coverage.read_baseline()), (
        "stale: run ropebridge coverage"
    )


def test_every_served_class_was_judged_in_every_dtype_and_passed():
    """The reference declares one gap, once for each kind of layer: it makes the pattern whether or
    not anybody watches (MEM-1)."""
    kinds = Counter(type(specimen(case.id, torch.float32, "cpu").module).__name__ for case in CASES)
    served = [c for c in coverage.read_baseline()["classes"] if c["status"] == "served"]
    assert {c["class"] for c in served} == set(FAMILIES)
    for entry in served:
        assert set(entry["verdicts"]) == {"float32", "bfloat16", "float16", "float64"}, entry[
            "class"
        ]
        for outcomes in entry["verdicts"].values():
            assert set(outcomes) <= {"pass", "unsupported"}, entry["class"]
            assert outcomes["pass"] > 0, entry["class"]
            assert outcomes.get("unsupported", 0) <= kinds[entry["class"]], entry["class"]


@same_transformers
def test_nothing_changed_since_the_baseline():
    assert coverage.changes() == []


def test_a_class_is_ours_if_its_forward_turns_by_the_tables_it_is_given(tmp_path):
    path = tmp_path / "models" / "new" / "modeling_new.py"
    path.parent.mkdir(parents=True)
    ours = ATTENTION.format(name="NewAttention", body="cos, sin = position_embeddings")
    others = ATTENTION.format(
        name="DetectorAttention", body="return hidden_states + position_embeddings"
    )
    path.write_text(
        ours
        + others
        + "\nclass PlainAttention:\n    def forward(self, x):\n        return rotary(x)\n",
        encoding="utf-8",
    )
    assert [(found.name, found.file) for found in classes_of(path, tmp_path)] == [
        ("NewAttention", "models/new/modeling_new.py")
    ]


def test_a_fingerprint_sees_code_and_not_words(tmp_path):
    def fingerprint(text):
        path = tmp_path / "modeling.py"
        path.write_text(text, encoding="utf-8")
        return next(classes_of(path, tmp_path)).fingerprint

    text = ATTENTION.format(name="NewAttention", body="cos, sin = position_embeddings")
    assert fingerprint(text) == fingerprint(
        text.replace("Words", "Other words").replace("= position", "=   position")
    )
    assert fingerprint(text) != fingerprint(text.replace("cos, sin", "sin, cos"))


@pytest.mark.parametrize(
    ("known", "what"),
    [
        (None, "unknown"),
        ({"fingerprint": "other"}, "changed, served"),
        ({"fingerprint": "same"}, None),
    ],
    ids=["unknown", "changed", "as_it_was"],
)
def test_a_change_is_told(known, what):
    change = coverage.change_of(
        Found("LlamaAttention", "models/llama/modeling_llama.py", "", "same"), known
    )
    assert (change and change.what) == what


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("LlamaAttention", "", ""),
        ("PixelVisionAttention", "", "a vision tower: bidirectional, over patches"),
        ("NewAttention", "self.experts.map(x)", "experts in place of a query projection"),
        ("NewAttention", "", "not described yet"),
    ],
)
def test_a_refused_class_says_why(name, source, reason):
    assert Found(name, "models/new/modeling_new.py", source, "").reason == reason
