"""What attaching does to a model, and that detaching leaves it exactly as it was."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ropebridge import AttachError, ContractError, HookNeverFired, attach, get_bridged_model

pytestmark = pytest.mark.slow

# its successor is too new
checkpointed = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"
)


def attention(model: Any) -> list[nn.Module]:
    return [layer.self_attn for layer in model.model.layers]


def look(tensor: Tensor, hook: Any) -> None:
    """A hook that changes nothing."""


def zero(tensor: Tensor, hook: Any) -> Tensor:
    """A hook that leaves nothing."""
    return torch.zeros_like(tensor)


@pytest.fixture
def llama(build: Any) -> Any:
    return build("llama")


def test_state_dict_keys_stay_as_they_are_while_attached_and_after(build: Any, family: str) -> None:
    model = build(family)
    before = list(model.state_dict())
    with attach(model):
        while_attached = list(model.state_dict())
    assert while_attached == before == list(model.state_dict())


def test_modules_stay_the_same_objects_of_the_same_class(build: Any, family: str) -> None:
    model = build(family)
    before = [(name, id(module), type(module)) for name, module in model.named_modules()]
    with attach(model):
        while_attached = [
            (name, id(module), type(module)) for name, module in model.named_modules()
        ]
    assert (
        while_attached
        == before
        == [(name, id(module), type(module)) for name, module in model.named_modules()]
    )


def test_attributes_of_every_module_are_restored_by_detach(
    build: Any, tokens: Tensor, family: str
) -> None:
    model = build(family)
    before = {name: sorted(vars(module)) for name, module in model.named_modules()}
    with attach(model) as bridged:
        bridged.run_with_cache(tokens)
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == before


def test_the_forward_of_a_layer_is_the_bridge_only_while_attached(llama: Any) -> None:
    with attach(llama) as bridged:
        assert [module.forward.__self__ for module in attention(llama)] == list(bridged.layers)
    assert ["forward" in vars(module) for module in attention(llama)] == [False, False]


@torch.no_grad()
def test_a_detached_model_runs_its_own_forward_bit_for_bit(
    build: Any, tokens: Tensor, family: str
) -> None:
    """BACK-1."""
    model = build(family)
    wanted = model(tokens).logits
    bridged = attach(model)
    bridged.hook_points["blocks.0.attn.hook_z"].add_hook(zero)
    bridged.detach()
    assert torch.equal(model(tokens).logits, wanted)


def test_detach_takes_every_hook_away(llama: Any) -> None:
    bridged = attach(llama)
    bridged.hook_points["blocks.0.attn.hook_z"].add_hook(zero)
    bridged.detach()
    assert not any(point.watched for point in bridged.hook_points.values())


def test_detaching_twice_is_the_same_as_once(llama: Any) -> None:
    bridged = attach(llama)
    bridged.detach()
    bridged.detach()
    assert ["forward" in vars(module) for module in attention(llama)] == [False, False]


def test_a_late_detach_leaves_a_newer_bridge_in_force(llama: Any) -> None:
    older = attach(llama)
    older.detach()
    newer = attach(llama)
    older.detach()
    assert [module.forward.__self__ for module in attention(llama)] == list(newer.layers)


def wrapped(module: nn.Module) -> None:
    """Take a module's forward as accelerate does: the one that was there is kept, and called."""
    before = module.forward
    module.forward = lambda *args, **kwargs: before(*args, **kwargs)  # type: ignore[method-assign]


def test_a_forward_that_was_wrapped_after_attach_is_named_by_detach_and_the_others_are_given_back(
    llama: Any,
) -> None:
    bridged = attach(llama)
    bridged.hook_points["blocks.0.attn.hook_z"].add_hook(zero)
    wrapped(attention(llama)[0])
    message = (
        r"^the forward of blocks\.0\.attn was wrapped after attach, by"
        r" tests?\.?test_attach_model\.wrapped\.<locals>\.<lambda>, which still runs the bridge\n"
        r"  take the wrapper away, then call detach\(\) again$"
    )
    with pytest.raises(AttachError, match=message):
        bridged.detach()
    assert ["forward" in vars(module) for module in attention(llama)] == [True, False]
    assert not any(point.watched for point in bridged.hook_points.values())


def test_what_that_message_says_to_do_works(llama: Any) -> None:
    bridged = attach(llama)
    before = attention(llama)[0].forward
    wrapped(attention(llama)[0])
    with pytest.raises(AttachError):
        bridged.detach()
    attention(llama)[0].forward = before  # type: ignore[method-assign]
    bridged.detach()
    assert ["forward" in vars(module) for module in attention(llama)] == [False, False]


def test_attaching_again_after_detaching_is_allowed(llama: Any, tokens: Tensor) -> None:
    attach(llama).detach()
    with attach(llama) as bridged:
        assert bridged.run_with_cache(tokens, names_filter="blocks.1.attn.hook_q")[1]


def test_attaching_twice_is_refused(llama: Any) -> None:
    with (
        attach(llama),
        pytest.raises(
            AttachError,
            match=r"'model\.layers\.0\.self_attn' is attached to already; call detach\(\)",
        ),
    ):
        attach(llama)


def test_a_refused_second_attach_leaves_the_first_in_force(llama: Any, tokens: Tensor) -> None:
    with attach(llama) as bridged:
        with pytest.raises(AttachError):
            attach(llama)
        assert bridged.run_with_cache(tokens, names_filter="blocks.0.attn.hook_z")[1]


def test_a_forward_replaced_by_someone_else_is_refused_and_left_alone(llama: Any) -> None:
    first = attention(llama)[0]
    first.forward = lambda *args, **kwargs: None  # type: ignore[method-assign]
    theirs = first.forward
    with pytest.raises(
        AttachError, match=r"replaced on the instance, by .*(.|\n)*attach first and wrap"
    ):
        attach(llama)
    assert first.forward is theirs


def test_a_model_without_rotary_attention_is_refused() -> None:
    with pytest.raises(
        AttachError,
        match=(
            r"Linear holds no attention layer whose forward takes position_embeddings\n  attach\(\)"
            r" serves rotary"
        ),
    ):
        attach(nn.Linear(2, 2))


def test_layers_that_share_a_name_are_refused(build: Any) -> None:
    layer = build("llama").model.layers[0]
    layer.twin = build("llama").model.layers[0].self_attn
    with pytest.raises(
        AttachError, match=r"share the names \['blocks\.0\.attn'\]; attach to each part"
    ):
        attach(nn.ModuleList([layer]))


def test_layers_of_one_number_are_named_by_the_part_they_stand_in(build: Any) -> None:
    pair = nn.ModuleDict({"encoder": build("llama"), "decoder": build("llama")})
    with attach(pair) as bridged:
        assert [layer.name for layer in bridged.layers] == [
            "encoder.blocks.0.attn",
            "encoder.blocks.1.attn",
            "decoder.blocks.0.attn",
            "decoder.blocks.1.attn",
        ]


def test_a_layer_without_a_number_of_its_own_has_that_of_its_path(build: Any) -> None:
    model = build("llama")
    for layer in model.model.layers:
        layer.self_attn.layer_idx = None
    with attach(model, verify=False) as bridged:
        assert [layer.name for layer in bridged.layers] == ["blocks.0.attn", "blocks.1.attn"]


def test_the_part_of_a_model_that_holds_the_layers_is_enough(llama: Any, tokens: Tensor) -> None:
    with attach(llama.model) as bridged:
        _, cache = bridged.run_with_cache(tokens, names_filter="blocks.0.attn.hook_z")
    assert cache["blocks.0.attn.hook_z"].shape == (2, 12, 6, 20)


def test_an_error_inside_the_block_detaches_too(llama: Any) -> None:
    with pytest.raises(ZeroDivisionError), attach(llama):
        raise ZeroDivisionError
    assert ["forward" in vars(module) for module in attention(llama)] == [False, False]


def test_verification_runs_no_hook_of_the_user(llama: Any) -> None:
    """It runs a copy of the layer, and copies carry hooks."""
    fired: list[str] = []
    attention(llama)[0].q_proj.register_forward_hook(lambda *_: fired.append("q_proj"))
    with attach(llama):
        assert fired == []


def test_verification_leaves_weights_mode_and_config_alone(llama: Any) -> None:
    llama.train()
    before = [parameter.clone() for parameter in llama.parameters()]
    implementation = llama.config._attn_implementation
    with attach(llama):
        assert all(torch.equal(a, b) for a, b in zip(llama.parameters(), before, strict=True))
        assert [parameter.dtype for parameter in llama.parameters()] == [
            parameter.dtype for parameter in before
        ]
        assert (attention(llama)[0].training, llama.config._attn_implementation) == (
            True,
            implementation,
        )


def test_verification_draws_nothing_from_the_global_generator(llama: Any) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    with attach(llama):
        assert torch.equal(torch.rand(4), wanted)


@torch.no_grad()
def test_two_models_in_one_process_never_see_each_other(build: Any, tokens: Tensor) -> None:
    one, other = build("llama"), build("llama")
    wanted = other(tokens).logits
    with attach(one) as bridged_one, attach(other) as bridged_other:
        bridged_one.hook_points["blocks.0.attn.hook_z"].add_hook(zero)
        assert torch.equal(bridged_other(tokens).logits, attach_free(build, tokens))
        assert not torch.allclose(bridged_one(tokens).logits, wanted)


def attach_free(build: Any, tokens: Tensor) -> Tensor:
    """What a third model, bridged and alone, computes."""
    with attach(build("llama")) as bridged:
        return bridged(tokens).logits


def test_a_model_of_the_same_class_that_is_not_attached_stays_unbridged(
    build: Any, tokens: Tensor
) -> None:
    one, other = build("llama"), build("llama")
    fired: list[str] = []
    with attach(one) as bridged:
        bridged.hook_points["blocks.0.attn.hook_z"].add_hook(
            lambda tensor, hook: fired.append(hook.name)
        )
        other(tokens)
    assert fired == []


@torch.no_grad()
def test_a_deep_copy_of_an_attached_model_computes_the_same(
    build: Any, tokens: Tensor, family: str
) -> None:
    with attach(build(family)) as bridged:
        twin = copy.deepcopy(bridged.model)
        assert torch.equal(twin(tokens).logits, bridged(tokens).logits)


@torch.no_grad()
def test_a_deep_copy_of_an_attached_model_has_weights_of_its_own(
    llama: Any, tokens: Tensor
) -> None:
    with attach(llama):
        twin = copy.deepcopy(llama)
        wanted = twin(tokens).logits
        attention(llama)[0].q_proj.weight.zero_()
        assert torch.equal(twin(tokens).logits, wanted)


def test_hooks_on_a_model_do_not_fire_in_its_earlier_deep_copy(llama: Any, tokens: Tensor) -> None:
    fired: list[str] = []
    with attach(llama) as bridged:
        twin = copy.deepcopy(llama)
        bridged.hook_points["blocks.0.attn.hook_z"].add_hook(
            lambda tensor, hook: fired.append(hook.name)
        )
        twin(tokens)
    assert fired == []


def test_a_deep_copy_of_the_bridged_model_can_be_hooked_and_detached_apart(
    llama: Any, tokens: Tensor
) -> None:
    with attach(llama) as bridged:
        twin = copy.deepcopy(bridged)
        twin.run_with_cache(tokens, names_filter="blocks.0.attn.hook_z")
        twin.detach()
        assert "forward" not in vars(attention(twin.model)[0])
        assert "forward" in vars(attention(llama)[0])


COPIES = {"deep_copy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("how", COPIES)
@torch.no_grad()
def test_a_copy_of_the_model_alone_is_taken_in_hand_and_detached_apart(
    llama: Any, tokens: Tensor, how: str
) -> None:
    alone = llama(tokens).logits
    with attach(llama) as bridged:
        bridged.hook_points["blocks.0.attn.hook_z"].add_hook(zero)
        twin = COPIES[how](llama)
        reached = get_bridged_model(twin)
        assert reached.model is twin
        assert not set(map(id, reached.layers)) & set(map(id, bridged.layers))
        reached.run_with_cache(tokens, names_filter="blocks.0.attn.hook_z")
        reached.detach()
        assert torch.equal(twin(tokens).logits, alone)
        assert not torch.equal(bridged(tokens).logits, alone)


@pytest.mark.parametrize("how", COPIES)
def test_attaching_to_a_copy_says_that_it_brought_its_bridge_along(llama: Any, how: str) -> None:
    with attach(llama):
        twin = COPIES[how](llama)
    with pytest.raises(
        AttachError,
        match=(
            r"\n  a deep copy, or a model out of a pickle, brought .* along:"
            r" ropebridge\.get_bridged_model\(model\)\.detach\(\)$"
        ),
    ):
        attach(twin)
    get_bridged_model(twin).detach()
    attach(twin).detach()


def test_a_model_that_is_not_attached_to_has_no_bridges_to_give(llama: Any) -> None:
    with pytest.raises(
        AttachError,
        match=r"^LlamaForCausalLM holds no layer that is attached to; call attach\(model\)$",
    ):
        get_bridged_model(llama)


def test_hooks_that_are_deep_copied_belong_to_the_copy(llama: Any, tokens: Tensor) -> None:
    seen: list[Any] = []
    with attach(llama) as bridged:
        bridged.hook_points["blocks.0.attn.hook_z"].add_hook(lambda tensor, hook: seen.append(hook))
        twin = copy.deepcopy(bridged)
        twin(tokens)
        assert [id(hook) for hook in seen] == [id(twin.hook_points["blocks.0.attn.hook_z"])]


@torch.no_grad()
def test_an_attached_model_survives_pickle(build: Any, tokens: Tensor, family: str) -> None:
    with attach(build(family)) as bridged:
        twin = pickle.loads(pickle.dumps(bridged))
        assert torch.equal(twin(tokens).logits, bridged(tokens).logits)
        assert twin.run_with_cache(tokens, names_filter="blocks.1.attn.hook_z")[1]


@torch.no_grad()
def test_an_attached_model_with_a_hook_survives_torch_save(llama: Any, tokens: Tensor) -> None:
    with attach(llama) as bridged:
        bridged.hook_points["blocks.0.attn.hook_z"].add_hook(zero)
        file = io.BytesIO()
        torch.save(bridged.model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
        assert torch.equal(twin(tokens).logits, bridged(tokens).logits)


@torch.no_grad()
def test_a_model_saved_while_attached_loads_as_it_was(
    build: Any, tokens: Tensor, family: str, tmp_path: Path
) -> None:
    model = build(family)
    wanted = model(tokens).logits
    with attach(model):
        model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", experts_implementation="eager"
    )
    assert torch.equal(loaded(tokens).logits, wanted)


@torch.no_grad()
def test_weights_loaded_while_attached_take_effect(build: Any, tokens: Tensor) -> None:
    model, other = build("llama", seed=0), build("llama", seed=1)
    with attach(model) as bridged:
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(
            bridged(tokens).logits, other(tokens).logits, atol=1e-4, rtol=1e-5
        )


@torch.no_grad()
def test_a_change_of_dtype_while_attached_takes_effect(
    build: Any, tokens: Tensor, family: str
) -> None:
    with attach(build(family)) as bridged:
        bridged.model.to(torch.bfloat16)
        _, cache = bridged.run_with_cache(tokens, names_filter="blocks.0.attn.hook_pattern")
    assert cache["blocks.0.attn.hook_pattern"].dtype == torch.bfloat16


@checkpointed
@pytest.mark.parametrize("reentrant", [False, True], ids=["non_reentrant", "reentrant"])
def test_gradient_checkpointing_fires_hooks_again_and_says_so(
    llama: Any, tokens: Tensor, reentrant: bool
) -> None:
    llama.train()
    llama.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    fired: list[bool] = []
    name = "blocks.1.attn.hook_pattern"
    with (
        attach(llama) as bridged,
        bridged.hooks([(name, lambda tensor, hook: fired.append(hook.recomputing))]),
    ):
        bridged(tokens, labels=tokens).loss.backward()
    assert fired == [False, True]


@checkpointed
@pytest.mark.parametrize("name", ["hook_pattern", "hook_z", "hook_q", "hook_out"])
def test_gradient_checkpointing_leaves_gradients_under_an_edit_as_they_are(
    build: Any, tokens: Tensor, family: str, name: str
) -> None:
    """An edit in place is made again in the recomputation."""

    def halve_first(tensor: Tensor, hook: Any) -> None:
        tensor[:, 0] *= 0.5

    def gradient(checkpointing: bool) -> Tensor:
        model = build(family).train()
        if checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        with attach(model) as bridged, bridged.hooks([(f"blocks.0.attn.{name}", halve_first)]):
            bridged(tokens, labels=tokens).loss.backward()
        return attention(model)[0].q_proj.weight.grad

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-4, atol=1e-7)


def halve(tensor: Tensor, hook: Any) -> Tensor:
    """A hook that replaces."""
    return tensor * 0.5


def halve_in_place(tensor: Tensor, hook: Any) -> None:
    """A hook that edits in place."""
    tensor *= 0.5


Z = "blocks.0.attn.hook_z"
both_kinds = pytest.mark.parametrize("reentrant", [False, True], ids=["non_reentrant", "reentrant"])


@pytest.fixture
def checkpointing(build: Any) -> Any:
    """`checkpointing(reentrant)`: a Llama that runs its layers again in the backward pass."""

    def make(reentrant: bool) -> Any:
        model = build("llama").train()
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": reentrant}
        )
        model.enable_input_require_grads()
        return model

    return make


def query_gradient(model: Any) -> Tensor:
    return attention(model)[0].q_proj.weight.grad


@checkpointed
@both_kinds
@pytest.mark.parametrize("edit", [halve, halve_in_place], ids=["replaced", "in_place"])
def test_an_edit_that_is_gone_when_checkpointing_runs_the_layer_again_is_an_error(
    checkpointing: Any, tokens: Tensor, reentrant: bool, edit: Any
) -> None:
    message = (
        r"^'blocks\.0\.attn' was run again in the backward pass, as gradient checkpointing does,"
        r" under other edits; clause FIRE-2 requires those of the "
        r"forward pass\n  edited in the forward pass: blocks\.0\.attn\.hook_z; edited now:"
        r" nothing\n  keep hooks\(\) open over both passes: with bridged\.hooks"
    )
    with attach(checkpointing(reentrant)) as bridged:
        output = bridged.run_with_hooks(tokens, labels=tokens, fwd_hooks=[(Z, edit)])
        with pytest.raises(ContractError, match=message):
            output.loss.backward()


@checkpointed
@both_kinds
def test_an_edit_that_comes_after_the_forward_pass_is_an_error_too(
    checkpointing: Any, tokens: Tensor, reentrant: bool
) -> None:
    with attach(checkpointing(reentrant)) as bridged:
        loss = bridged(tokens, labels=tokens).loss
        with (
            pytest.raises(
                ContractError, match=r"forward pass: nothing; edited now: blocks\.0\.attn\.hook_z\n"
            ),
            bridged.hooks([(Z, halve)]),
        ):
            loss.backward()


@checkpointed
@both_kinds
def test_hooks_that_only_look_may_be_gone_when_checkpointing_runs_the_layer_again(
    checkpointing: Any, tokens: Tensor, reentrant: bool
) -> None:
    model = checkpointing(reentrant)
    with attach(model) as bridged:
        bridged(tokens, labels=tokens).loss.backward()
        wanted = query_gradient(model).clone()
        model.zero_grad()
        output, _ = bridged.run_with_cache(tokens, labels=tokens, names_filter=Z)
        output.loss.backward()
    torch.testing.assert_close(query_gradient(model), wanted)


@checkpointed
@both_kinds
def test_a_forward_pass_is_held_to_its_own_edits_and_no_others(
    checkpointing: Any, tokens: Tensor, reentrant: bool
) -> None:
    """Two passes wait for their backward pass at once; each is run again under what it was run
    under."""
    model = checkpointing(reentrant)
    with attach(model) as bridged:
        bridged(tokens, labels=tokens).loss.backward()
        plain = query_gradient(model).clone()
        model.zero_grad()
        loss = bridged(tokens, labels=tokens).loss
        edited = bridged.run_with_hooks(tokens, labels=tokens, fwd_hooks=[(Z, halve)]).loss
        loss.backward()
        torch.testing.assert_close(query_gradient(model), plain)
        model.zero_grad()
        with bridged.hooks([(Z, halve)]):
            edited.backward()
    assert not torch.allclose(query_gradient(model), plain)


def test_without_checkpointing_hooks_may_be_gone_when_the_backward_pass_runs(
    build: Any, tokens: Tensor
) -> None:
    def gradient(kept: bool) -> Tensor:
        model = build("llama").train()
        with attach(model) as bridged:
            output = bridged.run_with_hooks(tokens, labels=tokens, fwd_hooks=[(Z, halve)])
            with bridged.hooks([(Z, halve)]) if kept else nullcontext():
                output.loss.backward()
                bridged(tokens)
        return query_gradient(model)

    assert torch.equal(gradient(False), gradient(True))


def test_what_was_edited_is_forgotten_with_the_tables_and_not_copied(
    llama: Any, tokens: Tensor
) -> None:
    x = torch.zeros(2, 12, 60)
    tables = llama.model.rotary_emb(x, torch.arange(12)[None])
    with attach(llama) as bridged, bridged.hooks([(Z, halve)]):
        llama.model.layers[0](x, position_embeddings=tables)
        copy.deepcopy(llama)
        held = weakref.ref(tables[0])
        del tables
        assert held() is None


@checkpointed
def test_a_backward_hook_under_reentrant_checkpointing_is_told_a_way_that_works(
    llama: Any, tokens: Tensor
) -> None:
    llama.train()
    llama.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    hooks = [("blocks.0.attn.hook_z", look)]
    matter = (
        r"cannot fire(.|\n)*gradient checkpointing with use_reentrant=True runs it without them"
        r" too, so pass\n  model\.gradient_checkpointing_enable\("
    )
    with attach(llama) as bridged:
        with pytest.raises(HookNeverFired, match=matter) as caught, bridged.hooks(bwd_hooks=hooks):
            bridged(tokens, labels=tokens).loss.backward()
        remedy = str(caught.value).splitlines()[-1].strip()
        assert (
            remedy
            == "model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant':"
            " False})"
        )
        eval(remedy, {"model": llama})
        with bridged.hooks(bwd_hooks=hooks):
            bridged(tokens, labels=tokens).loss.backward()


def test_a_hook_of_a_part_that_never_runs_is_an_error(llama: Any, tokens: Tensor) -> None:
    never = r"1 of 1 requested hooks never fired: blocks\.1\.attn\.hook_z\n"
    with (
        attach(llama) as bridged,
        pytest.raises(HookNeverFired, match=never),
        bridged.hooks([("blocks.1.attn.hook_z", look)]),
    ):
        llama.model.layers[0](
            torch.zeros(1, 2, 60),
            position_embeddings=llama.model.rotary_emb(
                torch.zeros(1, 2, 60), torch.arange(2)[None]
            ),
        )


@torch.no_grad()
# transformers compiles the making of its mask
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.every
def test_a_model_loaded_with_flex_attention_gives_what_eager_gives(build: Any) -> None:
    """The model then hands its layers a BlockMask; windows and padding are in it."""
    family = "gemma2"
    tokens, padding = torch.arange(24).reshape(2, 12) + 3, torch.ones(2, 12, dtype=torch.long)
    padding[1, :3] = 0
    wanted = build(family)(tokens, attention_mask=padding).logits[padding.bool()]
    model = build(family)
    model.set_attn_implementation("flex_attention")
    with attach(model) as bridged:
        got = bridged(tokens, attention_mask=padding).logits[padding.bool()]
        _, cache = bridged.run_with_cache(
            tokens, attention_mask=padding, names_filter="blocks.0.attn.hook_pattern"
        )
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert not cache["blocks.0.attn.hook_pattern"][1, :, :, :3].any()
