"""Every served family, whole: the tiny model with the bridge gives what it gives alone (PAR-1)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from few import FAMILIES as FEW
from few import few
from ropebridge import attach
from ropebridge.versions import sdpa_refuses_softcaps
from ropebridge_conformance.zoo.builder import build_model, cache_name, extra_of, inputs_of
from ropebridge_conformance.zoo.recipes import INSTALLED
from ropebridge_conformance.zoo.specimens import attention_layer, randomise
from ropebridge_spec import (
    FAMILIES,
    ContractError,
    Family,
    RopebridgeError,
    UnsupportedAttention,
    VerificationError,
)

pytestmark = pytest.mark.slow

STEPS, LEFT_PADDING = 8, 3
every_recipe = pytest.mark.parametrize("name", few(FEW, [recipe.name for recipe in INSTALLED]))
every_decoder = pytest.mark.parametrize(
    "name", few(FEW, [recipe.name for recipe in INSTALLED if recipe.decodes])
)


def tiny(name: str, attn: str = "eager") -> Any:
    model = build_model(name, attn)
    randomise(model)
    return model


def runner(name: str, model: Any) -> Any:
    """Call a model with what it is always given."""
    return partial(model, **extra_of(name))


def final(output: Any) -> Tensor:
    """The logits of a language model, the last hidden states of one that has none."""
    return output.logits if hasattr(output, "logits") else output[0]


def cut(inputs: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    return {name: value[:, start:stop] for name, value in inputs.items()}


@torch.no_grad()
def decoded(run: Any, model: Any, inputs: dict[str, Any]) -> Tensor:
    """The last positions one by one, after a prefill, from the model's own cache."""
    pos, name = next(iter(inputs.values())).shape[1], cache_name(model)
    done = run(**cut(inputs, 0, pos - STEPS), use_cache=True)
    outputs = [final(done)]
    for at in range(pos - STEPS, pos):
        done = run(**cut(inputs, at, at + 1), **{name: getattr(done, name)}, use_cache=True)
        outputs.append(final(done))
    return torch.cat(outputs, 1)


def agree(got: Tensor, wanted: Tensor, rows: Tensor | None = None) -> None:
    got, wanted = (got, wanted) if rows is None else (got[rows], wanted[rows])
    assert float((got - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def is_as_near(name: str, got: Tensor, wanted: Tensor) -> None:
    """What a bridged model gave agrees with what it gives alone; where the model amplifies rounding
    beyond that, as Zamba 2 does, it is no further from a float64 run."""
    if float((got - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max()):
        return
    model = tiny(name).double()
    inputs = inputs_of(name, model.config)
    wide = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    exact = final(runner(name, model)(**wide))
    assert float((got - exact).abs().max()) <= float((wanted - exact).abs().max())


@every_recipe
@torch.no_grad()
def test_the_model_gives_what_it_gives_alone(name: str) -> None:
    """Each distinct layer is proved on the way, too."""
    model = tiny(name)
    inputs = inputs_of(name, model.config)
    run = runner(name, model)
    wanted = final(run(**inputs))
    with attach(model) as bridged:
        is_as_near(name, final(run(**inputs)), wanted)
        with bridged.caching() as cache:
            output = bridged.run_with_hooks(**inputs, model_kwargs=extra_of(name))
        is_as_near(name, final(output), wanted)
    assert len(cache) == len(bridged.hook_points) > 0
    assert torch.equal(final(run(**inputs)), wanted)


@every_decoder
@torch.no_grad()
def test_steps_from_the_cache_give_what_they_give_alone(name: str) -> None:
    model = tiny(name)
    inputs, run = inputs_of(name, model.config), runner(name, model)
    later = decoded(run, model, inputs)
    with attach(model, verify=False):
        agree(decoded(run, model, inputs), later)


@pytest.mark.parametrize("name", [recipe.name for recipe in INSTALLED if recipe.inputs == "pair"])
@torch.no_grad()
def test_an_encoder_decoder_writes_what_it_writes_alone(name: str) -> None:
    """Step by step from caches of both sequences; what is read of the encoder is made once
    (KV-2)."""
    model = tiny(name)
    run = {
        "input_ids": inputs_of(name, model.config)["input_ids"],
        "max_new_tokens": 8,
        "do_sample": False,
        "eos_token_id": None,
        "decoder_start_token_id": 1,
    }
    alone = model.generate(**run, output_logits=True, return_dict_in_generate=True)
    with attach(model, verify=False):
        again = model.generate(**run, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(again.sequences, alone.sequences)
    agree(torch.cat(again.logits), torch.cat(alone.logits))


@every_recipe
@torch.no_grad()
def test_the_model_gives_what_it_gives_alone_under_left_padding(name: str) -> None:
    model = tiny(name)
    if model._supports_sdpa:
        model.set_attn_implementation("sdpa")
    run = runner(name, model)
    inputs = inputs_of(name, model.config, pos=13)
    # a block that comes after the padded states
    drafted = inputs["noise_embeds"].shape[1] if "noise_embeds" in inputs else 0
    padding = torch.ones(2, 13 + drafted, dtype=torch.long)
    padding[1, :LEFT_PADDING] = 0
    wanted = final(run(**inputs, attention_mask=padding))
    with attach(model, verify=False):
        agree(
            final(run(**inputs, attention_mask=padding)),
            wanted,
            padding[:, -wanted.shape[1] :].bool(),
        )


MADE_ENCODERS = (
    *("llama", "gemma3n", "llama4", "exaone4", "phi3", "falcon", "deepseek_v3", "doge"),
    *("minimax_m3", "nemotron", "stablelm", "higgs_audio_v2", "roformer", "gpt_neox_japanese"),
)
"""With windows, chunks, shared keys, latents and biases; and those whose classes do something else
under `config.is_causal = False`, or cannot know of it."""


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MADE_ENCODERS)
@torch.no_grad()
def test_a_decoder_that_its_config_makes_an_encoder_gives_what_it_gives_alone_or_is_refused(
    name: str, attn: str
) -> None:
    model = tiny(name)
    if attn == "sdpa" and not model._supports_sdpa:
        pytest.skip("its model refuses sdpa")
    if attn == "sdpa":
        model.set_attn_implementation("sdpa")
    inputs, run = inputs_of(name, model.config), runner(name, model)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config.is_causal = False
    wanted = final(run(**inputs))
    try:
        with attach(model):
            agree(final(run(**inputs)), wanted)
    except RopebridgeError:
        assert (name, attn) in REFUSED


REFUSED = {
    *((name, "sdpa") for name in ("nemotron", "stablelm", "higgs_audio_v2")),
    *((name, attn) for name in ("minimax_m3", "gpt_neox_japanese") for attn in ("eager", "sdpa")),
    ("roformer", "eager"),
}


@pytest.mark.parametrize("name", ["gemma2", "vaultgemma"])
@torch.no_grad()
def test_a_softcap_that_sdpa_leaves_out_is_left_out(name: str) -> None:
    """Until transformers 5.20 these models could be run by sdpa, which caps nothing; since then it
    raises. A bridge does what the model does."""
    model = tiny(name)
    inputs = inputs_of(name, model.config)
    capped = final(model(**inputs))
    model.config._attn_implementation = "sdpa"
    if sdpa_refuses_softcaps():
        with pytest.raises(ValueError, match="does not support `softcap`"):
            model(**inputs)
        with (
            attach(model),
            pytest.raises(
                ContractError,
                match=(
                    r"caps its scores \(SCORE-1\), and its model attends by sdpa, which refuses"
                    r" that; call"
                ),
            ),
        ):
            model(**inputs)
        return
    wanted = final(model(**inputs))
    assert float((wanted - capped).abs().max()) > 0.1
    with attach(model) as bridged:
        agree(final(model(**inputs)), wanted)
        agree(final(bridged.run_with_cache(**inputs)[0]), wanted)
        model.config._attn_implementation = "eager"
        agree(final(model(**inputs)), capped)


@torch.no_grad()
def test_a_query_sees_the_keys_of_the_largest_bias_alone() -> None:
    """SCORE-5: with more keys than the family keeps, prefill and steps are those of the model
    alone."""
    model = build_model("doge", keep_window_size=6)
    randomise(model)
    inputs = inputs_of("doge", model.config)
    wanted, later, unkept = (
        final(model(**inputs)),
        decoded(model, model, inputs),
        final(build_and_run("doge", inputs)),
    )
    assert not torch.allclose(wanted, unkept)
    with attach(model) as bridged:
        agree(final(bridged.run_with_cache(**inputs)[0]), wanted)
        agree(decoded(model, model, inputs), later)


def build_and_run(name: str, inputs: dict[str, Any]) -> Any:
    return tiny(name)(**inputs)


def test_every_row_of_the_table_has_a_model() -> None:
    """No class is called served that no test builds."""
    built = {
        type(module).__name__
        for recipe in INSTALLED
        for module in build_model(recipe.name).modules()
    }
    root = Path(transformers.__file__).parent
    assert {name for name, family in FAMILIES.items() if (root / family.source).exists()} <= built


@pytest.mark.parametrize("name", ["smollm3", "cohere2", "exaone4"])
def test_a_layer_that_does_not_rotate_cannot_hide_behind_one_that_does(name: str) -> None:
    """Both have one description where the table forgets to say which layers rotate; both are proved
    all the same."""
    model = tiny(name)
    kind = type(attention_layer(model, 0)).__name__
    family = FAMILIES[kind]
    assert isinstance(family, Family)
    forgetful = replace(family, window=None, rotary=replace(family.rotary, where=()))
    with pytest.raises(
        VerificationError,
        match=rf"^'blocks\.1\.attn' does not reproduce the {kind} it wraps: its pattern is off",
    ):
        attach(model, families={**FAMILIES, kind: forgetful})


@pytest.mark.parametrize("name", ["stablelm", "phi", "persimmon"])
@torch.no_grad()
def test_a_norm_that_a_config_switches_on_is_read_off_the_module(name: str) -> None:
    model = build_model(name, qk_layernorm=True)
    randomise(model)
    inputs = inputs_of(name, model.config)
    wanted = final(model(**inputs))
    with attach(model) as bridged:
        assert bridged.layers[0].variant.norm is not None
        agree(final(bridged.run_with_cache(**inputs)[0]), wanted)


def test_a_norm_that_the_table_does_not_know_is_refused() -> None:
    model = build_model("llama")
    attention_layer(model, 0).q_norm = torch.nn.Identity()
    with pytest.raises(UnsupportedAttention, match="has 'q_norm', which its family does not have"):
        attach(model)
