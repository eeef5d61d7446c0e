"""Memory for patterns is lent again once nobody holds it, and never before."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from benchmarks.contests import bridged, layer
from ropebridge.kernels.buffers import Buffers

SHAPE = (2, 4, 256, 256)
LIKE = torch.zeros(1)


def address(buffers: Buffers) -> int:
    return buffers.lend(SHAPE, LIKE, torch.float32)[0].data_ptr()


def test_memory_is_lent_again_once_nobody_holds_it() -> None:
    buffers = Buffers()
    tensor, clean = buffers.lend(SHAPE, LIKE, torch.float32)
    assert clean
    assert not tensor.any()
    assert tensor.shape == SHAPE
    first = tensor.data_ptr()
    del tensor
    again, clean = buffers.lend(SHAPE, LIKE, torch.float32)
    assert again.data_ptr() == first
    assert not clean


@pytest.mark.parametrize(
    "keep",
    [
        lambda tensor: tensor[0, 0, :3],
        lambda tensor: tensor.detach(),
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor.untyped_storage(),
        lambda tensor: tensor.requires_grad_().square(),
    ],
    ids=["slice", "detached", "numpy", "storage", "graph"],
)
def test_memory_that_anybody_holds_is_not_lent(keep: object) -> None:
    buffers = Buffers()
    tensor, _ = buffers.lend(SHAPE, LIKE, torch.float32)
    first, held = tensor.data_ptr(), keep(tensor)  # type: ignore[operator]
    del tensor
    assert address(buffers) != first
    assert held is not None


def test_another_size_and_released_memory_are_new() -> None:
    buffers = Buffers()
    buffers.lend(SHAPE, LIKE, torch.float32)
    assert buffers.lend(SHAPE, LIKE, torch.float64)[1]
    buffers.release()
    assert buffers.lend(SHAPE, LIKE, torch.float64)[1]


def test_what_is_lent_counts_its_edits_and_is_no_view() -> None:
    with torch.inference_mode():
        for shape in (SHAPE, (2, 2)):
            tensor, _ = Buffers().lend(shape, LIKE, torch.float32)
            assert not tensor.is_inference()
            assert not tensor._is_view()
            before = tensor._version
            tensor.add_(1)
            assert tensor._version > before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_keeps_memory_of_its_own(copied: object) -> None:
    buffers = Buffers()
    buffers.lend(SHAPE, LIKE, torch.float32)
    other = copied(buffers)  # type: ignore[operator]
    assert other.lend(SHAPE, LIKE, torch.float32)[1]


@torch.no_grad()
def test_a_part_is_as_it_should_be_in_memory_that_an_earlier_one_was_written_over() -> None:
    bridge = bridged(*layer("llama", "sdpa", torch.float32, False))
    inputs = {**bridge.get_random_inputs(1, 640, seed=0), "attention_mask": None}
    point = bridge.hook_points["hook_pattern"]
    addresses: list[int] = []
    kept: list[torch.Tensor] = []

    def spoil(part: torch.Tensor, hook: object) -> None:
        addresses.append(part.data_ptr())
        part.fill_(0.5)

    with point.add_hook(spoil, heads=3):
        bridge(**inputs)
    with point.add_hook(lambda part, hook: addresses.append(part.data_ptr()), heads=3):
        bridge(**inputs)
    for _ in range(2):
        with point.add_hook(lambda part, hook: kept.append(part), heads=3):
            bridge(**inputs)
    with point.add_hook(lambda pattern, hook: kept.append(pattern[:, [3]].clone())):
        bridge(**inputs)
    assert addresses[0] == addresses[1]
    assert kept[0].data_ptr() != kept[1].data_ptr()
    for part in kept[:2]:
        torch.testing.assert_close(part, kept[2], rtol=1e-5, atol=1e-7)
