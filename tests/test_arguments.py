"""An argument that the bridge does not understand is an error (ARG-1): in a class's signature, at a
call, and in what a cache is handed."""

from __future__ import annotations

import inspect
import types
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.utils.generic import TransformersKwargs

from few import few
from ropebridge import PositionEmbeddingsAttentionBridge, attach
from ropebridge_conformance.checks import CHECKS
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.judge import judge
from ropebridge_conformance.judging.verdicts import Outcome
from ropebridge_conformance.subjects.reference import Factory as Reference
from ropebridge_conformance.zoo import builder
from ropebridge_conformance.zoo.builder import build_model, inputs_of
from ropebridge_conformance.zoo.calls import calls
from ropebridge_conformance.zoo.scenarios import SCENARIO_BY_ID
from ropebridge_conformance.zoo.specimens import (
    CASE_BY_ID,
    CORE,
    COVER,
    attention_layer,
    randomise,
    specimen,
)
from ropebridge_spec import (
    ARGUMENTS,
    FAMILIES,
    ContractError,
    UnsupportedAttention,
    VerificationError,
    accepted_arguments,
    arguments_of,
    cache_update_keywords,
    describe,
    own_names,
    parameter_in_role,
    parameters_of,
)

pytestmark = pytest.mark.slow

CLAIMED = {**FAMILIES, "LlamaAttention": replace(FAMILIES["LlamaAttention"], source="")}
"""Somebody says that a class of this name computes what it does in transformers."""

cover = pytest.mark.parametrize(
    "case", few([case.id for case in CORE], [case.id for case in COVER])
)


def tiny(name: str = "llama", **changes: Any) -> Any:
    model = build_model(name, **changes)
    randomise(model)
    return model


def cache_name(module: nn.Module) -> str:
    """Under which name the installed transformers hands a layer its cache."""
    name = parameter_in_role(type(module), describe(module), "cache")
    assert name is not None
    return name


def bridge_of(model: Any, **options: Any) -> PositionEmbeddingsAttentionBridge:
    return attach(model, verify=False, **options).layers[0]


# ---- the table ----


@cover
def test_every_parameter_of_a_served_class_is_in_the_table(case: str) -> None:
    module = specimen(case, torch.float32, "cpu").module
    assert set(parameters_of(type(module))) <= set(arguments_of(describe(module)))


@cover
@torch.no_grad()
def test_an_argument_that_is_called_safe_to_ignore_changes_nothing_in_hugging_faces_own_forward(
    case: str,
) -> None:
    """To the bit, where the class takes it: named, or among its keyword arguments."""
    layer = specimen(case, torch.float32, "cpu")
    kind, (call,) = type(layer.module), calls(SCENARIO_BY_ID["prefill"], layer, None)
    given = accepted_arguments(type(layer.module), call.inputs)
    ignored = {
        name for name, argument in arguments_of(layer.variant).items() if argument.use == "ignored"
    } - set(given)
    harmless = accepted_arguments(type(layer.module), {**given, **dict.fromkeys(ignored, True)})
    alone = kind.forward(layer.module, **given)
    beside = kind.forward(layer.module, **harmless)
    assert torch.equal(beside[0], alone[0])


def test_each_entry_of_the_table_says_why() -> None:
    for argument in ARGUMENTS.values():
        assert len(argument.reason.split()) >= 4
        assert bool(argument.role) == (argument.use == "used")


@pytest.mark.parametrize(
    "keywords", [TransformersKwargs, FlashAttentionKwargs], ids=lambda keywords: keywords.__name__
)
def test_every_keyword_that_transformers_says_it_passes_on_is_in_the_table(keywords: Any) -> None:
    assert set(keywords.__annotations__) <= set(ARGUMENTS)


# ---- a class ----


def renamed_cache(name: str) -> type:
    """Return a copy of Llama's attention whose cache argument has another name, in a module of its
    own."""
    from transformers.models.llama import modeling_llama

    source = inspect.getsource(modeling_llama.LlamaAttention)
    old = parameter_in_role(
        modeling_llama.LlamaAttention, describe(attention_layer(build_model("llama"), 0)), "cache"
    )
    assert old is not None
    lines = [line for line in source.splitlines() if "@deprecate_kwarg" not in line]
    module = types.ModuleType("renamed_llama")
    vars(module).update(vars(modeling_llama))
    exec("\n".join(lines).replace(old, name), vars(module))
    return module.LlamaAttention  # type: ignore[no-any-return]


def with_class(kind: type) -> Any:
    """Return a tiny Llama whose attention modules are of another class."""
    model = tiny()
    for layer in model.model.layers:
        layer.self_attn.__class__ = kind
    return model


def test_a_class_whose_cache_argument_is_renamed_once_more_is_refused_by_name() -> None:
    with pytest.raises(
        UnsupportedAttention,
        match=(
            r"^LlamaAttention\.forward has the parameters 'memory', and what they mean is not"
            r" known; clause ARG-1"
        ),
    ):
        attach(with_class(renamed_cache("memory")), families=CLAIMED)


@pytest.mark.parametrize("name", ["cache", "past_key_values", "layer_past"])
@torch.no_grad()
def test_a_cache_works_under_each_of_its_names(name: str) -> None:
    """The class is called by its own name for it, as a model of another release would; steps add up
    to the whole."""
    model = with_class(renamed_cache(name))
    bridge = attach(model, families=CLAIMED).layers[0]
    inputs = bridge.get_random_inputs(1, 6, seed=0)
    whole = bridge(**inputs)[0]
    cache = DynamicCache()
    steps = [bridge(**step(inputs, at), **{name: cache})[0] for at in range(6)]
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-5)
    assert cache.get_seq_length(0) == 6


def step(inputs: dict[str, Any], at: int) -> dict[str, Any]:
    """Return the inputs of one position."""
    cos, sin = inputs["position_embeddings"]
    span = slice(at, at + 1)
    return {
        "hidden_states": inputs["hidden_states"][:, span],
        "position_embeddings": (cos[:, span], sin[:, span]),
        "attention_mask": inputs["attention_mask"][:, :, span, : at + 1],
    }


def test_a_class_whose_cache_is_taken_from_keyword_arguments_is_refused_at_the_call() -> None:
    kind = renamed_cache("cache")
    original = kind.forward  # type: ignore[attr-defined]

    def forward(
        self: Any,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Any = None,
        **kwargs: Any,
    ) -> Any:
        return original(
            self,
            hidden_states,
            position_embeddings,
            attention_mask,
            kwargs.pop("memory", None),
            **kwargs,
        )

    kind.forward = forward  # type: ignore[attr-defined]
    bridge = bridge_of(with_class(kind), families=CLAIMED)
    inputs = bridge.get_random_inputs(1, 3, seed=0)
    with pytest.raises(
        ContractError,
        match=(
            r"^'blocks\.0\.attn' was called with 'memory', and what it means is not known; clause"
            r" ARG-1"
        ),
    ):
        bridge(**inputs, memory=DynamicCache())
    with pytest.raises(
        ContractError,
        match=r"^'blocks\.0\.attn' was called with a cache, and its class takes none; clause ARG-1",
    ):
        bridge(**inputs, cache=DynamicCache())


def test_a_class_that_updates_its_cache_with_an_unknown_keyword_is_refused() -> None:
    class Tagged(type(attention_layer(tiny(), 0))):  # type: ignore[misc]
        def forward(
            self,
            hidden_states: Tensor,
            position_embeddings: Any,
            attention_mask: Any = None,
            cache: Any = None,
            **kwargs: Any,
        ) -> Any:
            cache.update(hidden_states, hidden_states, 0, tag="new")
            return super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)

    families = {**FAMILIES, "Tagged": FAMILIES["LlamaAttention"]}
    with pytest.raises(
        UnsupportedAttention,
        match=(
            r"^Tagged\.forward updates its cache with the keyword arguments 'tag'; clause ARG-1"
            r" requires that each is"
        ),
    ):
        attach(with_class(Tagged), families=families)


@torch.no_grad()
def test_a_bridge_that_drops_the_cache_does_not_pass_its_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A prefill cannot tell; one step and three do."""
    from ropebridge import memory

    monkeypatch.setattr(memory, "extend_cache", lambda own, call: own)
    with pytest.raises(
        VerificationError,
        match=(
            r"^'blocks\.0\.attn': of the cached keys it leaves 0 positions, and the LlamaAttention"
            r" it wraps 8$"
        ),
    ):
        attach(tiny())


@torch.no_grad()
def test_a_bridge_that_caches_other_values_does_not_pass_its_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The output of the call that cached them is right."""
    from ropebridge import memory

    def spoiled(own: Any, call: Any) -> Any:
        call.cache.update(own[0], own[1] * 1.001, call.cache_layer, **call.update_with)
        return own

    monkeypatch.setattr(memory, "extend_cache", spoiled)
    with pytest.raises(VerificationError, match="its cached values is off by"):
        attach(tiny())


class Delegating(LlamaAttention):
    """Names no argument, and hands all on."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Partly(LlamaAttention):
    """Names the first argument alone."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        return super().forward(hidden_states, **kwargs)


@pytest.mark.parametrize("kind", [Delegating, Partly])
@torch.no_grad()
def test_a_subclass_that_hands_its_arguments_on_is_called_by_the_names_of_its_base(
    kind: type,
) -> None:
    assert parameters_of(kind) == parameters_of(LlamaAttention)
    model = tiny()
    prompt = {**inputs_of("llama", model.config, pos=4), "max_new_tokens": 6, "do_sample": False}
    alone = model.generate(**prompt)
    with attach(
        with_class(kind), families={**FAMILIES, kind.__name__: FAMILIES["LlamaAttention"]}
    ) as bridged:
        assert torch.equal(bridged.model.generate(**prompt), alone)


class Swallowing(LlamaAttention):
    """Takes any argument, and hands on no cache."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Any = None,
        **kwargs: Any,
    ) -> Any:
        return super().forward(hidden_states, position_embeddings, attention_mask)


def test_a_subclass_that_drops_the_cache_does_not_pass_its_proof() -> None:
    with pytest.raises(
        VerificationError,
        match=r"of the cached keys it leaves 8 positions, and the Swallowing it wraps 0$",
    ):
        attach(
            with_class(Swallowing), families={**FAMILIES, "Swallowing": FAMILIES["LlamaAttention"]}
        )


@torch.no_grad()
def test_a_bridge_that_hands_on_other_values_does_not_pass_its_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gemma 3n's later layers read what an earlier one left (KV-1)."""
    from ropebridge import bridge, memory

    remember = memory.remember

    def spoiled(own: Any, call: Any, module: Any, variant: Any) -> Any:
        pair = remember(own, call, module, variant)
        for kind, (keys, values) in dict(call.shared_kv or {}).items():
            call.shared_kv[kind] = (keys, values * 1.001)
        return pair

    monkeypatch.setattr(bridge.memory, "remember", spoiled)
    with pytest.raises(VerificationError, match="its handed on values is off by"):
        attach(tiny("gemma3n"))


# ---- a call ----


def called(**more: Any) -> Any:
    bridge = bridge_of(tiny())
    return bridge(**bridge.get_random_inputs(1, 3, seed=0), **more)


def test_an_argument_that_nobody_knows_is_refused() -> None:
    with pytest.raises(
        ContractError,
        match=(
            r"^'blocks\.0\.attn' was called with 'fw_hooks', and what it means is not known; clause"
            r" ARG-1 requires that no"
        ),
    ):
        called(fw_hooks=[])


@pytest.mark.parametrize(
    "name", [name for name, argument in ARGUMENTS.items() if argument.use == "refused"]
)
def test_an_argument_that_changes_what_is_computed_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ContractError) as raised:
        called(**{name: torch.zeros(1)})
    assert (
        str(raised.value)
        == f"'blocks.0.attn' was called with {name!r}, which clause ARG-1 refuses:"
        f" {ARGUMENTS[name].reason}"
    )


@pytest.mark.parametrize("name", [*ARGUMENTS, "an_argument_that_nobody_knows"])
def test_an_argument_that_is_none_is_no_argument(name: str) -> None:
    bridge = bridge_of(tiny())
    inputs = bridge.get_random_inputs(1, 3, seed=0)
    alone = bridge(**inputs)[0]
    assert torch.equal(bridge(**{name: None, **inputs})[0], alone)


def test_two_values_for_one_role_are_refused() -> None:
    with pytest.raises(
        ContractError,
        match=(
            r"^'blocks\.0\.attn' was called with two values for cache, one of them as layer_past;"
            r" pass one$"
        ),
    ):
        called(cache=DynamicCache(), layer_past=DynamicCache())


def test_more_positional_arguments_than_the_class_takes_are_refused() -> None:
    bridge = bridge_of(tiny())
    with pytest.raises(
        ContractError,
        match=(
            r"^'blocks\.0\.attn' was called with 6 positional arguments, and its class takes 4:"
            r" hidden_states, "
        ),
    ):
        bridge(*range(6))


def test_an_unknown_argument_of_the_models_forward_is_refused_at_its_first_layer() -> None:
    model = tiny()
    with attach(model, verify=False), pytest.raises(ContractError, match="'fw_hooks'"):
        model(**inputs_of("llama", model.config), fw_hooks=[])


# ---- caches ----


class Recording(DynamicCache):
    """A cache that keeps with which keyword arguments it was updated."""

    def __init__(self) -> None:
        super().__init__()
        self.updates: list[dict[str, Any]] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        assert not args
        self.updates.append({name: dict(value) for name, value in kwargs.items()})
        return super().update(key_states, value_states, layer_idx, **kwargs)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma3", "qwen3", "deepseek_v3"])
@torch.no_grad()
def test_a_cache_is_updated_with_what_the_class_itself_passes(name: str) -> None:
    model = tiny(name)
    inputs = inputs_of(name, model.config)
    alone, bridged = Recording(), Recording()
    model(**inputs, **{builder.cache_name(model): alone})
    with attach(model, verify=False):
        model(**inputs, **{builder.cache_name(model): bridged})
    assert [names_in(update) for update in bridged.updates] == [
        names_in(update) for update in alone.updates
    ]
    assert len(alone.updates) == model.config.num_hidden_layers


def names_in(update: dict[str, Any]) -> dict[str, list[str]]:
    """Return keyword argument -> the names in the dict that it holds, of those that are not
    None."""
    return {
        name: sorted(key for key, value in value.items() if value is not None)
        for name, value in update.items()
    }


def test_the_keywords_of_an_update_are_read_from_the_source() -> None:
    kind = type(attention_layer(tiny(), 0))
    assert cache_update_keywords(kind) == (("kwargs",) if "cache" in parameters_of(kind) else ())


def test_a_paged_cache_is_refused_by_name() -> None:
    model = tiny()
    module = attention_layer(model, 0)
    bridge = bridge_of(model)
    paged = PagedAttentionCache.__new__(PagedAttentionCache)
    with pytest.raises(
        ContractError,
        match=(
            r"was called with a PagedAttentionCache, which has no get_seq_length\(\); clause ARG-1"
            r" refuses paged caches"
        ),
    ):
        bridge(**bridge.get_random_inputs(1, 3, seed=0), **{cache_name(module): paged})


@pytest.mark.skipif(
    "cache" not in parameters_of(type(attention_layer(build_model("llama"), 0))),
    reason="this transformers hands its cache no arguments",
)
def test_a_cache_that_changes_the_arguments_of_the_call_is_refused() -> None:
    class Paging(DynamicCache):
        def update(self, *args: Any, kwargs: Any, **more: Any) -> Any:
            kwargs["block_table"] = torch.zeros(1)
            return super().update(*args, **more)

    with pytest.raises(
        ContractError,
        match=(
            r"^a cache of the class Paging changed the arguments of the call it was handed; clause"
            r" ARG-1 refuses paged caches"
        ),
    ):
        called(cache=Paging())


# ---- the judge ----


@cover
def test_the_judge_calls_a_layer_by_the_names_of_its_own_signature(case: str) -> None:
    layer = specimen(case, torch.float32, "cpu")
    for call in calls(SCENARIO_BY_ID["prefill"], layer, None):
        names = own_names(type(layer.module), layer.variant)
        assert {
            role: names[role] in call.inputs for role in names if names[role] and role in call.given
        } == {role: True for role in names if names[role] and role in call.given}
        assert not {role for role, name in names.items() if name != role} & set(call.inputs)


def test_the_suite_fails_on_a_subject_that_ignores_the_cache() -> None:
    """Whatever name the installed transformers has for it."""

    class Forgetful(Reference):
        def layer(self, module: nn.Module, **options: Any) -> Any:
            return ForgetfulLayer(super().layer(module, **options), cache_name(module))

    bench = Bench(Forgetful())
    steps = next(
        check for check in CHECKS if check.name == "a_step_leaves_its_positions_in_the_cache"
    )
    asked = steps.questions(CASE_BY_ID["llama"], "float32", "cpu")
    verdicts = [judge(bench, question) for question in asked]
    assert [verdict.outcome for verdict in verdicts] == [Outcome.FAIL]
    assert verdicts[0].reason == "the cache holds 0 positions of this layer after 11"


class ForgetfulLayer:
    """A layer that is called without its cache."""

    def __init__(self, layer: Any, cache: str) -> None:
        self.layer, self.cache = layer, cache

    def run(self, inputs: dict[str, Any], *hooks: Any, **more: Any) -> Any:
        assert self.cache in inputs
        return self.layer.run(
            {name: value for name, value in inputs.items() if name != self.cache}, *hooks, **more
        )
