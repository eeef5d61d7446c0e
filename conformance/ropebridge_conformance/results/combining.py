"""Results files of one run put together: shards from many machines, or what the workers of
pytest-xdist left."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ropebridge_conformance.judging.shards import read_shard
from ropebridge_conformance.judging.verdicts import Verdict
from ropebridge_conformance.results.files import read_results

SAME = {
    "subjects": "each subject has results of its own",
    "ropebridge_spec": "judge them all under one version of the contract",
    "spec_hash": "judge them all under one version of the contract",
    "transformers": "run every shard with the same version",
    "plan": (
        "give every shard the same --profile, --family, --dtype, --device, --check, --hook and"
        " --scenario"
    ),
}
"""What must be the same in every header, and what to do where it is not."""

Header = Mapping[str, object]


class CombineError(Exception):
    """Report results that do not belong together, or of which some are missing; the message says
    which and what to do."""


@dataclass(frozen=True)
class Part:
    """Hold one results file: its header and its verdicts."""

    path: Path
    header: Header
    verdicts: Sequence[Verdict]


def combined(paths: Sequence[Path]) -> tuple[dict[str, object], list[Verdict]]:
    """Return the provenance and the verdicts of several results files as those of one.

    A verdict that several files have is kept once. In the provenance, what differs between files is
    a list.

    Raises:
        ResultsError: a file holds no results.
        CombineError: they are of different runs, contradict each other, or some are missing or cut
            short.
    """
    parts = [Part(path, *read_results(path)) for path in paths]
    refuse_different(parts)
    refuse_incomplete(parts)
    refuse_missing_shards(parts)
    verdicts = merged(parts)
    return {**joined_headers(parts), "shard": None, "expected": len(verdicts)}, verdicts


def refuse_different(parts: Sequence[Part]) -> None:
    """Refuse files whose headers say that they are of different runs."""
    first = parts[0]
    for part in parts[1:]:
        for key, advice in SAME.items():
            if part.header.get(key) != first.header.get(key):
                raise CombineError(
                    f"these results do not belong together: {key} differs\n  {first.path}:"
                    f" {first.header.get(key)}\n  {part.path}: {part.header.get(key)}\n  {advice}"
                )


def refuse_incomplete(parts: Sequence[Part]) -> None:
    """Refuse a file that has fewer verdicts than its header says."""
    for part in parts:
        expected = part.header.get("expected")
        if expected is not None and expected != len(part.verdicts):
            raise CombineError(
                f"{part.path} has {len(part.verdicts)} of {expected} verdicts: its run was cut"
                " short\n  run it again"
            )


def refuse_missing_shards(parts: Sequence[Part]) -> None:
    """Refuse shards of which some are not there, and name those."""
    shards = [read_shard(str(part.header["shard"])) for part in parts if part.header.get("shard")]
    if not shards:
        return
    if len(shards) < len(parts) or len({shard.count for shard in shards}) > 1:
        said = "\n".join(
            f"  {part.path}: shard {part.header.get('shard') or 'none: it is a whole run'}"
            for part in parts
        )
        raise CombineError(
            f"these are not the shards of one run\n{said}\n  give the files of --shard 1/n to n/n"
        )
    missing = sorted(set(range(1, shards[0].count + 1)) - {shard.index for shard in shards})
    if missing:
        raise CombineError(
            f"missing: shard {', '.join(f'{index}/{shards[0].count}' for index in missing)}\n  give"
            " their results files too"
        )


def merged(parts: Sequence[Part]) -> list[Verdict]:
    """Return every verdict once.

    Raises:
        CombineError: two files say different things of one question.
    """
    known: dict[tuple[object, ...], tuple[Verdict, Path]] = {}
    for part in parts:
        for verdict in part.verdicts:
            before, path = known.setdefault(question_of(verdict), (verdict, part.path))
            if before.outcome != verdict.outcome:
                raise CombineError(
                    f"two verdicts on one question: clause {verdict.clause}, {verdict.id}\n"
                    f"  {path}: {before.outcome}\n  {part.path}: {verdict.outcome}\n  leave out the"
                    " file that is out of date"
                )
    return [verdict for verdict, _ in known.values()]


def question_of(verdict: Verdict) -> tuple[object, ...]:
    """Return what was asked, as a key."""
    return (
        verdict.subject,
        verdict.clause,
        verdict.check,
        verdict.hook,
        verdict.case,
        verdict.scenario,
        verdict.dtype,
        verdict.device,
        verdict.seed,
    )


def joined_headers(parts: Sequence[Part]) -> dict[str, object]:
    """Return one header: a value where all agree, else the list of the different ones."""
    keys = dict.fromkeys(key for part in parts for key in part.header)
    return {key: joined([part.header.get(key) for part in parts]) for key in keys}


def joined(values: Sequence[object]) -> object:
    """Return the value, if it is one, or the different ones; of lists their union, of mappings
    too."""
    if all(isinstance(value, list) for value in values):
        return list(
            dict.fromkeys(item for value in values if isinstance(value, list) for item in value)
        )
    if all(isinstance(value, dict) for value in values):
        return {
            key: item for value in values if isinstance(value, dict) for key, item in value.items()
        }
    different = list({json.dumps(value): value for value in values}.values())
    return different[0] if len(different) == 1 else different
