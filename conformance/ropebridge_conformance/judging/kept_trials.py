"""Trials of mutants, kept on disk as they are made: while the judge is the same they are not made
again, and a run that was interrupted goes on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import torch
import transformers

import ropebridge_conformance
import ropebridge_reference
import ropebridge_spec
from ropebridge_conformance.judging.trial import Trial
from ropebridge_conformance.judging.verdicts import read_line

PACKAGES = (ropebridge_spec, ropebridge_reference, ropebridge_conformance)
IDLE = (
    "results",
    "real",
    "cli.py",
    "cli_results.py",
    "cli_soak.py",
    "cli_mutants.py",
    "cli_common.py",
)
"""What of the judge has no part in a trial: folders, and files at its top."""


@dataclass(frozen=True)
class Control:
    """Hold what became of one kind of run that is right, in one dtype.

    name: of the kind. made: how many verdicts or runs there were. wrong: how many of them were
        called wrong.
    """

    name: str
    dtype: str
    made: int
    wrong: int


class KeptTrialsError(Exception):
    """Report a file that holds no trials, and is left as it is; the message says what to do."""


class KeptTrials:
    """Hold the trials and controls of one judge, by name and dtype, and a file of them.

    What the file holds of another judge is forgotten, as is everything where all is to be made
    again. A line that was not written to its end is not counted.

    Raises:
        KeptTrialsError: the file is none of trials; nothing is written to it.
    """

    def __init__(self, path: Path, *, again: bool = False) -> None:
        self.made: dict[tuple[str, str], Trial | Control] = {}
        judge = json.dumps({"judge": judge_hash()})
        lines = whole_lines(path)
        refuse_other_files(path, lines)
        kept = [] if again or lines[:1] != [judge] else lines[1:]
        for line in kept:
            self._remember(made_of(line))
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in (judge, *kept)), encoding="utf-8")

    def note(self, made: Trial | Control) -> None:
        """Remember a trial or a control, on disk too."""
        self._remember(made)
        with self._path.open("a", encoding="utf-8") as file:
            print(line_of(made), file=file)

    def _remember(self, made: Trial | Control) -> None:
        self.made[made.name, made.dtype] = made


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a file that were written to their end; none where there is no file."""
    if not path.exists():
        return []
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def refuse_other_files(path: Path, lines: list[str]) -> None:
    """Refuse a file that is there and does not begin as a file of trials does."""
    empty = not path.exists() or path.stat().st_size == 0
    if not empty and not (lines and lines[0].startswith('{"judge": ')):
        raise KeptTrialsError(
            f"{path} is no file of trials, which begins with the hash of a judge; it is left as it"
            " is\n  give --kept another file, or take this one away"
        )


def line_of(made: Trial | Control) -> str:
    """Return a trial or a control as one JSON line."""
    if isinstance(made, Control):
        return json.dumps({"control": asdict(made)})
    killer = None if made.killer is None else made.killer.line()
    return json.dumps({"trial": {**vars(made), "killer": killer}})


def made_of(line: str) -> Trial | Control:
    """Return what a JSON line says."""
    said = json.loads(line)
    if "control" in said:
        return Control(**said["control"])
    fields = said["trial"]
    killer = None if fields["killer"] is None else read_line(fields["killer"])
    return Trial(**{**fields, "killer": killer})


def judge_hash() -> str:
    """Return twelve hexadecimal digits of the sources that a trial depends on, and of the versions
    it runs with."""
    digest = sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for package in PACKAGES:
        assert package.__file__ is not None
        root = Path(package.__file__).parent
        for path in sorted(root.rglob("*.py")):
            within = path.relative_to(root)
            if package is not ropebridge_conformance or within.parts[0] not in IDLE:
                digest.update(str(within).encode() + path.read_bytes())
    return digest.hexdigest()[:12]
