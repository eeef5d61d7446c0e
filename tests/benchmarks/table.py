"""Table of a run of the benchmarks, and its comparison with the committed one.

Run by `make bench` and `make bench-compare`: reads what pytest-benchmark wrote, and keeps of it
what the table needs: ratios, milliseconds, peaks, and what they were measured on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

BASELINE = Path(__file__).parent / "baseline.json"
COMMAND = "make bench"
NOISE = 1.1
"""By how much a ratio may be larger than the committed one before the comparison marks it."""


def summary(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a run: where it was made, and each row's figures."""
    rows = []
    for bench in run["benchmarks"]:
        info = bench["extra_info"]
        theirs = info["peak_of_theirs"]
        rows.append(
            {
                "row": info["row"],
                "against": info["against"],
                "pos": info["pos"],
                "target": info["target"],
                "ratio": rounded(info["ratio"]),
                "ms": round(1e3 * bench["stats"]["median"], 2),
                "ms_of_theirs": rounded(info["theirs"], 1e3),
                "peak_ratio": rounded(info["peak"] / theirs if theirs else None),
                "peak_mib": round(info["peak"] / 2**20, 1),
                "largest_mib": round(info["largest"] / 2**20, 2),
                "rounds": bench["stats"]["rounds"],
            }
        )
    return {
        "command": COMMAND,
        "date": date.today().isoformat(),
        "machine": f"{run['machine_info']['cpu'].get('brand_raw', 'unknown processor')},"
        f" {torch.get_num_threads()} threads",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__},"
        f" Python {sys.version.split()[0]}",
        "rows": rows,
    }


def rounded(number: float | None, times: float = 1.0) -> float | None:
    """Return a number to three places; None where there is none."""
    return None if number is None else round(times * number, 3)


def shown(number: float | None, form: str = ".2f") -> str:
    """Return a number as the table has it; a line where there is none."""
    return "-" if number is None else format(number, form)


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells a row and column from others."""
    return row["row"], row["against"], row["pos"]


def as_table(run: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> Table:
    """Return a table of a run; beside an earlier one's ratios where there is one."""
    table = Table(title=f"{run['machine']}; {run['versions']}; {run['date']}; {run['command']}")
    columns = ["watched", "against", "S", "time", "aimed at", "ms", "peak memory", "largest"]
    for column in [*columns, *(["before"] if before else [])]:
        table.add_column(column, justify="left" if column in columns[:2] else "right")
    earlier = {key(row): row for row in before["rows"]} if before else {}
    for row in run["rows"]:
        missed = row["target"] is not None and row["ratio"] > row["target"]
        cells = [
            row["row"],
            row["against"],
            str(row["pos"]),
            shown(row["ratio"]) + (" !" if missed else ""),
            "" if row["target"] is None else f"{row['target']:.2f}",
            f"{row['ms']:.1f} / {shown(row['ms_of_theirs'], '.1f')}",
            shown(row["peak_ratio"]),
            f"{row['largest_mib']:.1f} MiB",
        ]
        if before:
            old = earlier.get(key(row))
            slower = old is not None and (row["ratio"] or 0) > NOISE * (old["ratio"] or 1)
            cells.append("new" if old is None else shown(old["ratio"]) + (" !" if slower else ""))
        table.add_row(*cells)
    return table


def as_markdown(run: Mapping[str, Any]) -> str:
    """Return the table as Markdown, for docs/BENCHMARKS.md."""
    lines = [
        f"`{run['command']}`, {run['date']}, {run['machine']}, {run['versions']}",
        "",
        "| watched | against | S | time | aimed at | ms | peak memory | peak | largest tensor |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in run["rows"]:
        target = "" if row["target"] is None else f"{row['target']:.2f}"
        missed = row["target"] is not None and row["ratio"] > row["target"]
        ratio = f"**{row['ratio']:.2f}**" if missed else shown(row["ratio"])
        lines.append(
            f"| {row['row']} | {row['against']} | {row['pos']} | {ratio} | {target} |"
            f" {row['ms']:.1f} / {shown(row['ms_of_theirs'], '.1f')} | {shown(row['peak_ratio'])} |"
            f" {row['peak_mib']:.0f} MiB | {row['largest_mib']:.1f} MiB |"
        )
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Print the table of a run, `table.py run.json`; with `--compare` beside the committed one's,
    with `--keep` as the new committed one, with `--markdown` for the page. Of several files the
    rows of a later one stand in place of an earlier one's."""
    paths = [word for word in words if not word.startswith("--")]
    if not paths:
        print("table.py takes a file that pytest-benchmark wrote: --benchmark-json=FILE")
        return 2
    runs = [summary(json.loads(Path(path).read_text())) for path in paths]
    rows = {key(row): row for run in runs for row in run["rows"]}
    run = {**runs[-1], "rows": list(rows.values())}
    if "--markdown" in words:
        print(as_markdown(run))
        return 0
    before = json.loads(BASELINE.read_text()) if "--compare" in words else None
    Console(width=140).print(as_table(run, before))
    if "--keep" in words:
        BASELINE.write_text(json.dumps(run, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
