"""Whole models of every family, greedily: with the bridge they write, token for token, what they
write alone; padded, watched, from their own cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor

from few import FAMILIES, few
from ropebridge import attach
from ropebridge_conformance.zoo.builder import build_model, extra_of, inputs_of
from ropebridge_conformance.zoo.recipes import INSTALLED, RECIPE_BY_NAME
from ropebridge_conformance.zoo.specimens import randomise

pytestmark = pytest.mark.slow

PROMPT, NEW, LEFT_PADDING = 7, 12, 3
WRITERS = [
    recipe.name
    for recipe in INSTALLED
    if recipe.decodes
    and recipe.inputs == "ids"
    and recipe.model_class.endswith(("CausalLM", "Generation"))
]
LEAKING = {
    "blt": "its patches mix the states of padding into those of real tokens",
    "minimax_m3": "its selector of blocks is not told of padding, and compares its keys",
}
"""Models that read padding alone too, and why: what they write depends on rows that see nothing,
which are 0 in the contract (MASK-6)."""
if Version(transformers.__version__) < Version("5.20"):
    LEAKING["phimoe"] = (
        "where a text grows past its original length its model drops the cache, and masks a padded"
        " row whole"
    )
every_writer = pytest.mark.parametrize("writer", few(FAMILIES, WRITERS))


def tiny(name: str) -> Any:
    model = build_model(name)
    randomise(model)
    return model


def prompt_of(name: str, model: Any, padding: int, token: int = 0) -> dict[str, Tensor]:
    """Two prompts, the second of which is padded on the left with a token."""
    # (batch, pos), or (batch, pos, codebook)
    ids = inputs_of(name, model.config, pos=PROMPT)["input_ids"]
    mask = torch.ones(2, PROMPT, dtype=torch.long)
    mask[1, :padding] = 0
    ids[1, :padding] = token
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def written(name: str, model: Any, token: int = 0) -> Tensor:
    """(batch, prompt + new): what the model writes."""
    prompt = prompt_of(name, model, 0 if name in LEAKING and token == 0 else LEFT_PADDING, token)
    tokens: Tensor = model.generate(
        **prompt, **extra_of(name), max_new_tokens=NEW, do_sample=False, eos_token_id=None
    )
    return tokens


@every_writer
def test_a_model_writes_what_it_writes_alone_watched_or_not(writer: str) -> None:
    """Longer than the window, past a padded prompt; every hook of every layer fires in every
    step."""
    model = tiny(writer)
    alone = written(writer, model)
    fired: set[str] = set()
    with attach(model) as bridged:
        assert torch.equal(written(writer, model), alone)
        names = [name for name in bridged.hook_points if not name.endswith("hook_kv_in")]
        with bridged.hooks([(name, lambda tensor, hook: fired.add(hook.name)) for name in names]):
            assert torch.equal(written(writer, model), alone)
    assert fired == set(names)
    assert torch.equal(written(writer, model), alone)


@pytest.mark.parametrize("name", [name for name in LEAKING if name != "phimoe"])
def test_a_model_that_is_asked_without_padding_reads_padding_alone_too(name: str) -> None:
    """Without the bridge, what stands in the padding changes what follows the real tokens."""
    model = tiny(name)
    assert not torch.equal(written(name, model, 5)[1, PROMPT:], written(name, model, 9)[1, PROMPT:])


def test_an_edit_is_read_by_every_later_step() -> None:
    """Generation is not blind to hooks: zeroed values change what is written."""
    model = tiny("llama")
    alone = written("llama", model)
    with (
        attach(model) as bridged,
        bridged.hooks([("blocks.1.attn.hook_v", lambda tensor, hook: tensor * 0)]),
    ):
        assert not torch.equal(written("llama", model), alone)


@pytest.mark.parametrize("implementation", ["static", "dynamic"])
def test_a_static_cache_gives_the_same_tokens(implementation: str) -> None:
    model = tiny("gemma3")
    model.generation_config.cache_implementation = implementation
    alone = written("gemma3", model)
    with attach(model):
        assert torch.equal(written("gemma3", model), alone)


@pytest.mark.skipif(
    "qwen3_5" not in RECIPE_BY_NAME or not RECIPE_BY_NAME["qwen3_5"].installed,
    reason="this transformers has no Qwen 3.5",
)
def test_a_model_whose_config_leaves_out_its_rotary_sections_is_attached_to() -> None:
    """The rotary module has sections of its own then, and wants three rows of positions."""
    model = build_model(
        "qwen3_5",
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
        head_dim=64,
    )
    randomise(model)
    alone = written("qwen3_5", model)
    with attach(model):
        assert torch.equal(written("qwen3_5", model), alone)


def test_every_family_that_writes_is_asked_somewhere() -> None:
    assert len(WRITERS) > 100
    assert {"llama", "gemma3", "gpt_oss", "deepseek_v3", "gpt_neox", "qwen3_5"} <= set(WRITERS)
