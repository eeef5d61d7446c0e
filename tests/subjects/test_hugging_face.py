"""Hugging Face's eager attention as a subject: what fails is what is said to fail, and what is
wrong behind it is found."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import ropebridge_conformance.subjects
from few import few
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.judge import judge, plan
from ropebridge_conformance.judging.known_failures import read_known_failures
from ropebridge_conformance.judging.verdicts import BAD, Outcome
from ropebridge_conformance.subjects.hugging_face import Factory, SeenLayer
from ropebridge_conformance.subjects.loading import load_subject
from ropebridge_conformance.zoo.specimens import specimen
from ropebridge_spec import UnsupportedAttention

pytestmark = pytest.mark.slow

KNOWN = read_known_failures(
    Path(ropebridge_conformance.subjects.__file__).with_name("hugging_face.toml")
)
VALUES = "a_stage_gives_the_value_of_its_clause"


def test_it_is_loaded_by_its_path():
    assert (
        load_subject("ropebridge_conformance.subjects.hugging_face:Factory").name == "hugging_face"
    )


@pytest.mark.parametrize(
    ("case", "dtype"),
    few(
        [("gpt_oss_global", "bfloat16")],
        [("llama", "float32"), ("gemma3_local", "float32"), ("gpt_oss_global", "bfloat16")],
    ),
)
def test_nothing_fails_that_is_not_known_to(case, dtype):
    bench = Bench(Factory())
    verdicts = [judge(bench, question, KNOWN) for question in plan([case], (dtype,))]
    assert [v for v in verdicts if v.outcome in BAD] == []
    assert {Outcome.PASS, Outcome.KNOWN_FAILURE, Outcome.UNSUPPORTED} == {
        v.outcome for v in verdicts
    }


def double(name):
    def spoil(module):
        target = module.get_submodule(name)
        with torch.no_grad():
            target.weight.mul_(1.25)

    return spoil


def scale_wrongly(module):
    module.scaling *= 1.25


@pytest.mark.parametrize(
    ("spoil", "stage"),
    [
        (double("q_proj"), "hook_q"),
        (double("k_proj"), "hook_k"),
        (double("v_proj"), "hook_v"),
        (double("q_norm"), "hook_q_normed"),
        (double("k_norm"), "hook_k_normed"),
        (scale_wrongly, "hook_attn_scores"),
        (double("o_proj"), "hook_out"),
    ],
)
def test_what_is_wrong_behind_the_adapter_is_named_at_its_stage(spoil, stage):
    bench = Bench(Spoiled(spoil))
    asked = [
        question
        for question in plan(["qwen3"], ("float32",))
        if question.check == VALUES and question.scenario == "prefill"
    ]
    verdicts = [judge(bench, question) for question in asked]
    assert [v.hook for v in verdicts if v.outcome in BAD] == [stage]


class Spoiled:
    """The adapter around a module with a fault."""

    name, unsupported = "spoiled", {}

    def __init__(self, spoil):
        self.spoil, self.of = spoil, Factory()

    def layer(self, module, *, rotary, opted_in=()):
        layer = self.of.layer(module, rotary=rotary, opted_in=opted_in)
        self.spoil(layer.module)
        return layer


def test_the_module_that_is_judged_is_left_as_it_was():
    layer = specimen("qwen3", torch.float32, "cpu")
    SeenLayer(layer.module)
    assert layer.module.config._attn_implementation == "eager"
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in layer.module.modules()
    )


def test_hooks_are_gone_after_a_call():
    layer = specimen("qwen3", torch.float32, "cpu")
    seen = SeenLayer(layer.module)
    x = torch.randn(1, 3, 60)
    given = {
        "hidden_states": x,
        "position_embeddings": layer.rotary(x, torch.arange(3)[None]),
        "attention_mask": None,
    }
    fired = []
    seen.run(given, [("hook_z", lambda value, hook: fired.append(hook.name))])
    seen.run(given)
    assert fired == ["blocks.0.attn.hook_z"]
    assert not any(module._forward_hooks for module in seen.module.modules())


@pytest.mark.parametrize(
    "case", ["phi3_0", "nanochat_0", "deepseek_v2_0"], ids=["fused", "normed_late", "latent"]
)
def test_a_class_whose_modules_do_not_show_the_stages_is_refused(case):
    with pytest.raises(
        UnsupportedAttention,
        match=(
            "does more than project, norm and rotate; this subject serves classes whose modules"
            " show each stage"
        ),
    ):
        Factory().layer(specimen(case, torch.float32, "cpu").module, rotary=nn.Identity())


def test_the_pattern_is_what_softmax_gave_in_training_too():
    """Weights that a class returns in training are after dropout; the hook's are before."""
    layer = SeenLayer(specimen("llama", torch.float32, "cpu").module)
    layer.module.train()
    layer.module.attention_dropout = 0.5
    x = torch.randn(1, 9, 60)
    seen = SimpleNamespace()
    _, weights = layer.run(
        {
            "hidden_states": x,
            "position_embeddings": (torch.ones(1, 9, 20), torch.zeros(1, 9, 20)),
            "attention_mask": None,
        },
        [("hook_pattern", lambda value, hook: setattr(seen, "pattern", value.clone()))],
    )
    assert torch.allclose(seen.pattern.sum(-1), torch.ones(1, 6, 9))
    assert not torch.equal(weights, seen.pattern)
