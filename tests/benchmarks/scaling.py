"""Growth of time and memory with the number of positions: fitted exponents, and a picture.

Run by `make bench-scaling`. An exponent of 1 is linear, of 2 quadratic; both are fitted to the
longer half of the lengths, where fixed costs no longer count.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.contests import Contest, Run, contest
from benchmarks.memory import memory_of

LENGTHS = (256, 512, 1024, 2048, 4096)
ROUNDS, WARM_UP = 7, 2
WAYS: dict[str, Callable[[int], Contest]] = {
    "nothing watched": contest,
    "pattern watched": lambda pos: contest(pos, watch=["hook_pattern"], against="eager"),
    "one head watched": lambda pos: contest(pos, watch=["hook_pattern"], part={"heads": 3}),
}
THEIRS = {"nothing watched": "Hugging Face sdpa", "pattern watched": "Hugging Face eager"}


def milliseconds(calls: Mapping[str, Run]) -> dict[str, float]:
    """Return the median time of each call, all timed in turn: what disturbs one disturbs all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARM_UP + ROUNDS):
        for name, call in calls.items():
            start = perf_counter()
            call()
            if turn >= WARM_UP:
                times[name].append(1e3 * (perf_counter() - start))
    return {name: median(all_times) for name, all_times in times.items()}


def exponent(lengths: tuple[int, ...], values: list[float]) -> float:
    """Return n in `values ~ lengths ** n`, of the longer half."""
    half = len(lengths) // 2
    slope, _ = np.polyfit(np.log(lengths[half:]), np.log(values[half:]), 1)
    return float(slope)


@torch.no_grad()
def measured() -> dict[str, tuple[list[float], list[float]]]:
    """Return name -> (milliseconds, peak MiB), one of each for every length."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for pos in LENGTHS:
        calls: dict[str, Run] = {}
        for name, make in WAYS.items():
            made = make(pos)
            calls |= {name: made.ours} | ({THEIRS[name]: made.theirs} if name in THEIRS else {})
        for name, time in milliseconds(calls).items():
            times, peaks = found.setdefault(name, ([], []))
            times.append(time)
            peaks.append(memory_of(calls[name]).peak / 2**20)
    return found


def picture(found: dict[str, tuple[list[float], list[float]]], path: Path) -> None:
    """Write a picture of time and memory over length, both axes logarithmic."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for place, (axes, title) in enumerate(
        zip(figure.subplots(1, 2), ("milliseconds", "peak MiB"), strict=True)
    ):
        for name, values in found.items():
            label = f"{name}: {exponent(LENGTHS, values[place]):.2f}"
            axes.loglog(LENGTHS, values[place], marker="o", label=label)
        axes.set(xlabel="positions", ylabel=title, xticks=LENGTHS, xticklabels=LENGTHS)
        axes.minorticks_off()
        axes.legend(title="fitted exponent")
    figure.savefig(path, dpi=120)


def main(words: list[str]) -> int:
    """Print the exponents, and write the picture where the one argument says."""
    if len(words) != 1:
        print("scaling.py takes one argument: where to write the picture")
        return 2
    found = measured()
    for name, (times, peaks) in found.items():
        print(f"{name}: time {exponent(LENGTHS, times):.2f}, memory {exponent(LENGTHS, peaks):.2f}")
        print("  ms " + ", ".join(f"{pos}: {t:.1f}" for pos, t in zip(LENGTHS, times, strict=True)))
        mib = zip(LENGTHS, peaks, strict=True)
        print("  MiB " + ", ".join(f"{pos}: {peak:.1f}" for pos, peak in mib))
    picture(found, Path(words[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
