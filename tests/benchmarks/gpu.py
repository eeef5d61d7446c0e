"""The bridge on an accelerator: the conformance suite there, and a table of times in half precision
with the kernels that were dispatched.

Run by `make gpu`, in under ten minutes on one card. Writes results/gpu.json and, for the page,
results/gpu.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from benchmarks.contests import EXPLICIT, LINEAR, Contest, agree, contest, decode_layer, edit
from ropebridge import Entropy, TopK

PATTERN = ("hook_pattern",)
LENGTHS = (512, 2048, 8192)
DTYPES = (torch.float16, torch.bfloat16)
ROUNDS, WARM_UP = 15, 3
JUDGING_SECONDS = 330
SHOWN = 3
"""Kernels of each run that are named: those that took the longest."""

Make = Callable[..., Contest]
ROWS: dict[tuple[str, str], Make] = {
    ("nothing", "sdpa"): contest,
    ("q, k, v, rot, z, in and out", "sdpa"): partial(contest, watch=LINEAR),
    ("pattern", "eager"): partial(contest, watch=PATTERN, ours="eager", against="eager"),
    ("scores and pattern, edited", "eager"): partial(
        contest, watch=EXPLICIT, hook=edit, ours="eager", against="eager"
    ),
    ("one head", "sdpa"): partial(contest, watch=PATTERN, part={"heads": 3}),
    ("the last 16 rows", "sdpa"): partial(contest, watch=PATTERN, part={"query": slice(-16, None)}),
    ("top 8 keys", "sdpa"): partial(contest, watch=PATTERN, part={"reduce": TopK(8)}),
    ("entropy", "sdpa"): partial(contest, watch=PATTERN, part={"reduce": Entropy()}),
    ("nothing, backward too", "sdpa"): partial(contest, backward=True),
}
"""What is watched, and what it is set against, of one layer over so many positions."""


@dataclass(frozen=True)
class Measured:
    """Hold one line of the table: medians in milliseconds, peaks in MiB, and the names of the
    kernels that took the longest."""

    watched: str
    against: str
    pos: int
    dtype: str
    ms: float
    ms_of_theirs: float
    peak_mib: float
    peak_mib_of_theirs: float
    kernels: tuple[str, ...]
    kernels_of_theirs: tuple[str, ...]


def wait(device: str) -> None:
    """Wait until the device has done what it was asked to."""
    if device != "cpu":
        torch.cuda.synchronize()


def milliseconds(call: Callable[[], Any], device: str) -> float:
    """Return how long a call takes, until the device has done it."""
    wait(device)
    start = perf_counter()
    call()
    wait(device)
    return 1e3 * (perf_counter() - start)


def peak_mib(call: Callable[[], Any], device: str) -> float:
    """Return the most memory that tensors took in a call, beyond what was held before."""
    if device == "cpu":
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    wait(device)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def kernels(call: Callable[[], Any], device: str) -> tuple[str, ...]:
    """Return the names of the kernels that took the longest in a call."""
    activity = ProfilerActivity.CPU if device == "cpu" else ProfilerActivity.CUDA
    with profile(activities=[activity]) as profiled:
        call()
        wait(device)
    spent = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    events = sorted(profiled.key_averages(), key=lambda event: -getattr(event, spent))
    return tuple(event.key for event in events[:SHOWN])


def measure(
    watched: str, against: str, pos: int, dtype: torch.dtype, made: Contest, device: str
) -> Measured:
    """Return one line: rounds of both runs, one after the other."""
    with torch.no_grad():
        if agree(made.ours(), made.theirs()) is made.edits:
            raise AssertionError(f"{watched}, {pos}, {dtype}: both runs should compute the same")
        pairs = [
            (milliseconds(made.ours, device), milliseconds(made.theirs, device))
            for _ in range(WARM_UP + ROUNDS)
        ][WARM_UP:]
        ours, theirs = (median(times) for times in zip(*pairs, strict=True))
        return Measured(
            watched,
            against,
            pos,
            str(dtype).removeprefix("torch."),
            round(ours, 3),
            round(theirs, 3),
            round(peak_mib(made.ours, device), 1),
            round(peak_mib(made.theirs, device), 1),
            kernels(made.ours, device),
            kernels(made.theirs, device),
        )


def table(
    device: str, lengths: tuple[int, ...] = LENGTHS, dtypes: tuple[torch.dtype, ...] = DTYPES
) -> Iterator[Measured]:
    """Yield the lines of the table."""
    for dtype in dtypes:
        for (watched, against), make in ROWS.items():
            for pos in lengths:
                made = make(pos, dtype=dtype, device=device)
                yield measure(watched, against, pos, dtype, made, device)
        step = decode_layer(dtype=dtype, device=device)
        yield measure("nothing, a step after 4096", "sdpa", 1, dtype, step, device)


def as_markdown(heading: str, lines: list[Measured]) -> str:
    """Return the table as Markdown, for docs/BENCHMARKS.md."""
    rows = [
        heading,
        "",
        "| watched | against | S | dtype | time | ms | peak MiB | kernels that took the longest |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | --- |",
    ]
    for line in lines:
        names = ", ".join(f"`{name[:60]}`" for name in line.kernels)
        rows.append(
            f"| {line.watched} | {line.against} | {line.pos} | {line.dtype} |"
            f" {line.ms / line.ms_of_theirs:.2f} | {line.ms:.2f} / {line.ms_of_theirs:.2f} |"
            f" {line.peak_mib:.0f} / {line.peak_mib_of_theirs:.0f} | {names} |"
        )
    return "\n".join(rows) + "\n"


def judge(results: Path) -> str:
    """Run the conformance suite on the accelerator, and return its last lines."""
    words = ["check", "--device", "cuda", "--jobs", str(os.cpu_count() or 1)]
    words += ["--results", str(results)]
    code = "from ropebridge_conformance.command import main; main()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            timeout=JUDGING_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not finished after {JUDGING_SECONDS} s; the verdicts so far are in {results}"
    return "\n".join([*done.stdout.splitlines()[-6:], *done.stderr.splitlines()[-6:]])


def main(words: list[str]) -> int:
    """Judge and measure on the accelerator, and write results into the folder that is the one
    argument."""
    if len(words) != 1:
        print("gpu.py takes one argument: the folder for its results")
        return 2
    if not torch.cuda.is_available():
        print("there is no accelerator here: torch.cuda.is_available() is False; nothing was run")
        return 2
    folder = Path(words[0])
    folder.mkdir(parents=True, exist_ok=True)
    heading = (
        f"`make gpu`, {date.today().isoformat()}, {torch.cuda.get_device_name()}, torch"
        f" {torch.__version__}, transformers {transformers.__version__},"
        f" Python {sys.version.split()[0]}"
    )
    print(heading, flush=True)
    lines = list(table("cuda"))
    (folder / "gpu.json").write_text(
        json.dumps({"heading": heading, "lines": [asdict(line) for line in lines]}, indent=1)
    )
    (folder / "gpu.md").write_text(as_markdown(heading, lines))
    print(as_markdown(heading, lines), flush=True)
    print(judge(folder / "gpu.jsonl"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
