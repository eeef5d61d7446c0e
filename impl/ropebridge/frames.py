"""Cache as a long table, one row per number: for pandas or polars, whichever is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from ropebridge.bridged import BridgedModel
from ropebridge.extras import MissingExtra, need
from ropebridge.requests import unknown_hook
from ropebridge_spec import RopebridgeError, UnknownHook, axis_names

Library = Literal["pandas", "polars"]
LIBRARIES: tuple[Library, ...] = ("pandas", "polars")
MOST_ROWS = 50_000_000


class FrameError(RopebridgeError, ValueError):
    """Report a cache that cannot be made into a table."""


class Part(TypedDict):
    """Hold one results file: its header and its verdicts."""

    layer: int
    hook: str
    columns: dict[str, Tensor]


GRADIENT = "_grad"
"""What the names of gradients end in, in a cache of `run_with_cache(..., incl_bwd=True)`."""


def to_frame(
    bridged: BridgedModel,
    cache: Mapping[str, Tensor],
    *,
    library: Library | None = None,
    most_rows: int = MOST_ROWS,
) -> Any:
    """Return a cache as a table with one row per number.

    Columns: `layer` (the number in the hook's full name), `hook` (its short name), a column for
    each axis that any of the hooks has, under the contract's names and in its order (`batch`,
    `pos`, `head`, `query`, `key`, ...), and `value`. Where a hook has not an axis its rows have no
    number there: <NA> in pandas (Int32), null in polars. bfloat16 becomes float32, which holds it
    exactly; other dtypes stay.

    Args:
        cache: full hook name -> tensor, as `run_with_cache` gives it, gradients (`{name}_grad`)
            among them.
        library: "pandas" or "polars"; None takes the first of them that is installed.
        most_rows: refuse a larger table; the message says how to keep less.

    Returns: A pandas.DataFrame, its column `hook` a categorical, or a polars.DataFrame. Places
        count from the start of the
        tensor that is given: one that was cut to queries 5 to 9 has queries 0 to 4.

    Raises:
        MissingExtra: neither library is installed, or not the one that is asked for.
        FrameError: too many rows, an empty cache, another library, or a tensor that does not lie as
            its hook point says.
        UnknownHook: a name that is no hook point of this model.
    """
    chosen = choose(library)
    for name, tensor in cache.items():
        if not isinstance(tensor, Tensor):
            raise FrameError(
                f"{name!r} has {type(tensor).__name__} for a tensor; of what bridged.caching()"
                f" recorded pass one for each name: {{{name!r}: recording.joined({name!r})}}"
            )
    rows = sum(tensor.numel() for tensor in cache.values())
    if not cache:
        raise FrameError(
            "the cache is empty; pass what run_with_cache returned second: output, cache ="
            " bridged.run_with_cache(...)"
        )
    if rows > most_rows:
        raise FrameError(
            f"the table would have {rows:,} rows, and most_rows is {most_rows:,}; keep less by"
            " names_filter=, index the tensors, or raise most_rows"
        )
    parts = [part_of(bridged, name, tensor) for name, tensor in cache.items()]
    axes = list(
        dict.fromkeys(axis for part in parts for axis in part["columns"] if axis != "value")
    )
    return (pandas_frame if chosen == "pandas" else polars_frame)(parts, axes)


def choose(library: Library | None) -> Library:
    """Return the library that is asked for, or the first that is installed."""
    if library is not None and library not in LIBRARIES:
        raise FrameError(
            f"library={library!r}; it must be 'pandas' or 'polars', or None for the one that is"
            " installed"
        )
    found = library or next((name for name in LIBRARIES if is_installed(name)), None)
    if found is None:
        raise MissingExtra(
            "a table needs pandas or polars, and neither is installed: pip install"
            " 'ropebridge[frames]' brings both"
        )
    return found


def is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    try:
        return find_spec(package) is not None
    except ValueError:  # it is in sys.modules without a spec, or barred there
        return False


def part_of(bridged: BridgedModel, name: str, tensor: Tensor) -> Part:
    """Return one hook's tensor as columns: its axes' places, and the value."""
    of_values = name.removesuffix(GRADIENT)
    if of_values not in bridged.hook_points:
        raise UnknownHook(unknown_hook(name, list(bridged.hook_points)))
    point = bridged.hook_points[of_values]
    axes = axis_names(point.spec.axes)
    if len(axes) != tensor.ndim:
        raise FrameError(
            f"{name!r} was given a tensor of {tensor.ndim} axes; its hook point has {len(axes)}:"
            f" {' '.join(axes)}. Leave no axis out: index with i:i+1"
        )
    places = torch.meshgrid(
        *(torch.arange(size, dtype=torch.int32) for size in tensor.shape), indexing="ij"
    )
    values = tensor.detach().cpu()
    columns = {
        axis.strip("()").replace(" ", "_"): place.flatten()
        for axis, place in zip(axes, places, strict=True)
    }
    columns["value"] = (values.float() if values.dtype == torch.bfloat16 else values).flatten()
    return Part(layer=point.layer(), hook=name.rsplit(".", 1)[-1], columns=columns)


def pandas_frame(parts: Sequence[Part], axes: Sequence[str]) -> Any:
    """Return the parts one below the other, in pandas."""
    pandas = need("pandas", "frames", "a table")
    partial = {axis for part in parts for axis in axes if axis not in part["columns"]}

    def column(part: Part, axis: str) -> Any:
        if axis not in part["columns"]:
            return pandas.array([pandas.NA] * part["columns"]["value"].numel(), dtype="Int32")
        return pandas.array(
            part["columns"][axis].numpy(), dtype="Int32" if axis in partial else "int32"
        )

    hooks = list(dict.fromkeys(part["hook"] for part in parts))
    frames = []
    for part in parts:
        count = part["columns"]["value"].numel()
        same = {
            "layer": pandas.array([part["layer"]], dtype="int32").repeat(count),
            "hook": pandas.Categorical.from_codes([hooks.index(part["hook"])], hooks).repeat(count),
        }
        frames.append(
            pandas.DataFrame(
                {
                    **same,
                    **{axis: column(part, axis) for axis in axes},
                    "value": part["columns"]["value"].numpy(),
                }
            )
        )
    return pandas.concat(frames, ignore_index=True)


def polars_frame(parts: Sequence[Part], axes: Sequence[str]) -> Any:
    """Return the parts one below the other, in polars."""
    polars = need("polars", "frames", "a table")

    def frame(part: Part) -> Any:
        columns = {name: column.numpy() for name, column in part["columns"].items()}
        same = [
            polars.lit(part["layer"], polars.Int32).alias("layer"),
            polars.lit(part["hook"]).alias("hook"),
        ]
        gaps = [polars.lit(None, polars.Int32).alias(axis) for axis in axes if axis not in columns]
        return (
            polars.DataFrame(columns)
            .with_columns(*same, *gaps)
            .select("layer", "hook", *axes, "value")
        )

    return polars.concat([frame(part) for part in parts], how="vertical_relaxed")
