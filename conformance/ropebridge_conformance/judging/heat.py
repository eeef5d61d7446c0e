"""Where in a tensor the error is: error over bound, coarse enough for one line of results."""

from __future__ import annotations

import math
from base64 import b64encode
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from ropebridge_spec import HOOK_BY_NAME, axis_names

ROWS, COLUMNS = 16, 24
"""At most so many cells; each shows the worst of what it covers."""


@dataclass(frozen=True)
class HeatMap:
    """Hold error over bound, worst over the batch.

    axes: what the rows and the columns count. sizes: how many of them each direction had before it
        was made coarse.
    rows, columns: how many cells. cells: base64 of one byte a cell, row by row: 0 where there is no
    error at all, else 128 + 8 log2(error / bound), rounded and kept within 1 to 255; above 128 the
    bound is broken.
    """

    axes: tuple[str, str]
    sizes: tuple[int, int]
    rows: int
    columns: int
    cells: str


def heat_map(ratios: Tensor, hook: str | None) -> HeatMap | None:
    """Return the map of `ratios`, error over bound of every element at a hook point; None for a
    scalar."""
    if ratios.ndim < 2 or ratios.numel() == 0:
        return None
    names = axis_names(HOOK_BY_NAME[hook].axes) if hook is not None and hook in HOOK_BY_NAME else ()
    flat, axes = flattened(
        ratios,
        (
            names
            if len(names) == ratios.ndim
            else tuple(f"axis {axis}" for axis in range(ratios.ndim))
        ),
    )
    rows, columns = min(flat.shape[0], ROWS), min(flat.shape[1], COLUMNS)
    coarse = adaptive_max_pool2d(flat.double().clamp(max=1e300)[None], (rows, columns))[0]
    cells = bytes(level(float(ratio)) for ratio in coarse.flatten())
    return HeatMap(
        axes, (flat.shape[0], flat.shape[1]), rows, columns, b64encode(cells).decode("ascii")
    )


def flattened(ratios: Tensor, names: tuple[str, ...]) -> tuple[Tensor, tuple[str, str]]:
    """Return a tensor as rows by columns: scores and pattern have one row per query of each head,
    all else one row per position."""
    if ratios.ndim == 2:
        return ratios, (names[0], names[1])
    worst = ratios.amax(0)
    split = worst.ndim - 1 if names[-1] == "key" else 1
    rows, columns = names[1 : 1 + split], names[1 + split :]
    return worst.reshape(math.prod(worst.shape[:split]), -1), (" ".join(rows), " ".join(columns))


def level(ratio: float) -> int:
    """Return one byte for a ratio."""
    return 0 if ratio == 0 else max(1, min(255, round(128 + 8 * math.log2(ratio))))
