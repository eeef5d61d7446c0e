"""A cache as a long table: every number in its row, in both libraries."""

import re

import pytest
import torch

from ropebridge import UnknownHook, attach
from ropebridge.extras import MissingExtra
from ropebridge.frames import FrameError, to_frame

pytestmark = pytest.mark.slow

LIBRARIES = ("pandas", "polars")


@pytest.fixture(scope="module")
def bridged(build):
    with attach(build("llama")) as bridged:
        yield bridged


@pytest.fixture(scope="module")
def cache(bridged, tokens):
    names = ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_k"]
    return bridged.run_with_cache(tokens, names_filter=names)[1]


@pytest.fixture(params=LIBRARIES)
def library(request):
    pytest.importorskip(request.param)
    return request.param


def rows_of(frame):
    """Every row as a plain mapping, what is missing as None."""
    rows = (
        frame.to_dicts()
        if hasattr(frame, "to_dicts")
        else frame.astype(object).where(frame.notna(), None).to_dict("records")
    )
    return [dict(row) for row in rows]


def test_a_row_is_a_number_with_its_place(bridged, cache, library):
    frame = to_frame(bridged, cache, library=library)
    assert type(frame).__module__.partition(".")[0] == library
    assert list(frame.columns) == [
        "layer",
        "hook",
        "batch",
        "head",
        "query",
        "key",
        "pos",
        "kv_head",
        "d_head",
        "value",
    ]
    rows = rows_of(frame)
    assert len(rows) == sum(tensor.numel() for tensor in cache.values())
    for row in rows[:: len(rows) // 200]:
        tensor = cache[f"blocks.{row['layer']}.attn.{row['hook']}"]
        places = (
            ("batch", "head", "query", "key")
            if row["hook"] == "hook_pattern"
            else ("batch", "pos", "kv_head", "d_head")
        )
        assert tensor[tuple(row[axis] for axis in places)].item() == row["value"]
        assert all(
            row[axis] is None
            for axis in ("head", "query", "key", "pos", "kv_head", "d_head")
            if axis not in places
        )


def test_it_can_be_asked_what_tables_are_asked(bridged, cache, library):
    """The weights of each query add up to 1."""
    frame = to_frame(
        bridged,
        {"blocks.0.attn.hook_pattern": cache["blocks.0.attn.hook_pattern"]},
        library=library,
    )
    keys = ["batch", "head", "query"]
    sums = (
        frame.groupby(keys)["value"].sum()
        if library == "pandas"
        else frame.drop("hook").group_by(keys).sum()["value"]
    )
    assert len(sums) == 2 * 6 * 12
    assert all(abs(total - 1) < 1e-5 for total in sums)
    assert not any(row["query"] is None for row in rows_of(frame[:5]))


def test_places_are_whole_numbers_and_half_precision_is_kept_exactly(bridged, library):
    z = torch.tensor([0.1, -2.0]).bfloat16().view(1, 1, 1, 2)
    frame = to_frame(bridged, {"blocks.0.attn.hook_z": z}, library=library)
    assert [
        str(kind).lower()
        for kind in (frame.dtypes if library == "polars" else frame.dtypes.tolist())
    ] == (
        [
            "int32",
            "string" if library == "polars" else "category",
            "int32",
            "int32",
            "int32",
            "int32",
            "float32",
        ]
    )
    assert [row["value"] for row in rows_of(frame)] == [float(x) for x in z.flatten()]


def test_a_flat_norms_axis_is_one_column(build, tokens, library):
    with attach(build("olmo2")) as bridged:
        _, cache = bridged.run_with_cache(tokens, names_filter="blocks.0.attn.hook_q_normed")
        frame = to_frame(bridged, cache, library=library)
    assert list(frame.columns) == ["layer", "hook", "batch", "pos", "head_d_head", "value"]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {}, "the cache is empty; pass what run_with_cache returned second"),
        (
            {"blocks.0.attn.hook_z": torch.zeros(1, 5, 6, 10)},
            {"most_rows": 299},
            "the table would have 300 rows, and most_rows is 299; keep less by names_filter=",
        ),
        (
            {"blocks.0.attn.hook_z": torch.zeros(5, 6, 10)},
            {},
            (
                "'blocks.0.attn.hook_z' was given a tensor of 3 axes; its hook point has 4: batch"
                " pos head d_head_v."
            ),
        ),
        (
            {"blocks.0.attn.hook_z": torch.zeros(1, 5, 6, 10)},
            {"library": "arrow"},
            "library='arrow'; it must be 'pandas' or 'polars'",
        ),
    ],
)
def test_what_makes_no_table_is_refused(bridged, change, options, message):
    pytest.importorskip("pandas")
    with pytest.raises(FrameError, match=re.escape(message)):
        to_frame(bridged, change, **options)


def test_a_name_that_is_no_hook_is_refused(bridged):
    pytest.importorskip("pandas")
    with pytest.raises(UnknownHook, match=r"there is no hook point 'blocks.9.attn.hook_z'"):
        to_frame(bridged, {"blocks.9.attn.hook_z": torch.zeros(1)})


@pytest.mark.parametrize(
    ("barred", "library", "message"),
    [
        (
            LIBRARIES,
            None,
            (
                "a table needs pandas or polars, and neither is installed: pip install"
                " 'ropebridge[frames]' brings both"
            ),
        ),
        (
            ("polars",),
            "polars",
            "a table needs polars, which the extra brings: pip install 'ropebridge[frames]'",
        ),
        (
            ("pandas",),
            "pandas",
            "a table needs pandas, which the extra brings: pip install 'ropebridge[frames]'",
        ),
    ],
)
def test_without_a_library_it_says_what_to_install(bridged, cache, bar, barred, library, message):
    bar(*barred)
    with pytest.raises(MissingExtra) as error:
        to_frame(bridged, cache, library=library)
    assert str(error.value) == message


def test_polars_serves_where_pandas_is_not_installed(monkeypatch, bridged, cache):
    pytest.importorskip("polars")
    monkeypatch.setattr("ropebridge.frames.is_installed", lambda name: name == "polars")
    assert type(to_frame(bridged, cache)).__module__.startswith("polars")


def test_gradients_of_a_cache_are_rows_under_their_own_name(bridged, tokens, library):
    name = "blocks.0.attn.hook_z"
    _, cache = bridged.run_with_cache(tokens, names_filter=name, labels=tokens, incl_bwd=True)
    rows = rows_of(to_frame(bridged, cache, library=library))
    assert {row["hook"] for row in rows} == {"hook_z", "hook_z_grad"}
    assert len(rows) == 2 * cache[name].numel()


def test_a_recording_is_refused_with_what_to_pass(bridged, tokens):
    with bridged.caching("blocks.0.attn.hook_z") as recording:
        bridged(tokens)
    with pytest.raises(FrameError, match=r"has tuple for a tensor(.|\n)*recording\.joined\("):
        to_frame(bridged, recording)
