"""`capture`: run a data set through a model, and stream what hook points hold to disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ropebridge.bridged import BridgedModel
from ropebridge.captured import PARTS_OF_ONE, Batch, Captured, Index, key_of, shard_path
from ropebridge.reductions import TopWeights
from ropebridge.requests import NamesFilter, find_watches, narrow_all, one_for_each_name
from ropebridge.sizes import bytes_needed
from ropebridge_spec import ContractError, Numbers, Watch

SHARD_BYTES = 512 * 2**20
SAMPLE = 256
"""Numbers of each weight that tell one model from another."""

Inputs = Tensor | Mapping[str, Any]
"""Token ids (batch, pos), or the keywords of the model's call: input_ids, attention_mask, ..."""


@dataclass(frozen=True)
class CapturePlan:
    """Hold what a capture will write, known before anything runs.

    index: what, and where it will lie. bytes: of all tensors, to the byte. watches: what of which
        hook points.
    """

    index: Index
    watches: tuple[Watch, ...]

    @property
    def bytes(self) -> int:
        """Return how many bytes all tensors take."""
        return sum(batch.bytes for batch in self.index.batches)

    def __str__(self) -> str:
        index = self.index
        rows = sum(batch.rows for batch in index.batches)
        return (
            f"{len(index.names)} hook points of {rows:,} rows in {len(index.batches):,} batches:"
            f" {self.bytes:,} bytes in {len(index.shards):,} shards"
        )


def plan_capture(
    bridged: BridgedModel,
    batches: Iterable[Inputs],
    names_filter: NamesFilter = None,
    *,
    heads: Numbers = None,
    query: Numbers = None,
    key: Numbers = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> CapturePlan:
    """Return what `capture` with these arguments will write; nothing runs.

    Raises:
        AttachError, ContractError, UnknownHook: as `capture`.
    """
    if not isinstance(shard_bytes, int) or shard_bytes < 1:
        raise ContractError(f"shard_bytes={shard_bytes!r} must be a number of bytes, 1 or more")
    points = bridged.hook_points
    part = {"heads": heads, "query": query, "key": key}
    watches = one_for_each_name(narrow_all(points, find_watches(points, names_filter), part))
    planned: list[Batch] = []
    shard, filled = 0, 0
    for number, inputs in enumerate(again_and_again(batches)):
        rows, pos = sizes_of(inputs, number)
        size = bytes_needed(bridged, watches, rows, pos, dtype=dtype)
        if filled and filled + size > shard_bytes:
            shard, filled = shard + 1, 0
        filled += size
        planned.append(Batch(rows, pos, digest_of(inputs), size, shard))
    if not planned:
        raise ContractError(
            "capture was given no batches; give a list of token ids, or of keywords"
        )
    index = Index(
        model_digest(bridged),
        tuple(map(repr, watches)),
        tuple(str(watch.name) for watch in watches),
        None if dtype is None else str(dtype),
        tuple(planned),
    )
    return CapturePlan(index, tuple(watches))


def capture(
    bridged: BridgedModel,
    batches: Iterable[Inputs],
    names_filter: NamesFilter,
    folder: str | Path,
    *,
    heads: Numbers = None,
    query: Numbers = None,
    key: Numbers = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = True,
) -> Captured:
    """Run a data set through the model, without gradients, and stream what hook points hold to
    shards of safetensors in a folder.

    A call that was interrupted is made again with the same arguments, and goes on where it was:
    what lies in finished shards is not run again. A shard is written beside the model, which runs
    on.

    Args:
        bridged: the model.
        batches: token ids (batch, pos), or keywords of the model's call with `input_ids` or
            `inputs_embeds`; a list, or anything that can be gone through twice in the same order.
        names_filter, heads, query, key: what to keep, as in `run_with_cache`.
        folder: made where it is not there.
        dtype: in which floating-point numbers are kept; None leaves them as they are.
        shard_bytes: the size from which a file is closed.
        progress: whether to say the exact sizes, and to show a bar.

    Returns:
        `Captured`, which reads them by name and row.

    Raises:
        AttachError: the bridge was detached.
        ContractError: the folder holds another capture; there is no room for it; the batches
            cannot be gone through twice, or are none; a hook point held another number of bytes
            than its positions say.
        UnknownHook: no hook point of that name.
    """
    plan = plan_capture(
        bridged,
        batches,
        names_filter,
        heads=heads,
        query=query,
        key=key,
        dtype=dtype,
        shard_bytes=shard_bytes,
    )
    folder = Path(folder)
    captured = begin(plan, folder)
    missing = set(captured.missing)
    refuse_full(folder, sum(b.bytes for b in plan.index.batches if b.shard in missing))
    if progress:
        tqdm.write(str(plan))
    write_missing(bridged, batches, plan, captured, progress)
    return captured


def write_missing(
    bridged: BridgedModel,
    batches: Iterable[Inputs],
    plan: CapturePlan,
    captured: Captured,
    progress: bool,
) -> None:
    """Run what is not captured yet, and write each shard beside the model, which runs on."""
    missing = set(captured.missing)
    done = sum(batch.rows for batch in plan.index.batches if batch.shard not in missing)
    with (
        ThreadPoolExecutor(1) as writer,
        tqdm(total=captured.rows, initial=done, unit="row", disable=not progress) as bar,
    ):
        writing: Future[None] | None = None
        for number, tensors in shards_of(bridged, batches, plan, missing, bar):
            if writing is not None:
                writing.result()  # one shard waits at most
            writing = writer.submit(write_shard, shard_path(captured.folder, number), tensors)
        if writing is not None:
            writing.result()


def begin(plan: CapturePlan, folder: Path) -> Captured:
    """Return what lies in a folder of this capture; its index is written where there is none.

    Raises:
        ContractError: the folder holds another capture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "index.json").exists():
        plan.index.write(folder)
    captured = Captured(folder)
    other = plan.index.other(captured.index)
    if other:
        raise ContractError(
            f"{str(folder)!r} holds another capture: it differs in {other}\n  give another folder,"
            " or take that one away"
        )
    return captured


def refuse_full(folder: Path, size: int) -> None:
    """Refuse to begin where the disk has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ContractError(
            f"the capture takes {size:,} bytes more, and {str(folder)!r} has {free:,} bytes free;"
            " keep fewer hook points, a part (query=, heads=), a reduction, or dtype=torch.float16"
        )


def shards_of(
    bridged: BridgedModel,
    batches: Iterable[Inputs],
    plan: CapturePlan,
    missing: set[int],
    bar: Any,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield the number and the tensors of each shard that is missing.

    Raises:
        ContractError: the batches are others than when they were gone through first, or a hook
            point held another number of bytes than was planned.
    """
    planned = plan.index.batches
    held: dict[str, Tensor] = {}
    for number, inputs in enumerate(again_and_again(batches)):
        expected = planned[number] if number < len(planned) else None
        if expected is None or digest_of(inputs) != expected.digest:
            raise ContractError(
                f"batch {number} is another than when the batches were gone through first; give"
                " them in one order, shuffle=False"
            )
        if expected.shard in missing:
            tensors = tensors_of(bridged, inputs, plan)
            refuse_other_size(number, sum(tensor.nbytes for tensor in tensors.values()), expected)
            held.update({key_of(number, name): tensor for name, tensor in tensors.items()})
            bar.update(expected.rows)
        last = number + 1 == len(planned) or planned[number + 1].shard != expected.shard
        if last and held:
            yield expected.shard, held
            held = {}


def tensors_of(bridged: BridgedModel, inputs: Inputs, plan: CapturePlan) -> dict[str, Tensor]:
    """Return what the hook points hold for one batch, by name, in the memory of the processor."""
    positional, named = ((inputs,), {}) if isinstance(inputs, Tensor) else ((), dict(inputs))
    if bridged.accepts("use_cache"):
        named.setdefault("use_cache", False)
    dtype = None if plan.index.dtype is None else getattr(torch, plan.index.dtype.split(".")[1])
    with torch.no_grad():
        _, cache = bridged.run_with_cache(
            *positional, names_filter=plan.watches, device="cpu", dtype=dtype, **named
        )
    tensors: dict[str, Tensor] = {}
    for name, kept in cache.items():
        if isinstance(kept, TopWeights):
            pairs = zip(PARTS_OF_ONE, kept, strict=True)
            tensors |= {f"{name}/{part}": each.contiguous() for part, each in pairs}
        else:
            tensors[name] = kept.contiguous()
    return tensors


def refuse_other_size(number: int, size: int, planned: Batch) -> None:
    """Refuse a batch that takes another number of bytes than was said."""
    if size != planned.bytes:
        raise ContractError(
            f"batch {number} of {planned.rows} rows and {planned.pos} positions takes {size:,}"
            f" bytes, and {planned.bytes:,} were planned: its inputs make another number of"
            " positions than input_ids has; capture the part of the model that is given"
            " inputs_embeds"
        )


def write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a shard; it is there whole, or not at all."""
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished)
    unfinished.replace(path)


def again_and_again(batches: Iterable[Inputs]) -> Iterable[Inputs]:
    """Return batches that can be gone through more than once.

    Raises:
        ContractError: they cannot, or are one batch.
    """
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise ContractError(
            f"capture was given {type(batches).__name__} for batches; it is a list of them, each"
            " token ids (batch, pos) or keywords of the model's call"
        )
    if isinstance(batches, Iterator):
        raise ContractError(
            "capture was given an iterator of batches, which can be gone through once alone: sizes"
            " are known, and an interrupted capture goes on, only of batches that are there again;"
            " give a list, or a DataLoader with shuffle=False"
        )
    return batches


def sizes_of(inputs: Inputs, number: int) -> tuple[int, int]:
    """Return how many rows and positions a batch has.

    Raises:
        ContractError: it has neither input_ids nor inputs_embeds, or of another shape.
    """
    tensor: Any = inputs
    if isinstance(inputs, Mapping):
        tensor = inputs.get("input_ids")
        tensor = inputs.get("inputs_embeds") if tensor is None else tensor
    if not isinstance(tensor, Tensor) or tensor.ndim < 2:
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ContractError(
            f"batch {number} has {shape} for token ids; it must be a tensor (batch, pos), or"
            " keywords with input_ids or inputs_embeds"
        )
    return int(tensor.shape[0]), int(tensor.shape[1])


def digest_of(inputs: Inputs) -> str:
    """Return a digest of all that a batch holds."""
    digest = hashlib.sha256()
    named = {"": inputs} if isinstance(inputs, Tensor) else inputs
    for name, value in sorted(named.items()):
        digest.update(name.encode())
        digest.update(numbers_of(value) if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()[:16]


def numbers_of(tensor: Tensor) -> bytes:
    """Return dtype, shape and numbers of a tensor."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    words = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    return words + (flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")


def model_digest(bridged: BridgedModel) -> str:
    """Return a digest of the model's configuration, and of some numbers of each weight."""
    config: Any = getattr(bridged.model, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode())
    for name, weight in bridged.model.named_parameters():
        flat = weight.detach().flatten()
        digest.update(name.encode() + numbers_of(flat[:: max(1, flat.numel() // SAMPLE)]))
    return digest.hexdigest()[:16]
