"""The coverage page and the baseline it is made from: what transformers has, what is served, and
what changed since."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import transformers

from ropebridge_conformance import cli
from ropebridge_conformance.judging.ids import DTYPES
from ropebridge_conformance.judging.verdicts import Outcome, Verdict
from ropebridge_conformance.results import coverage
from ropebridge_conformance.results.installed import Found, classes_of, installed_classes
from ropebridge_conformance.subjects.reference import GAPS
from ropebridge_conformance.zoo.specimens import CASE_BY_ID, CASES
from ropebridge_spec import FAMILIES, spec_hash

pytestmark = pytest.mark.slow

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


FEW = ("arcee", "aria", "cohere", "gemma2", "mistral")
"""Packages of transformers, each with one attention class, of which all layers are its own."""


@pytest.fixture
def few_classes(monkeypatch):
    """Five classes and their layers in place of all, whose files take a quarter of a minute to
    read, and whose models as long to build."""
    root = Path(transformers.__file__).parent
    files = [root / "models" / name / f"modeling_{name}.py" for name in FEW]
    found = [each for file in files for each in classes_of(file, root)]
    monkeypatch.setattr(coverage, "installed_classes", lambda: found)
    monkeypatch.setattr(coverage, "CASES", [case for case in CASES if case.family in FEW])
    monkeypatch.setattr(coverage, "cases_by_class", cache(coverage.cases_by_class.__wrapped__))


@same_transformers
@pytest.mark.every
def test_the_baseline_is_what_is_installed_and_what_the_table_serves(installed):
    known = {
        c["class"]: (c["file"], c["fingerprint"], c["status"], c["reason"])
        for c in coverage.read_baseline()["classes"]
    }
    assert known == {f.name: (f.file, f.fingerprint, f.status, f.reason) for f in installed}, (
        "out of date: run make coverage"
    )


def test_every_verdict_is_of_this_contract():
    grounds = [c["grounds"] for c in coverage.read_baseline()["classes"] if c["grounds"]]
    assert {each["contract"] for each in grounds} == {spec_hash()}, "out of date: run make coverage"


@same_transformers
@pytest.mark.every
def test_no_verdict_is_out_of_date():
    """Judged again is a class whose row, recipe, source or contract changed, and no other."""
    assert coverage.stale() == {}, "out of date: run make coverage"


def test_the_pages_are_what_the_baseline_says(pytestconfig):
    baseline = coverage.read_baseline()
    page = (pytestconfig.rootpath / "docs" / "COVERAGE.md").read_text(encoding="utf-8")
    readme = (pytestconfig.rootpath / "README.md").read_text(encoding="utf-8")
    assert page == coverage.page_of(baseline), "out of date: run make coverage"
    assert coverage.COUNTS[0] in readme
    assert readme == coverage.with_counts(readme, baseline), "out of date: run make coverage"


def test_every_served_class_was_judged_in_every_dtype_and_passed():
    """The reference declares two gaps, each once for each kind of layer: it makes the pattern
    whether or not anybody watches it, or a part of it (MEM-1, MEM-2)."""
    served = [c for c in coverage.read_baseline()["classes"] if c["status"] == "served"]
    assert {c["class"] for c in served} == set(FAMILIES)
    for entry in served:
        assert set(entry["verdicts"]) == set(DTYPES), entry["class"]
        for outcomes in entry["verdicts"].values():
            assert set(outcomes) <= {"pass", "unsupported"}, entry["class"]
            assert outcomes["pass"] > 0, entry["class"]
            assert outcomes.get("unsupported", 0) <= len(GAPS) * entry["layers"], entry["class"]


# ---- what makes verdicts out of date ----

LLAMA = Found("LlamaAttention", "models/llama/modeling_llama.py", "", "source")
MISTRAL = Found("MistralAttention", "models/mistral/modeling_mistral.py", "", "source")
LAYERS = {"LlamaAttention": [CASE_BY_ID["llama"]], "MistralAttention": [CASE_BY_ID["mistral"]]}


@pytest.fixture
def known():
    """A baseline in which Mistral's layer was judged as Llama's."""
    return {
        "LlamaAttention": {"grounds": coverage.grounds_of(LLAMA, LAYERS["LlamaAttention"])},
        "MistralAttention": {
            "grounds": coverage.grounds_of(MISTRAL, LAYERS["MistralAttention"]),
            "like": ["LlamaAttention"],
        },
    }


def test_what_did_not_change_is_not_out_of_date(known):
    assert coverage.stale_classes(known, [LLAMA, MISTRAL], LAYERS) == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda patch: patch.setattr(
                coverage,
                "FAMILIES",
                {**FAMILIES, "MistralAttention": replace(FAMILIES["MistralAttention"], clip="c")},
            ),
            "its row changed",
        ),
        (
            lambda patch: patch.setattr(
                coverage,
                "RECIPE_BY_NAME",
                {
                    **coverage.RECIPE_BY_NAME,
                    "mistral": replace(coverage.RECIPE_BY_NAME["mistral"], layers=(0, 1)),
                },
            ),
            "its recipe changed",
        ),
    ],
    ids=["row", "recipe"],
)
def test_a_class_of_which_something_changed_is_out_of_date_alone(
    monkeypatch, known, change, reason
):
    change(monkeypatch)
    found = coverage.stale_classes(known, [LLAMA, MISTRAL], LAYERS)
    assert found == {"MistralAttention": reason}


def test_a_class_of_another_source_is_out_of_date_alone(known):
    found = coverage.stale_classes(known, [LLAMA, replace(MISTRAL, fingerprint="other")], LAYERS)
    assert found == {"MistralAttention": "its source changed"}


def test_another_contract_makes_all_out_of_date(monkeypatch, known):
    monkeypatch.setattr(coverage, "spec_hash", lambda: "another")
    found = coverage.stale_classes(known, [LLAMA, MISTRAL], LAYERS)
    assert found == dict.fromkeys(LAYERS, "its contract changed")


def test_a_class_that_another_stood_for_goes_with_it(known):
    found = coverage.stale_classes(known, [replace(LLAMA, fingerprint="other"), MISTRAL], LAYERS)
    assert found == {
        "LlamaAttention": "its source changed",
        "MistralAttention": "LlamaAttention is, and its layers were judged as that one's",
    }


def test_a_class_without_verdicts_was_never_judged(known):
    del known["MistralAttention"]
    found = coverage.stale_classes(known, [LLAMA, MISTRAL], LAYERS)
    assert found == {"MistralAttention": "it was never judged"}


@pytest.mark.usefixtures("few_classes")
def test_all_layers_of_a_class_are_judged_with_one_of_them():
    assert coverage.cases_to_judge(["gemma2_local"], ()) == ("gemma2_local", "gemma2_global")
    assert coverage.cases_to_judge([], ["CohereAttention"]) == ("cohere_normed", "cohere_plain")
    assert coverage.cases_to_judge([], []) == ()


# ---- putting results into the baseline ----


def verdicts_on(*cases, dtypes=DTYPES):
    return [
        Verdict("s", "ROT-1", "c", "hook_rot_q", "f", case, d, "cpu", Outcome.PASS)
        for case in cases
        for d in dtypes
    ]


@pytest.mark.usefixtures("few_classes")
def test_verdicts_are_put_in_place_of_those_of_their_class_alone():
    before = coverage.read_baseline()
    after = coverage.merged(before, verdicts_on("gemma2_local", "gemma2_global"))
    old, new = ({c["class"]: c for c in made["classes"]} for made in (before, after))
    assert new["Gemma2Attention"]["verdicts"] == {dtype: {"pass": 2} for dtype in DTYPES}
    assert new["CohereAttention"]["verdicts"] == old["CohereAttention"]["verdicts"]
    assert new["CohereAttention"]["grounds"] == old["CohereAttention"]["grounds"]


@pytest.mark.usefixtures("few_classes")
def test_a_class_that_was_judged_in_part_is_refused():
    with pytest.raises(
        coverage.CoverageError,
        match=r"^Gemma2Attention was judged in part: gemma2_global in bfloat16, .* is missing\n"
        r"  judge it whole: make coverage FAMILIES=gemma2$",
    ):
        coverage.merged(coverage.read_baseline(), verdicts_on("gemma2_local"))


@pytest.mark.usefixtures("few_classes")
def test_classes_that_stood_for_others_are_named():
    """Of Arcee and Aria, layers of one description, the first is asked everything."""
    assert coverage.classes_alike(["arcee_0", "aria_0"]) == {
        "AriaTextAttention": ["ArceeAttention"]
    }
    assert coverage.classes_alike(["gemma2_local", "gemma2_global"]) == {}


@pytest.mark.usefixtures("few_classes")
def test_the_command_judges_what_is_out_of_date_and_nothing_else(ropebridge, monkeypatch, tmp_path):
    """With a baseline of its own, in which one class was never judged."""
    baseline = coverage.read_baseline()
    for entry in baseline["classes"]:
        if entry["class"] == "CohereAttention":
            entry["grounds"], entry["verdicts"] = {}, {}
    path = tmp_path / "coverage.json"
    path.write_text(json.dumps(baseline), encoding="utf-8")
    monkeypatch.setattr(coverage, "BASELINE", path)
    monkeypatch.setattr(cli, "DEFAULT_SUBJECTS", ("ropebridge.subject:Factory",))
    asked = []
    monkeypatch.setattr(cli, "judge_all", lambda run, results: asked.append(run) or 1)
    done = ropebridge("coverage", "--page", "page.md")
    assert done.exit_code == 1
    assert "CohereAttention is out of date: it was never judged" in done.stdout
    assert asked[0].selection.families == ("cohere_normed", "cohere_plain")


@pytest.mark.usefixtures("few_classes")
def test_the_command_says_so_where_nothing_is_out_of_date(ropebridge, monkeypatch, tmp_path):
    path = tmp_path / "coverage.json"
    path.write_text(json.dumps(coverage.read_baseline()), encoding="utf-8")
    monkeypatch.setattr(coverage, "BASELINE", path)
    done = ropebridge("coverage", "--page", "page.md")
    assert done.exit_code == 0, done.stderr
    assert "nothing is out of date" in done.stdout
    assert (tmp_path / "page.md").read_text(encoding="utf-8").startswith("# Coverage")


@same_transformers
@pytest.mark.every
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
