"""`bytes_needed` says what a cache will take, to the byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ropebridge import attach, bytes_needed
from ropebridge_spec import ContractError, UnknownHook

pytestmark = pytest.mark.slow


def held(bridged: Any, tokens: torch.Tensor, **kwargs: Any) -> int:
    """The bytes of a cache of everything."""
    with torch.no_grad():
        _, cache = bridged.run_with_cache(tokens, **kwargs)
    return sum(tensor.nbytes for tensor in cache.values())


def test_a_cache_takes_the_bytes_that_were_said(
    build: Any, tokens: torch.Tensor, family: str
) -> None:
    bridged = attach(build(family))
    batch, pos = tokens.shape
    assert held(bridged, tokens) == bytes_needed(bridged, None, batch, pos) > 0
    half = bytes_needed(bridged, None, batch, pos, dtype=torch.float16)
    assert held(bridged, tokens, dtype=torch.float16) == half


@pytest.mark.parametrize("choice", ["use_attn_in", "use_split_qkv_input", "use_attn_result"])
def test_what_is_opted_in_to_counts(build: Any, tokens: torch.Tensor, choice: str) -> None:
    bridged = attach(build("llama"), **{choice: True})
    batch, pos = tokens.shape
    assert held(bridged, tokens) == bytes_needed(bridged, None, batch, pos)


def test_names_dtype_and_cached_keys_count(build: Any) -> None:
    bridged = attach(build("llama").bfloat16())
    variant = bridged.layers[0].variant
    pattern = "blocks.1.attn.hook_pattern"
    assert bytes_needed(bridged, pattern, 3, 5) == 3 * variant.heads * 5 * 5 * 2
    assert bytes_needed(bridged, [pattern, pattern], 3, 5) == bytes_needed(bridged, pattern, 3, 5)
    assert bytes_needed(bridged, pattern, 3, 1, key=9) == 3 * variant.heads * 9 * 2
    with pytest.raises(UnknownHook):
        bytes_needed(bridged, "blocks.9.attn.hook_z", 1, 1)


@pytest.mark.parametrize("sizes", [{"batch": -1, "pos": 2}, {"batch": 1, "pos": 4, "key": 3}])
def test_sizes_that_cannot_be_are_refused(build: Any, sizes: dict[str, int]) -> None:
    bridged = attach(build("llama"), verify=False)
    with pytest.raises(ContractError) as error:
        bytes_needed(bridged, None, **sizes)
    key = sizes.get("key", sizes["pos"])
    assert str(error.value) == (
        f"bytes_needed was given batch={sizes['batch']}, pos={sizes['pos']}, key={key}; sizes are 0"
        " or more, and keys are no fewer than positions"
    )
