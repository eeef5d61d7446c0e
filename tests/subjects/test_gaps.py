"""A subject that lacks a hook point: declared, nothing fails for it; not declared, what fails names
that hook point and no other.

`make fairness` tries every hook point, `make test` one.
"""

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from few import few
from ropebridge_conformance.cli import app
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.judge import judge, plan
from ropebridge_conformance.judging.verdicts import BAD, Outcome
from ropebridge_conformance.mutants.catalogue import MUTANT_BY_NAME
from ropebridge_conformance.results.files import read_results
from ropebridge_conformance.subjects.loading import SubjectError, load_subject
from ropebridge_conformance.subjects.parts import name_of
from ropebridge_conformance.subjects.reference import GAPS, Factory
from ropebridge_conformance.zoo.specimens import specimen
from ropebridge_spec import HOOKS

EVERY = {
    "gemma3_local": (
        *("hook_in", "hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "hook_q"),
        *("hook_k", "hook_v", "hook_q_normed", "hook_k_normed", "hook_cos", "hook_sin"),
        *("hook_rot_q", "hook_rot_k", "hook_attn_scores", "hook_pattern", "hook_z", "hook_result"),
        "hook_out",
    ),
    "qwen3_next_1": ("hook_q_gate", "hook_gate"),
    "mistral4_0": ("hook_q_latent", "hook_kv_latent"),
    "gemma4_1": ("hook_v_normed",),
    "muse_glimmer_assistant_0": ("hook_kv_in",),
    "roformer_0": ("hook_rot_v",),
}
PAIRS = few(
    [("gemma3_local", "hook_k")], [(case, hook) for case, hooks in EVERY.items() for hook in hooks]
)
GRADIENTS = "the_gradient_at_a_hook_is_the_derivative"
CALLS = ("prefill", "decode", "split", "attn_in", "padding")


class Lacking:
    """The reference, or a mutant of it, of whose hooks one is never called."""

    def __init__(self, hook, unsupported, inner=Factory()):  # noqa: B008 (a frozen record)
        self.name, self.hook, self.unsupported = "lacking", hook, {**GAPS, **unsupported}
        self.inner = inner

    def layer(self, module, *, rotary, opted_in=()):
        layer = self.inner.layer(module, rotary=rotary, opted_in=opted_in)
        return LackingLayer(layer, self.hook)


class LackingLayer:
    def __init__(self, layer, hook):
        self.layer, self.hook = layer, hook

    def run(self, inputs, hooks=(), backward_hooks=()):
        return self.layer.run(inputs, self.kept(hooks), self.kept(backward_hooks))

    def kept(self, hooks):
        lacking = self.hook in self.layer.points
        return [(wanted, fn) for wanted, fn in hooks if not lacking or name_of(wanted) != self.hook]


def verdicts_on(subject, case):
    torch.set_num_threads(1)
    bench = Bench(subject)
    questions = plan((case,), ("float32",), ("cpu",))
    return [judge(bench, q) for q in questions if q.scenario in CALLS]


def test_every_hook_point_is_tried_once():
    tried = [hook for hooks in EVERY.values() for hook in hooks]
    assert sorted(tried) == sorted(hook.name for hook in HOOKS)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "hook"), PAIRS)
def test_nothing_fails_for_a_declared_gap(case, hook):
    verdicts = verdicts_on(Lacking(hook, {hook: "not built"}), case)
    assert not [(v.id, v.reason) for v in verdicts if v.outcome in BAD]
    gone = [v for v in verdicts if v.outcome == Outcome.UNSUPPORTED]
    assert {hook} <= {v.hook for v in gone}
    unasked = [v for v in verdicts if v.outcome == Outcome.NOT_EXERCISED]
    assert len(unasked) < len(verdicts) / 20
    assert all(hook in v.reason for v in unasked)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "hook"), PAIRS)
@pytest.mark.every
def test_a_gap_that_is_not_declared_fails_at_that_hook_alone(case, hook):
    verdicts = verdicts_on(Lacking(hook, {}), case)
    bad = [v for v in verdicts if v.outcome in BAD]
    assert bad
    assert {(v.outcome, v.divergent) for v in bad} == {(Outcome.FAIL, hook)}


@pytest.mark.parametrize("hook", ["hook_in", "hook_cos"])
def test_gradients_are_judged_where_what_is_given_is_not_shown(hook):
    """What the layer is given is known; so are the derivatives of what it makes of that."""
    subject = Lacking(hook, {hook: "not built"})
    wrong = Lacking(hook, {hook: "not built"}, MUTANT_BY_NAME["unscaled_backwards"].subject())
    for judged, outcome in ((subject, Outcome.PASS), (wrong, Outcome.FAIL)):
        questions = plan(("llama",), ("float32",), ("cpu",))
        (q,) = (q for q in questions if q.check == GRADIENTS and q.scenario == "prefill")
        assert judge(Bench(judged), q).outcome == outcome


def test_a_gap_may_depend_on_the_layer():
    """A reason may be a function of the module: here layers with a window lack a hook."""

    def why(module):
        return "no windows" if getattr(module, "sliding_window", None) else ""

    subject = Lacking("hook_nowhere", {"hook_z": why})
    local, everywhere = (
        [v.outcome for v in verdicts_on_z(subject, case)] for case in ("gemma3_local", "llama")
    )
    assert set(local) == {Outcome.UNSUPPORTED}
    assert set(everywhere) == {Outcome.PASS}


def test_a_family_may_be_declined():
    subject = Lacking("hook_nowhere", {"gemma3": "not yet"})
    (first, *_) = verdicts_on_z(subject, "gemma3_local")
    assert (first.outcome, first.reason) == (Outcome.UNSUPPORTED, "not yet")
    assert verdicts_on_z(subject, "llama")[0].outcome == Outcome.PASS


def verdicts_on_z(subject, case):
    check = "a_stage_gives_the_value_of_its_clause"
    questions = plan((case,), ("float32",), ("cpu",))
    chosen = [q for q in questions if (q.check, q.hook, q.scenario) == (check, "hook_z", "prefill")]
    return [judge(Bench(subject), q) for q in chosen]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"unsupported": {"hook_patern": "typo"}},
            "unsupported has 'hook_patern', which is no hook point, clause, check, opt-in, family,"
            " case or scenario\n  nearest: hook_pattern",
        ),
        (
            {"conventions": {"masked_scores": "nan"}},
            "conventions has 'masked_scores': 'nan'\n  the contract allows masked_scores: lowest",
        ),
        ({"conventions": {"rows": "first"}}, "conventions has 'rows': 'first'"),
    ],
)
def test_a_gap_or_convention_that_nobody_knows_is_refused(given, words, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    fields = {"name": "s", "unsupported": {}, **given}
    body = "\n".join(f"    {name} = {value!r}" for name, value in fields.items())
    (tmp_path / f"odd{abs(hash(words))}.py").write_text(
        f"class Factory:\n{body}\n    def layer(self, *a, **k): ...\n"
    )
    with pytest.raises(SubjectError) as caught:
        load_subject(f"odd{abs(hash(words))}:Factory")
    assert words in str(caught.value)


def lowest_scores(name, value, hooks):
    from ropebridge_conformance.subjects.reference import show

    if name != "hook_attn_scores" or not hooks:
        return show(name, value, hooks)
    forbidden, lowest = value == -torch.inf, torch.finfo(value.dtype).min
    left = show(name, value.masked_fill(forbidden, lowest), hooks)
    return left.masked_fill(left <= lowest / 2, -torch.inf)


CONVENTION_CHECKS = (
    *("a_stage_gives_the_value_of_its_clause", "the_mask_is_the_whole_truth"),
    *("a_replacement_is_what_the_rest_of_the_layer_sees", "a_row_that_sees_no_key_is_zero"),
    "the_gradient_at_a_hook_is_the_derivative",
)


@pytest.mark.parametrize("declared", [True, False])
def test_masked_scores_that_are_the_lowest_number_may_be_declared(declared):
    subject = replace(Factory(), name="lowest", show=lowest_scores)
    if declared:
        object.__setattr__(subject, "conventions", {"masked_scores": "lowest"})
    bench = Bench(subject)
    verdicts = [
        judge(bench, q)
        for q in plan(("gpt_oss_local",), ("float32",), ("cpu",))
        if q.check in CONVENTION_CHECKS and q.scenario in ("prefill", "left_padding", "free")
    ]
    bad = [v for v in verdicts if v.outcome in BAD]
    assert bool(bad) is not declared, [(v.id, v.reason) for v in bad]
    assert {v.follows or v.divergent for v in bad} <= {"hook_attn_scores"}


@pytest.mark.slow
def test_a_run_says_what_a_subject_declares_to_do_otherwise(monkeypatch, tmp_path):
    """In the header of its results, and at the end."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "declares.py").write_text(
        "from ropebridge_conformance.subjects.reference import Factory as Reference\n\n\n"
        "def Factory():\n    made = Reference()\n"
        "    object.__setattr__(made, 'conventions', {'masked_scores': 'lowest'})\n"
        "    return made\n"
    )
    narrow = ("--family=llama", "--dtype=float32", "--check=looking_changes_nothing")
    done = CliRunner().invoke(app, ["check", "declares:Factory", *narrow, "--results=r.jsonl"])
    assert "reference declares, and is judged by: masked_scores lowest" in done.stdout
    provenance, _ = read_results(tmp_path / "r.jsonl")
    assert provenance["conventions"] == {"reference": {"masked_scores": "lowest"}}


@pytest.mark.parametrize("case", ["gemma3_global", "t5gemma_0", "deepseek_v2_0"])
def test_a_subject_may_ask_for_the_model_that_a_module_came_from(case):
    """Also of families whose layers are of no causal language model; it runs, and is its own."""
    given = []

    class Wrapping(Lacking):
        def layer(self, module, *, rotary, opted_in=(), model=None):
            given.append((module, model))
            return super().layer(module, rotary=rotary, opted_in=opted_in)

    bench = Bench(Wrapping("hook_nowhere", {}))
    own = specimen(case, torch.bfloat16, "cpu")
    bench.build(own, ())
    ((module, model),) = given
    assert any(part is module for part in model.modules())
    assert next(module.parameters()).dtype == torch.bfloat16
    other = specimen(case, torch.bfloat16, "cpu").model()
    assert other is not model
