"""What is read off the numbers of a mask: which keys blocks of rows see, and whether the mask says
more than positions do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ropebridge.extents import read_extents
from ropebridge.masks import Visibility

POS = 150
LOWEST = torch.finfo(torch.float32).min


def additive(mask: Tensor) -> Tensor:
    """The mask as a bias."""
    return torch.where(mask, 0.0, LOWEST)


def reach(mask: Tensor | None = None, **variant: Any) -> Visibility:
    extents = read_extents(mask, POS)
    return Visibility(POS, POS, torch.device("cpu"), mask=mask, extents=extents, **variant)


def by_position(**variant: Any) -> Tensor:
    """(1, 1, query, key) booleans: what positions say."""
    mask = reach(**variant).block(slice(0, POS), slice(0, POS))
    assert mask is not None
    return mask


REACH: list[dict[str, Any]] = [{}, {"window": 20}, {"chunk": 40}, {"causal": False, "window": 9}]


@pytest.mark.parametrize("form", [lambda mask: mask, additive], ids=["boolean", "additive"])
@pytest.mark.parametrize("variant", REACH, ids=str)
def test_a_mask_that_says_what_positions_do_is_left_out(variant: Any, form: Any) -> None:
    seen = reach(**variant, mask=form(by_position(**variant)))
    assert seen.without_idle_mask() == reach(**variant)


@pytest.mark.parametrize("form", [lambda mask: mask, additive], ids=["boolean", "additive"])
@pytest.mark.parametrize("variant", REACH, ids=str)
@pytest.mark.parametrize("at", [(3, 3), (70, 69), (100, 99), (149, 140), (10, 11), (0, 149)])
def test_one_other_number_keeps_the_mask(variant: Any, form: Any, at: tuple[int, int]) -> None:
    """Wherever it stands, in one row of the batch."""
    mask = by_position(**variant).repeat(2, 1, 1, 1)
    mask[1, 0, at[0], at[1]] ^= True
    seen = reach(**variant, mask=form(mask))
    assert seen.without_idle_mask() is seen


@pytest.mark.parametrize("number", [0.5, -3.0, torch.nan, torch.inf, -torch.inf])
def test_a_bias_keeps_the_mask(number: float) -> None:
    mask = additive(by_position())
    mask[0, 0, 100, 10] = number
    seen = reach(mask=mask)
    assert seen.without_idle_mask() is seen


@pytest.mark.parametrize("form", [lambda mask: mask, additive], ids=["boolean", "additive"])
@pytest.mark.parametrize("padding", [0, 5, 64, 90])
@pytest.mark.parametrize("variant", REACH, ids=str)
def test_what_is_left_out_is_what_nobody_sees(variant: Any, padding: int, form: Any) -> None:
    """Every key that a row of a block sees lies in its keys; what lies outside of its borders every
    row sees as it is."""
    mask = by_position(**variant).repeat(2, 1, 1, 1)
    mask[1, ..., :padding] = False
    seen = reach(**variant, mask=form(mask))
    for rows in (slice(0, 64), slice(64, 128), slice(128, 150), slice(70, 73), slice(0, 128)):
        keys = seen.keys_of(rows)
        visible = mask[:, 0, rows].flatten(0, 1)
        wanted = visible.any(0).nonzero()
        assert keys.start <= int(wanted[0])
        assert int(wanted[-1]) < keys.stop
        inner = torch.zeros(POS, dtype=torch.bool)
        inner[keys] = True
        for border in seen.borders(rows, keys):
            inner[border] = False
        assert bool(visible[:, inner].all())
    first = seen.keys_of(slice(0, 64))
    assert first.stop - first.start < POS or variant.get("causal") is False


@pytest.mark.parametrize("shape", [(1, 1, 1, POS), (2, 3, POS, POS), (2, 1, 1, POS)], ids=str)
def test_one_row_may_speak_for_all(shape: tuple[int, ...]) -> None:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[..., 4:9] = True
    extents = read_extents(mask, POS)
    assert extents is not None
    for rows in (slice(0, 64), slice(100, 150)):
        assert extents.keys(rows) == extents.everywhere(rows) == slice(4, 9)


def test_what_cannot_be_read_is_taken_as_it_is() -> None:
    mask = additive(by_position())
    assert read_extents(mask.to("meta"), POS) is None
    assert read_extents(mask.clone().requires_grad_(), POS) is None
    assert read_extents(mask[:, :, :1], 1) is None
    seen: list[object] = []
    torch.vmap(lambda m: seen.append(read_extents(m, POS)) or m)(mask[None])
    assert seen == [None]
    assert reach(mask.to("meta")).keys_of(slice(0, 64)) == slice(0, POS)
