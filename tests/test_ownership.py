"""Hooks own what they are shown (EDIT-2): whoever else watches, raw hooks of torch too, an edit
through any view counts, what was kept stays as it was, and a cache can be saved as it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from ropebridge import PositionEmbeddingsAttentionBridge, attach
from ropebridge_conformance.zoo.specimens import CASE_BY_ID, CORE, specimen
from ropebridge_spec import hook_order

pytestmark = pytest.mark.slow

ODD = ("bitnet_0", "hunyuan_vl_0", "gemma4_1", "esm_0", "afmoe_1", "deepseek_v2_0", "diffllama_0")
"""Layers beyond the core that norm z, norm after rotation, share keys, have no output projection,
a gate, a latent, or pairs of heads."""
CASES = [case.id for case in CORE] + [name for name in ODD if name in CASE_BY_ID]
MODES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


def bridge_of(case: str, dtype: torch.dtype = torch.float32) -> PositionEmbeddingsAttentionBridge:
    """A bridge around one layer of the zoo."""
    layer = specimen(case, dtype, "cpu")
    bridge = PositionEmbeddingsAttentionBridge("blocks.0.attn", None)
    bridge.set_original_component(layer.module)
    bridge.set_rotary_emb(layer.rotary)
    return bridge


def halve_through_a_view(tensor: Tensor, hook: Any) -> None:
    """Halve what is shown, through a view that only a contiguous tensor has."""
    tensor.detach().view(-1).mul_(0.5)


def halved(tensor: Tensor, hook: Any) -> Tensor:
    """Return half of what is shown."""
    return tensor * 0.5


def run(bridge: Any, inputs: Any, *hooks: tuple[str, Any]) -> Tensor:
    """The output of one call with these hooks."""
    handles = [bridge.hook_points[name].add_hook(fn) for name, fn in hooks]
    out: Tensor = dict(zip(bridge.variant.calling.returns, bridge(**inputs), strict=True))["out"]
    for handle in handles:
        handle.remove()
    return out


def look(tensor: Tensor, hook: Any) -> None:
    """Look, and do nothing."""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_an_edit_through_a_view_is_an_edit_whoever_else_watches(case: str, mode: str) -> None:
    bridge = bridge_of(case)
    inputs = bridge.get_random_inputs(2, 9, seed=0)
    names = [spec.name for spec in hook_order(bridge.variant)]
    with MODES[mode]():
        for name in names:
            others = [(other, look) for other in names if other != name]
            alone = run(bridge, inputs, (name, halved))
            assert torch.equal(run(bridge, inputs, (name, halve_through_a_view)), alone), name
            watched = run(bridge, inputs, (name, halved), *others)
            through_a_view = run(bridge, inputs, (name, halve_through_a_view), *others)
            assert torch.equal(through_a_view, watched), name
            torch.testing.assert_close(watched, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_an_edit_in_place_is_not_in_what_a_raw_hook_of_torch_kept(case: str) -> None:
    """Modules inside the layer hand their outputs to raw hooks, which may keep them."""
    bridge = bridge_of(case)
    module: Any = bridge.original_component
    inputs = bridge.get_random_inputs(2, 9, seed=0)
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            kept.append((output, output.clone()))

    for part in module.modules():
        part.register_forward_hook(keep)
    with torch.no_grad():
        for spec in hook_order(bridge.variant):
            run(bridge, inputs, (spec.name, halve_through_a_view))
            assert kept
            assert all(torch.equal(output, as_it_was) for output, as_it_was in kept), spec.name
            kept.clear()


@pytest.mark.parametrize("case", CASES)
def test_an_edit_by_what_is_trained_is_an_edit_in_a_pass_without_gradients(case: str) -> None:
    """Autograd refuses such an edit of a view that was made without gradients."""
    bridge = bridge_of(case)
    inputs = bridge.get_random_inputs(2, 9, seed=0)
    step = torch.tensor(0.5, requires_grad=True)

    def halve_by_a_parameter(tensor: Tensor, hook: Any) -> None:
        with torch.enable_grad():
            tensor.mul_(step)

    with torch.no_grad():
        for spec in hook_order(bridge.variant):
            edited = run(bridge, inputs, (spec.name, halve_by_a_parameter))
            wanted = run(bridge, inputs, (spec.name, halved))
            torch.testing.assert_close(edited, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_hook_that_looked_at_a_view_did_not_edit(mode: str) -> None:
    point = bridge_of("llama").hook_points["hook_attn_scores"]
    with MODES[mode](), point.add_hook(look):
        view = torch.ones(24).view(2, 3, 4)
        left, edited = point.show(view)
    assert edited is (mode == "inference"), "where nobody counts edits, it may have been one"
    assert left.data_ptr() == view.data_ptr()


def keep_by_a_hook_of_all_modules(bridge: Any, keep: Callable[..., None]) -> Callable[[], None]:
    """Hand the output of every module to a function, by torch's hook of all modules."""
    handle = register_module_forward_hook(lambda module, args, output: keep(output))
    return handle.remove


def keep_by_a_forward_of_its_own(bridge: Any, keep: Callable[..., None]) -> Callable[[], None]:
    """Hand the output of the query's projection to a function, from a forward that was set on the
    module itself, as accelerate sets one."""
    projection = bridge.original_component.q_proj

    def forward(x: Tensor) -> Tensor:
        output = nn.Linear.forward(projection, x)
        keep(output)
        return output

    projection.forward = forward
    return lambda: delattr(projection, "forward")


@pytest.mark.parametrize("keeping", [keep_by_a_hook_of_all_modules, keep_by_a_forward_of_its_own])
def test_an_edit_in_place_is_not_in_what_others_kept_of_a_projection(
    keeping: Callable[..., Callable[[], None]],
) -> None:
    bridge = bridge_of("llama")
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(output: Any) -> None:
        if isinstance(output, Tensor):
            kept.append((output, output.clone()))

    undo = keeping(bridge, keep)
    with torch.no_grad():
        run(bridge, bridge.get_random_inputs(2, 9, seed=0), ("hook_q", halve_through_a_view))
    undo()
    assert kept
    assert all(torch.equal(output, as_it_was) for output, as_it_was in kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_what_hooks_kept_can_be_saved_as_it_is(
    case: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    bridge = bridge_of(case, dtype)
    kept: dict[str, Tensor] = {}

    def keep(tensor: Tensor, hook: Any) -> None:
        kept[hook.spec.name] = tensor.detach()

    hooks = [(spec.name, keep) for spec in hook_order(bridge.variant)]
    with torch.no_grad():
        run(bridge, bridge.get_random_inputs(2, 9, seed=0), *hooks)
    save_file(kept, tmp_path / "cache.safetensors")
    assert load_file(tmp_path / "cache.safetensors").keys() == kept.keys()


def test_a_raw_hook_that_edits_the_output_leaves_the_cache_as_it_was(
    build: Any, family: str, tokens: Tensor
) -> None:
    bridged = attach(build(family))
    _, before = bridged.run_with_cache(tokens)

    def spoil(module: nn.Module, args: Any, output: tuple[Tensor, Any]) -> None:
        output[0].detach().zero_()

    bridged.layers[-1].wrapped.register_forward_hook(spoil)
    _, cache = bridged.run_with_cache(tokens)
    assert all(torch.equal(cache[name], value) for name, value in before.items())
