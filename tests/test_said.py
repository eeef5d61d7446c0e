"""Nothing a user says is ignored: an argument, a name, a hook is served, or refused with what to do
instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ropebridge import AttachError, ContractError, UnknownHook, attach
from ropebridge.methods import MethodError, head_ablation

pytestmark = pytest.mark.slow

Z, PATTERN = "blocks.0.attn.hook_z", "blocks.0.attn.hook_pattern"


def zero(tensor: Tensor, hook: Any) -> Tensor:
    """A hook that replaces by nothing."""
    return torch.zeros_like(tensor)


@pytest.fixture
def bridged(build: Any) -> Any:
    with attach(build("llama")) as bridged:
        yield bridged


# ---- arguments ----


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("fw_hooks", [(Z, zero)], "nearest: fwd_hooks"),
        ("name_filter", Z, "nearest: names_filter"),
        ("attention_msk", None, "nearest: attention_mask"),
        ("stop_at_layer", 1, "the model runs through all its layers"),
        ("return_type", "loss", r"take output\.logits or output\.loss"),
        ("prepend_bos", True, "tokens come from the tokenizer"),
        ("reset_hooks_end", False, "hooks of a run are gone after it"),
    ],
)
@pytest.mark.parametrize("way", ["run_with_hooks", "run_with_cache", "__call__"])
def test_an_argument_that_the_model_does_not_name_is_refused(
    bridged: Any, tokens: Tensor, way: str, name: str, value: Any, words: str
) -> None:
    message = (
        rf"^there is no argument '{name}' of this call, nor of the forward of LlamaForCausalLM,"
        rf" which would ignore it in silence\n(.|\n)*{words}(.|\n)*model_kwargs="
    )
    with pytest.raises(ContractError, match=message):
        getattr(bridged, way)(tokens, **{name: value})
    assert not any(point.watched for point in bridged.hook_points.values())


@pytest.mark.parametrize("name", ["names_filter", "pos_slice", "remove_batch_dim", "incl_bwd"])
def test_what_belongs_to_a_cache_is_refused_where_there_is_none(
    bridged: Any, tokens: Tensor, name: str
) -> None:
    with pytest.raises(ContractError, match=rf"no argument '{name}' of this call"):
        bridged.run_with_hooks(tokens, **{name: None})


def test_what_the_model_names_or_transformers_reads_is_passed_on(
    bridged: Any, tokens: Tensor
) -> None:
    output = bridged.run_with_hooks(
        tokens,
        attention_mask=torch.ones_like(tokens),
        use_cache=False,
        output_attentions=True,
        output_hidden_states=True,
        return_dict=False,
        logits_to_keep=1,
    )
    assert isinstance(output, tuple)
    assert output[0].shape[1] == 1


def test_what_is_passed_on_explicitly_reaches_the_model(bridged: Any, tokens: Tensor) -> None:
    """The layer understands it or refuses it by name (ARG-1)."""
    with pytest.raises(ContractError, match=r"was called with 'mine', and what it means is not"):
        bridged.run_with_hooks(tokens, model_kwargs={"mine": 1})
    assert bridged.run_with_cache(tokens, model_kwargs={"token_type_ids": None})[1]


def test_a_wrapper_is_asked_for_what_it_passes_on(build: Any, tokens: Tensor) -> None:
    class Wrapper(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.inner = model

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    with attach(Wrapper(build("llama"))) as bridged:
        bridged.run_with_hooks(input_ids=tokens, use_cache=False)
        with pytest.raises(ContractError, match="no argument 'fw_hooks'"):
            bridged.run_with_hooks(tokens, fw_hooks=[])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("a text",), r"was given the text 'a text', and takes token ids(.|\n)*tokenizer\(text"),
        ((["a", "text"],), r"was given \['a', 'text'\] as positional argument 0"),
        (({"input_ids": None},), r"dict as positional argument 0; pass its items as keywords"),
        ((None, Z), r"hook_z' as positional argument 1(.|\n)*names_filter=\.\.\."),
        ((None, [(Z, zero)]), r"as positional argument 1(.|\n)*fwd_hooks=\[\.\.\.\]"),
    ],
)
@pytest.mark.parametrize("way", ["run_with_hooks", "run_with_cache"])
def test_a_positional_argument_that_is_no_tensor_is_refused(
    bridged: Any, tokens: Tensor, way: str, args: tuple[Any, ...], words: str
) -> None:
    given = (tokens if args[0] is None else args[0], *args[1:])
    with pytest.raises(ContractError, match=words):
        getattr(bridged, way)(*given)


# ---- hooks ----


@pytest.mark.parametrize("way", ["add_hook", "hooks"])
@pytest.mark.parametrize(
    "fn", [lambda z: z, lambda z, h: z, lambda: None, lambda z, hook, other: z]
)
def test_a_function_that_is_no_hook_is_refused_where_it_is_given(
    bridged: Any, way: str, fn: Any
) -> None:
    give = {
        "add_hook": lambda: bridged.hook_points[Z].add_hook(fn),
        "hooks": lambda: bridged.hooks([(Z, fn)]).__enter__(),
    }[way]
    message = r"was given a function with the parameters \(.*FIRE-4 requires fn\(tensor, hook\)"
    with pytest.raises(ContractError, match=message):
        give()


def test_any_function_that_takes_a_tensor_and_hook_is_a_hook(bridged: Any, tokens: Tensor) -> None:
    class Method:
        def look(self, tensor: Tensor, hook: Any, more: int = 0) -> None:
            self.seen = hook.name

    method = Method()
    bridged.run_with_hooks(tokens, fwd_hooks=[(Z, method.look), (Z, lambda *_, **__: None)])
    assert method.seen == Z


def test_a_hook_knows_its_layer_and_has_a_place_to_keep_things(
    bridged: Any, tokens: Tensor
) -> None:
    def count(tensor: Tensor, hook: Any) -> None:
        hook.ctx[hook.layer()] = hook.ctx.get(hook.layer(), 0) + 1

    every_z = lambda name: name.endswith("hook_z")  # noqa: E731
    for _ in range(2):
        bridged.run_with_hooks(tokens, fwd_hooks=[(every_z, count)])
    assert [bridged.hook_points[f"blocks.{n}.attn.hook_z"].ctx for n in (0, 1)] == [{0: 2}, {1: 2}]
    bridged.reset_hooks()
    assert bridged.hook_points[Z].ctx == {}


def test_hooks_added_by_name_stay_until_they_are_taken_away(bridged: Any, tokens: Tensor) -> None:
    plain = bridged(tokens).logits
    handles = bridged.add_hook(lambda name: name.endswith("hook_z"), zero)
    assert len(handles) == 2
    assert repr(bridged).endswith("24 hook points, 2 watched)")
    assert not torch.equal(bridged(tokens).logits, plain)
    bridged.reset_hooks()
    assert torch.equal(bridged(tokens).logits, plain)


def test_a_hook_added_after_detach_is_an_error(build: Any) -> None:
    bridged = attach(build("llama"))
    point = bridged.hook_points[Z]
    bridged.detach()
    with pytest.raises(AttachError, match=r"hook_z' cannot fire: its bridge was detached"):
        point.add_hook(zero)
    with pytest.raises(AttachError, match="the bridge was detached"):
        bridged.add_hook(Z, zero)
    assert repr(bridged).endswith("0 watched, detached)")


@pytest.mark.parametrize("grad", [True, False])
def test_nan_left_in_a_pattern_is_an_error(bridged: Any, tokens: Tensor, grad: bool) -> None:
    def divide(pattern: Tensor, hook: Any) -> Tensor:
        return pattern * 0 / (pattern * 0).sum(-1, keepdim=True)

    refused = pytest.raises(ContractError, match="left NaN in the pattern")
    with torch.set_grad_enabled(grad), refused:
        bridged.run_with_hooks(tokens, fwd_hooks=[(PATTERN, divide)])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blocks.0.hook_resid_pre", r"only attention has hook points here(.|\n)*register_forward"),
        ("blocks.0.hook_mlp_out", "only attention has hook points here"),
        ("hook_embed", "only attention has hook points here"),
        ("blocks.0.hook_attn_out", "what attention puts out is hook_out"),
        (("z", 0), r"\('z', 0\) is no name of a hook point"),
    ],
)
def test_a_name_of_another_library_is_told_what_stands_for_it(
    bridged: Any, tokens: Tensor, name: Any, words: str
) -> None:
    with pytest.raises(UnknownHook, match=words):
        bridged.run_with_cache(tokens, names_filter=[name])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hook_dict", "bridged.hook_points"),
        ("cfg", "bridged.model.config"),
        ("generate", "bridged.model.generate"),
        ("to_tokens", "tokenizer"),
    ],
)
def test_an_attribute_of_another_library_is_told_what_stands_for_it(
    bridged: Any, name: str, words: str
) -> None:
    with pytest.raises(AttributeError, match=rf"has no attribute '{name}'; .*{words}"):
        getattr(bridged, name)


def test_repr_says_what_is_attached(bridged: Any) -> None:
    assert repr(bridged) == (
        "BridgedModel(LlamaForCausalLM: 2 LlamaAttention; 24 hook points, 0 watched)"
    )


# ---- methods ----


def test_a_method_refuses_a_model_that_drops_out_at_random(build: Any, tokens: Tensor) -> None:
    model = build("llama", attention_dropout=0.1)
    with attach(model) as bridged:
        head_ablation(bridged, tokens, lambda logits: logits.mean(), quiet=True)
        model.train()
        with pytest.raises(MethodError, match=r"drops out at random(.|\n)*call model\.eval\(\)"):
            head_ablation(bridged, tokens, lambda logits: logits.mean(), quiet=True)


def test_a_method_refuses_inputs_that_are_no_tokens(bridged: Any) -> None:
    with pytest.raises(MethodError, match=r"inputs are 'a text'; they must be token ids"):
        head_ablation(bridged, "a text", lambda logits: logits.mean(), quiet=True)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"heads": 2}, r"heads=2 is no list of numbers; give heads=\[2\]"),
        ({"layers": "all"}, r"layers='all' is no list of numbers"),
        ({"positions": -1}, r"positions=-1 is no list of numbers"),
        ({"metric": None}, r"the metric is None; it must be a function of the logits"),
    ],
)
def test_a_method_refuses_what_it_cannot_read(
    bridged: Any, tokens: Tensor, choice: Any, words: str
) -> None:
    given = {"metric": lambda logits: logits.mean(), "quiet": True, **choice}
    with pytest.raises(MethodError, match=words):
        head_ablation(bridged, tokens, **given)


# ---- odd values ----


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pos_slice": "last"}, r"pos_slice='last' names no positions; it is a number"),
        ({"pos_slice": 1.5}, r"pos_slice=1\.5 names no positions"),
        ({"pos_slice": 99}, r"pos_slice=99 names a position that '.*hook_in' does not have: it"),
        ({"dtype": "float16"}, r"dtype='float16' is no dtype of torch; give torch\.float16"),
        ({"use_cache": 1, "model_kwargs": {"use_cache": 0}}, r"'use_cache' is given twice"),
    ],
)
def test_an_odd_value_for_a_cache_is_refused(
    bridged: Any, tokens: Tensor, given: Any, words: str
) -> None:
    with pytest.raises(ContractError, match=words):
        bridged.run_with_cache(tokens, **given)


def test_gradients_that_cannot_flow_are_refused(bridged: Any, tokens: Tensor) -> None:
    with torch.no_grad(), pytest.raises(ContractError, match=r"no gradient flows to output\.loss"):
        bridged.run_with_cache(tokens, labels=tokens, incl_bwd=True)


def test_a_name_that_is_no_string_is_refused(bridged: Any, tokens: Tensor) -> None:
    with pytest.raises(UnknownHook, match="3 is no name of a hook point, which is a string"):
        bridged.run_with_cache(tokens, names_filter=3)


def test_recordings_take_their_names_as_caches_do(bridged: Any, tokens: Tensor) -> None:
    with bridged.caching(names_filter=[Z]) as one, bridged.caching([Z], PATTERN) as two:
        bridged(tokens)
    assert set(one) == {Z}
    assert set(two) == {Z, PATTERN}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("gpt2", r"attach was given 'gpt2', and takes a model in memory\n  load it first"),
        (None, "attach was given None"),
    ],
)
def test_what_is_no_model_is_refused(model: Any, words: str) -> None:
    with pytest.raises(AttachError, match=words):
        attach(model)


def test_what_attach_returned_is_no_model(bridged: Any) -> None:
    with pytest.raises(AttachError, match="attach was given what it returned"):
        attach(bridged)
