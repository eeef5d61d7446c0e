"""The contract as data: its tables agree with each other, and `describe` reads live modules."""

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass, make_dataclass
from pathlib import Path

import pytest
import torch

from ropebridge_conformance.checks import CHECKS
from ropebridge_conformance.judging.clauses import IN_PLAY, NOT_ASKED, clauses_asked, clauses_told
from ropebridge_conformance.judging.judge import plan
from ropebridge_conformance.zoo.specimens import (
    CASE_BY_ID,
    CORE,
    COVER,
    attention_layer,
    specimen,
    tiny_model,
)
from ropebridge_spec import (
    CLAUSE_BY_ID,
    CLAUSES,
    FAMILIES,
    HOOK_BY_NAME,
    HOOKS,
    OPT_INS,
    RESERVED,
    Family,
    GateKind,
    LatentKind,
    Norm,
    NormKind,
    Rotary,
    RotaryKind,
    SelectorKind,
    SharedKind,
    TemperatureKind,
    UnsupportedAttention,
    Variant,
    axis_names,
    axis_sizes,
    bounds,
    describe,
    document,
    hook_order,
    shape_of,
    ungrouped,
)
from ropebridge_spec.fields import field_meanings

PARTS = (
    NormKind,
    RotaryKind,
    GateKind,
    LatentKind,
    SelectorKind,
    TemperatureKind,
    SharedKind,
)
PLAIN = Variant(
    d_model=60, heads=6, kv_heads=2, d_head=20, d_head_v=20, scale=0.25, rotary=Rotary("half", 20)
)


def names(variant, *opted_in):
    return [hook.name for hook in hook_order(variant, opted_in)]


def test_clause_ids_are_distinct():
    assert len(CLAUSE_BY_ID) == len(CLAUSES)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_a_hook_point_cites_clauses_that_exist_and_name_its_axes(hook):
    assert hook.value_clause in CLAUSE_BY_ID
    assert hook.value_clause.split("-")[0] == hook.axes_clause.split("-")[0]
    sizes = axis_sizes(PLAIN, batch=2, pos=5, key=7)
    assert all(part in sizes for part in re.findall(r"\w+", hook.axes))


def test_reserved_names_are_no_hook_points():
    assert not set(RESERVED) & set(HOOK_BY_NAME)


@pytest.fixture(scope="module")
def asked():
    """The clauses that the judge asks about, in a layer for every feature of the contract."""
    cases = [case.id for case in COVER]
    return set(clauses_asked(plan(cases, ("float32", "bfloat16"))))


@pytest.fixture(scope="module")
def marked():
    """The clauses that tests of the project's own are marked with."""
    nodes = [
        node
        for path in Path(__file__).parent.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    calls = [call for node in nodes for call in node.decorator_list if isinstance(call, ast.Call)]
    return {call.args[0].value for call in calls if ast.unparse(call.func) == "pytest.mark.clause"}


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.id)
def test_every_clause_is_asked_by_the_judge_or_marked_on_a_test(clause, asked, marked):
    """A clause that nobody would notice being broken is not one."""
    assert clause.id in asked | marked


def test_a_mark_is_for_what_the_judge_does_not_ask(asked, marked):
    """Those stand in a list, with the reason, which every report prints."""
    assert marked == {clause.id for clause in CLAUSES} - asked == set(NOT_ASKED)


def test_a_clause_beside_a_checks_own_is_asked_where_a_layer_brings_it_into_play():
    plain, clipped = (
        set(clauses_asked(plan([case], ("float32",)))) for case in ("llama", "olmo_0")
    )
    assert "CLIP-1" in clipped - plain
    assert set(IN_PLAY) <= {clause for check in CHECKS for clause in check.also}


def test_a_report_says_which_clauses_were_not_asked_about_and_why():
    every = [clause.id for clause in CLAUSES]
    assert clauses_told(every) == f"asked {len(every)} of {len(every)} clauses"
    rest = [id for id in every if id not in ("CFG-1", "ROT-3", "KV-2")]
    assert clauses_told(rest) == (
        f"asked {len(rest)} of {len(every)} clauses; not asked: ROT-3, KV-2 (no layer or call of"
        f" this run brings them into play); CFG-1 ({NOT_ASKED['CFG-1']})"
    )


def test_a_plain_layer_has_the_hooks_of_the_contract_in_order():
    assert names(PLAIN) == [
        *(
            "hook_in",
            "hook_q",
            "hook_k",
            "hook_v",
            "hook_cos",
            "hook_sin",
            "hook_rot_q",
            "hook_rot_k",
        ),
        *("hook_attn_scores", "hook_pattern", "hook_z", "hook_out"),
    ]


def test_a_layer_that_norms_has_the_hooks_of_the_norm_between_projection_and_tables():
    normed = names(
        Variant(60, 6, 2, 20, 20, 0.25, norm=Norm("rms", "head", 1e-6), rotary=Rotary("half", 20))
    )
    assert normed[3:7] == ["hook_v", "hook_q_normed", "hook_k_normed", "hook_cos"]


def test_a_layer_that_does_not_rotate_has_no_tables_and_still_rot_q():
    still = names(Variant(60, 6, 2, 20, 20, 0.25))
    assert "hook_cos" not in still
    assert "hook_rot_q" in still


@pytest.mark.parametrize("opt_in", OPT_INS)
def test_opted_in_hooks_exist_only_on_request(opt_in):
    assert set(names(PLAIN, opt_in)) - set(names(PLAIN)) == {
        hook.name for hook in HOOKS if hook.exists == opt_in
    }


def test_a_flat_norm_shows_heads_and_widths_as_one_axis():
    flat = Variant(60, 6, 2, 20, 20, 0.25, norm=Norm("rms", "flat", 1e-6))
    hook = next(hook for hook in hook_order(flat) if hook.name == "hook_k_normed")
    assert axis_names(hook.axes) == ("batch", "pos", "(kv_head d_head)")
    assert shape_of(hook, axis_sizes(flat, batch=2, pos=5, key=5)) == (2, 5, 40)


def test_one_input_a_head_gives_every_head_a_key_of_its_own():
    """SPLIT-3."""
    assert ungrouped(PLAIN, ("attn_in",)).kv_heads == 6
    assert ungrouped(PLAIN, ("attn_result",)) == PLAIN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "Variant.heads is 5; it must be a multiple of kv_heads, which is 2"),
        ({"d_model": 0}, "Variant.d_model is 0; it must be at least 1"),
        ({"window": 0}, "Variant.window is 0; it must be at least 1, or None for no window"),
        (
            {"rotary": Rotary("half", 22)},
            "Rotary.width is 22; it must be even and at most d_head, which is 20",
        ),
        (
            {"rotary": Rotary("half", 7)},
            "Rotary.width is 7; it must be even and at most d_head, which is 20",
        ),
    ],
    ids=["heads", "d_model", "window", "too_wide", "odd"],
)
def test_an_impossible_variant_is_refused(change, message):
    fields = {"d_model": 60, "heads": 6, "kv_heads": 2, "d_head": 20, "d_head_v": 20, "scale": 0.25}
    with pytest.raises(ValueError, match=re.escape(message)):
        Variant(**{**fields, **change})


@pytest.mark.parametrize("case", CORE, ids=lambda case: case.id)
def test_describe_reads_what_the_config_says(case):
    variant = specimen(case.id, torch.float32, "cpu").variant
    assert (variant.d_model, variant.heads, variant.kv_heads, variant.d_head, variant.d_head_v) == (
        60,
        6,
        2,
        20,
        20,
    )
    assert variant.window == (5 if case.id == "mistral" or case.id.endswith("_local") else None)
    assert variant.softcap == (2.0 if case.family == "gemma2" else None)
    assert variant.sinks == ("sinks" if case.family == "gpt_oss" else None)
    assert (variant.norm is not None) == (
        case.id in ("gemma3_local", "gemma3_global", "qwen3", "olmo2", "cohere_normed")
    )


def test_a_softcap_that_is_set_but_not_passed_on_is_not_described():
    """Gemma 3 keeps attn_logit_softcapping and never hands it to attention."""
    module = specimen("gemma3_global", torch.float32, "cpu").module
    assert module.attn_logit_softcapping == 2.0
    assert describe(module).softcap is None


def test_a_feature_its_family_does_not_know_is_refused():
    module = attention_layer(tiny_model(CASE_BY_ID["llama"]), 0)
    module.q_norm = torch.nn.Identity()
    with pytest.raises(
        UnsupportedAttention, match="LlamaAttention has 'q_norm', which its family does not have"
    ):
        describe(module)


def test_a_module_that_is_not_causal_is_described_so():
    module = attention_layer(tiny_model(CASE_BY_ID["llama"]), 0)
    module.is_causal = False
    assert describe(module).causal is False


def test_every_family_names_the_file_its_mathematics_was_read_from():
    import transformers

    root = Path(transformers.__file__).parent
    here = [
        root / family.source
        for family in FAMILIES.values()
        if (root / family.source).parent.exists()
    ]
    assert len(here) > 70, "an older transformers lacks some packages"
    assert all(path.exists() for path in here)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("terms", [20, 256, 2048])
def test_this_machine_sums_products_within_the_bound(dtype, terms):
    """The bounds trust float32 accumulation; a machine that rounds partial sums would show here
    first."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, terms, generator=generator).to(getattr(torch, dtype)) for _ in range(2))
    exact, magnitude = a.double() @ b.double().T, a.double().abs() @ b.double().abs().T
    error = (torch.nn.functional.linear(a, b).double() - exact).abs()
    assert (error <= bounds.linear(exact, magnitude, terms=terms, dtype=dtype)).all()


U = 2.0**-24


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (bounds.linear(1.0, 1.0, terms=4, dtype="float32"), U + (1 + U) * 6 * U / (1 - 6 * U)),
        (
            bounds.linear(1.0, 1.0, terms=4, dtype="float32", product=2.0),
            U + 2 * U * (1 + U) + (1 + U) * 6 * U / (1 - 6 * U),
        ),
        (bounds.rounded(3.0, times=2, dtype="float32"), 3 * (2 * U + U * U)),
        (bounds.rotate(1.0, 1.5, precision="input", dtype="float32"), (2 * U + U * U) * 1.5),
        (
            bounds.fused(1.0, 1.0, 0.0, keys=4, dtype="float32"),
            (28 * U / (1 - 28 * U) + 2 * U) * (1 + U) + U,
        ),
        (bounds.softmax(0.5, 0.0, keys=1, dtype="float32"), 0.5 * (11 * U + 10 * U * U)),
        (bounds.activation(1.0, 2.0, dtype="float32"), 15 * U + 14 * U * U),
    ],
    ids=["linear", "with_addition", "rounded", "rotate", "fused", "softmax", "activation"],
)
def test_the_bounds_serve_plain_numbers_and_are_the_formula(bound, expected):
    """Worked out by hand; the slack of the float64 oracle is far below."""
    assert bound == pytest.approx(expected, rel=1e-6)


# ---- the document and its hash ----


@pytest.mark.parametrize("kind", document.KINDS, ids=lambda kind: kind.__name__)
def test_the_document_says_what_every_field_is(kind):
    text = document.spec_document()
    for name, meaning in field_meanings(kind).items():
        assert meaning, name
        assert f"| `{name}` | {meaning.replace('|', chr(92) + '|')} |" in text


@pytest.mark.parametrize("kind", [Family, *PARTS], ids=lambda kind: kind.__name__)
def test_every_field_of_a_family_is_explained(kind):
    assert all(field_meanings(kind).values())


@dataclass(frozen=True)
class Silent:
    """A kind of thing.

    one: what it is, and
        how it goes on.
    two, three: what they are: both.
    """

    one: int
    two: int
    three: int
    four: int


def test_a_field_of_which_the_docstring_says_nothing_is_told():
    with pytest.raises(ValueError, match="docstring of Silent says nothing of four; each field"):
        field_meanings(Silent)


def test_entries_that_share_a_line_or_go_on_are_read_whole():
    made = make_dataclass("Three", [("one", int), ("two", int), ("three", int)])
    made.__doc__ = Silent.__doc__
    both = "what they are: both."
    assert field_meanings(made) == {
        "one": "what it is, and how it goes on.",
        "two": both,
        "three": both,
    }


def test_every_bound_of_a_clause_is_in_the_document():
    """GATE-1's was missing."""
    said = document.bound_table()
    for name in ("linear", "norm", "rotate", "scores", "softmax", "activation", "fused"):
        assert f"| `{name}` | Bound the error of clause" in said, name
    assert "`expm1`" not in said


def test_a_class_is_listed_with_what_it_computes():
    (line,) = (line for line in document.family_table().splitlines() if "`DeepseekV3Att" in line)
    assert "latent" in line


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setitem(bounds.UNIT, "float32", 2.0**-20),
        lambda patch: patch.setattr(bounds, "ORACLE", 2.0**-40),
        lambda patch: patch.setattr(document, "code_of", lambda function: "another"),
        lambda patch: patch.setattr(document, "HOOKS", document.HOOKS[1:]),
        lambda patch: patch.setattr(document, "CLAUSES", document.CLAUSES[1:]),
        lambda patch: patch.setattr(document, "ARGUMENTS", {}),
        lambda patch: patch.setattr(document, "KINDS", document.KINDS[1:]),
    ],
    ids=["unit", "oracle", "bound", "hook", "clause", "argument", "field"],
)
def test_no_part_of_the_contract_changes_under_the_same_hash(monkeypatch, change):
    before = document.spec_hash()
    change(monkeypatch)
    assert document.spec_hash() != before


def test_the_code_of_a_bound_is_hashed_and_not_its_words():
    def one(x):
        """Say one thing."""
        return x + 1  # a remark

    def two(x):
        return (
            x
            + 1
        )  # fmt: skip

    def three(x):
        return x + 2

    codes = [document.code_of(f).partition("(")[2] for f in (one, two, three)]
    assert codes[0] == codes[1] != codes[2]


def test_the_hash_is_the_same_in_every_process():
    code = "import ropebridge_spec; print(ropebridge_spec.spec_hash())"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert said == {f"{document.spec_hash()}\n"}
