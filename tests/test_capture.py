"""`capture` streams activations of a data set to disk, says before how many bytes, goes on after an
interruption, and reads back by name and row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ropebridge import (
    Captured,
    MeanOverQueries,
    TopK,
    TopWeights,
    Watch,
    attach,
    capture,
    plan_capture,
)
from ropebridge.captured import INDEX
from ropebridge_spec import ContractError, UnknownHook

PATTERN, Z, COS = (
    f"blocks.{n}.attn.hook_{name}" for n, name in ((0, "pattern"), (1, "z"), (0, "cos"))
)
LITTLE = 9000
"""Bytes of a shard, which one batch fills or more."""


@pytest.fixture(scope="module")
def bridged() -> Any:
    from conftest import build_model

    return attach(build_model("llama", "sdpa"), verify=False)


@pytest.fixture(scope="module")
def batches() -> list[Any]:
    """Five of twelve positions, and one that is padded and shorter."""
    draw = torch.Generator().manual_seed(0)
    some: list[Any] = [torch.randint(3, 90, (2, 12), generator=draw) for _ in range(5)]
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, :2] = 0
    ids = torch.randint(3, 90, (3, 7), generator=draw)
    return [*some, {"input_ids": ids, "attention_mask": mask}]


def cache_of(bridged: Any, inputs: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        if isinstance(inputs, Tensor):
            return bridged.run_with_cache(inputs, **kwargs)[1]
        return bridged.run_with_cache(**inputs, **kwargs)[1]


class Interrupted(Exception):
    """Stand for a machine that goes down."""


class Breaking(list[Any]):
    """Batches that are whole when they are gone through first, and then break off."""

    def __init__(self, batches: list[Any], at: int) -> None:
        super().__init__(batches)
        self.at, self.times = at, 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        for number, batch in enumerate(super().__iter__()):
            if self.times > 1 and number == self.at:
                raise Interrupted
            yield batch


@pytest.mark.slow
def test_what_is_read_is_what_a_cache_holds(
    bridged: Any, batches: list[Any], tmp_path: Path
) -> None:
    names = [PATTERN, Z, COS]
    captured = capture(bridged, batches, names, tmp_path, shard_bytes=LITTLE, progress=False)
    assert list(captured) == names
    assert captured.rows == len(captured[Z]) == 13
    assert captured.missing == ()
    row = 0
    for number, inputs in enumerate(batches):
        cache = cache_of(bridged, inputs, names_filter=names)
        for name in names:
            assert torch.equal(captured[name].batch(number), cache[name])
        for place in range(cache[Z].shape[0]):
            assert torch.equal(captured[PATTERN][row], cache[PATTERN][place])
            assert torch.equal(captured[Z][row], cache[Z][place])
            assert torch.equal(captured[COS][row], cache[COS][0])
            row += 1
    stacked = captured[Z][3:6]
    assert torch.equal(stacked[1], captured[Z][4])
    assert torch.equal(captured[Z][[5, 3]][1], captured[Z][3])
    assert torch.equal(captured[Z][-1], captured[Z][12])


@pytest.mark.slow
def test_parts_reductions_and_dtype_are_kept(
    bridged: Any, batches: list[Any], tmp_path: Path
) -> None:
    names = [Watch(PATTERN, reduce=TopK(3)), Watch(Z, heads=[2], query=-1)]
    made = {"dtype": torch.float16, "progress": False}
    captured = capture(bridged, batches, names, tmp_path, **made)
    cache = cache_of(bridged, batches[1], names_filter=names, dtype=torch.float16)
    top: Any = captured[PATTERN][3]
    assert isinstance(top, TopWeights)
    assert torch.equal(top.values, cache[PATTERN].values[1])
    assert torch.equal(captured[PATTERN][2:4].keys, cache[PATTERN].keys)
    assert torch.equal(captured[Z][3], cache[Z][1])
    assert captured[Z][3].dtype == torch.float16
    mean = capture(
        bridged,
        batches,
        Watch(PATTERN, reduce=MeanOverQueries()),
        tmp_path / "mean",
        progress=False,
    )
    assert mean[PATTERN][0].shape == (bridged.layers[0].variant.heads, 12)


@pytest.mark.slow
def test_the_bytes_that_were_said_are_those_on_disk(
    bridged: Any, batches: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [PATTERN, Z, Watch("blocks.1.attn.hook_pattern", reduce=TopK(2), query=-1)]
    plan = plan_capture(bridged, batches, names, shard_bytes=60_000)
    assert not list(tmp_path.iterdir())
    captured = capture(bridged, batches, names, tmp_path, shard_bytes=60_000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    taken = sum(t.nbytes for path in shards for t in load_file(path).values())
    assert taken == plan.bytes
    assert len(shards) == len(plan.index.shards) == 2
    said = f"3 hook points of 13 rows in 6 batches: {plan.bytes:,} bytes in 2 shards"
    assert str(plan) == said
    assert said in capsys.readouterr().out
    assert repr(captured) == f"Captured({str(tmp_path)!r}: 3 hook points, 13 rows, 2 of 2 shards)"


@pytest.mark.slow
def test_an_interrupted_capture_goes_on_where_it_was(
    bridged: Any, batches: list[Any], tmp_path: Path
) -> None:
    """Nothing of a shard that was not finished is taken for one, and finished ones do not run
    again."""
    kept = {"shard_bytes": LITTLE, "progress": False}
    with pytest.raises(Interrupted):
        capture(bridged, Breaking(batches, 3), Z, tmp_path, **kept)
    half = Captured(tmp_path)
    assert 0 < len(half.missing) < len(half.index.shards)
    with pytest.raises(ContractError) as error:
        half[Z][12]
    assert "is not captured yet" in str(error.value)
    assert "call capture(...) again" in str(error.value)
    runs: list[int] = []
    counting = bridged.model.register_forward_pre_hook(lambda *_: runs.append(1))
    try:
        whole = capture(bridged, batches, Z, tmp_path, **kept)
        assert len(runs) == len(half.index.batches) - 3
        again = capture(bridged, batches, Z, tmp_path, **kept)
        assert len(runs) == len(half.index.batches) - 3
    finally:
        counting.remove()
    for captured in (whole, again):
        assert captured.missing == ()
        for number, inputs in enumerate(batches):
            cache = cache_of(bridged, inputs, names_filter=Z)
            assert torch.equal(captured[Z].batch(number), cache[Z])
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.mark.slow
def test_another_capture_is_not_written_over(
    bridged: Any, batches: list[Any], tmp_path: Path, build: Any
) -> None:
    capture(bridged, batches, Z, tmp_path, progress=False)

    def refused(*args: Any, **kwargs: Any) -> str:
        with pytest.raises(ContractError) as error:
            capture(*args, tmp_path, progress=False, **kwargs)
        return str(error.value)

    words = refused(bridged, batches, PATTERN)
    assert words == (
        f"{str(tmp_path)!r} holds another capture: it differs in watches, names, batches\n  give"
        " another folder, or take that one away"
    )
    assert "differs in watches, batches" in refused(bridged, batches, Watch(Z, heads=1))
    assert "differs in dtype, batches" in refused(bridged, batches, Z, dtype=torch.float16)
    assert "differs in batches" in refused(bridged, batches[:-1], Z)
    other = attach(build("llama", "sdpa", seed=1), verify=False)
    assert "differs in model" in refused(other, batches, Z)
    assert torch.equal(
        Captured(tmp_path)[Z].batch(0), cache_of(bridged, batches[0], names_filter=Z)[Z]
    )


@pytest.mark.slow
def test_what_cannot_be_captured_is_refused(
    bridged: Any, batches: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(given: Any, names: Any = Z, **kwargs: Any) -> str:
        with pytest.raises(ContractError) as error:
            capture(bridged, given, names, tmp_path / "none", progress=False, **kwargs)
        return str(error.value)

    assert "capture was given Tensor for batches; it is a list of them" in refused(batches[0])
    assert "an iterator of batches, which can be gone through once" in refused(iter(batches))
    assert "capture was given no batches" in refused([])
    assert "batch 0 has (12,) for token ids" in refused([batches[0][0]])
    assert "batch 0 has NoneType for token ids" in refused([{"labels": batches[0]}])
    assert "shard_bytes=0 must be a number of bytes" in refused(batches, shard_bytes=0)
    assert "two parts of" in refused(batches, [Watch(Z, heads=0), Watch(Z, heads=1)])
    with pytest.raises(UnknownHook):
        capture(bridged, batches, "blocks.9.attn.hook_z", tmp_path / "none")
    assert not (tmp_path / "none").exists()

    class Full:
        free = 10

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Full)
    words = refused(batches)
    assert " bytes more, and " in words
    assert " has 10 bytes free; keep fewer hook points" in words


@pytest.mark.slow
def test_shuffled_batches_are_noticed(bridged: Any, batches: list[Any], tmp_path: Path) -> None:
    class Shuffled(list[Any]):
        """Batches in another order each time."""

        times = 0

        def __iter__(self) -> Iterator[Any]:
            self.times += 1
            items = list(super().__iter__())
            return iter(items if self.times == 1 else items[::-1])

    with pytest.raises(ContractError, match="batch 0 is another than when the batches were gone"):
        capture(bridged, Shuffled(batches), Z, tmp_path, progress=False)


def test_a_folder_that_holds_no_capture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"holds no capture: there is no index\.json in it"):
        Captured(tmp_path)
    (tmp_path / INDEX).write_text('{"weight_map": {}}', encoding="utf-8")
    with pytest.raises(ContractError, match="is no index of a capture"):
        Captured(tmp_path)


@pytest.mark.slow
def test_what_is_not_there_is_named(bridged: Any, batches: list[Any], tmp_path: Path) -> None:
    captured = capture(bridged, batches, Z, tmp_path, progress=False)
    with pytest.raises(KeyError, match=r"was not captured; nearest: blocks\.1\.attn\.hook_z"):
        captured["blocks.1.attn.hook_q"]
    with pytest.raises(IndexError, match="has 13 rows, and 13 is none of them"):
        captured[Z][13]
    with pytest.raises(ContractError, match="cannot be stacked; read them one by one"):
        captured[Z][8:12]
