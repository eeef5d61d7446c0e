"""Plan of a run: which questions, as units that a process takes one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cached_property
from hashlib import sha256

import transformers

from ropebridge_conformance.checks import CHECK_BY_NAME
from ropebridge_conformance.judging.bench import available_devices
from ropebridge_conformance.judging.ids import DTYPES, Id
from ropebridge_conformance.judging.judge import plan
from ropebridge_conformance.judging.profiles import PROFILE_BY_NAME, Profile
from ropebridge_conformance.judging.questions import About, Question
from ropebridge_conformance.judging.shards import Shard
from ropebridge_conformance.zoo.names import refuse_unknown_families
from ropebridge_conformance.zoo.scenarios import SCENARIO_BY_ID
from ropebridge_conformance.zoo.specimens import chosen_cases, earlier_of_the_same
from ropebridge_spec import HOOK_BY_NAME, spec_hash


class PlanError(Exception):
    """Report a plan that cannot be made; the message says what was given and what there is."""


@dataclass(frozen=True)
class Selection:
    """Hold what a run is narrowed to. What is empty is not narrowed; families and dtypes are then
    the profile's."""

    families: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    only: tuple[Id, ...] = ()

    def wants(self, question: Question, subject: str = "") -> bool:
        """Return whether a question is to be put to a subject of this name.

        Where no name is said, whether it is to be put to any subject.
        """
        if self.only and not any(one.means(question.id, subject) for one in self.only):
            return False
        pairs = (
            (self.checks, question.check),
            (self.hooks, question.hook),
            (self.scenarios, question.scenario),
        )
        return all(not chosen or value in chosen for chosen, value in pairs)


@dataclass(frozen=True)
class Unit:
    """Hold what one process does at a time: the questions about one layer in one dtype on one
    device, put to one subject."""

    subject: str
    case: str
    dtype: str
    device: str
    about: tuple[About, ...]
    narrowed: Selection

    @property
    def key(self) -> str:
        """Return what tells the unit from others of its plan."""
        return "|".join((self.subject, self.case, self.dtype, self.device))

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """Return its questions, in the order in which they are put."""
        return tuple(
            filter(
                self.narrowed.wants, plan((self.case,), (self.dtype,), (self.device,), self.about)
            )
        )


def units_of(
    subjects: Sequence[str], selection: Selection, profile: Profile = PROFILE_BY_NAME["default"]
) -> list[Unit]:
    """Return every unit of a run, device by device, layer by layer, dtype by dtype, subject by
    subject, so that a process finds the layer built that the units before it were about.

    Raises:
        UnknownFamily: a family that the zoo does not have.
        PlanError: another name that is not there, or nothing is left to ask.
    """
    ids = selection.only
    refuse_unknown_families(selection.families or [one.case for one in ids])
    refuse_unknown("dtype", selection.dtypes, DTYPES)
    refuse_absent_devices(selection.devices)
    refuse_unknown("check", selection.checks, CHECK_BY_NAME)
    refuse_unknown("hook point", selection.hooks, HOOK_BY_NAME)
    refuse_unknown("scenario", selection.scenarios, SCENARIO_BY_ID)
    cases = chosen_cases(selection.families or [one.case for one in ids] or profile.families)
    again = {} if profile.repeated else earlier_of_the_same(cases)
    about: dict[str, tuple[About, ...]] = {
        case.id: ("class",) if case.id in again else ("layer", "class") for case in cases
    }
    dtypes = selection.dtypes or in_order(one.dtype for one in ids) or profile.dtypes
    devices = selection.devices or in_order(one.device for one in ids) or available_devices()
    units = [
        Unit(path, case, dtype, on, kinds, selection)
        for on in devices
        for case, kinds in about.items()
        for dtype in dtypes
        for path in subjects
    ]
    asked = [unit for unit in units if unit.questions]
    refuse_unknown_ids(ids, asked)
    if not asked:
        raise PlanError(
            "there is nothing to ask: no question is of that family, dtype, check, hook point and"
            " scenario\n  leave one of them out"
        )
    return asked


def refuse_unknown(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that is not there, with the nearest and all there are."""
    there = list(known)
    for name in given:
        if name not in there:
            near = ", ".join(get_close_matches(name, there, n=3, cutoff=0.3)) or "none"
            raise PlanError(
                f"no {kind} {name!r}\n  nearest: {near}\n  there are: {', '.join(there)}"
            )


def refuse_absent_devices(devices: Iterable[str]) -> None:
    """Refuse a device that this machine does not have, of whatever number: cuda:1 is a cuda."""
    refuse_unknown("device", [name.split(":")[0] for name in devices], available_devices())


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return each name once, in the order in which they first come."""
    return tuple(dict.fromkeys(names))


def refuse_unknown_ids(ids: Iterable[Id], units: Sequence[Unit]) -> None:
    """Refuse an id that no question of the plan has.

    Raises:
        PlanError: with the nearest ids of the same layer.
    """
    there = {question.id for unit in units for question in unit.questions}
    for one in ids:
        if not any(one.means(known) for known in there):
            known = [str(q.id) for q in plan((one.case,), (one.dtype,), (one.device,))]
            near = get_close_matches(str(one), known, n=3, cutoff=0.3)
            raise PlanError(
                f"no question of this run has the id {one}\n  nearest: {', '.join(near) or 'none'}"
                "\n  a run prints the id of each verdict that is bad"
            )


def plan_hash(units: Sequence[Unit]) -> str:
    """Return twelve hexadecimal digits, the same wherever the same questions are planned: shards of
    one plan have it in common."""
    said = [
        spec_hash(),
        transformers.__version__,
        sorted((unit.key, unit.about) for unit in units),
        asdict(units[0].narrowed),
    ]
    return sha256(json.dumps(said).encode()).hexdigest()[:12]


def part_of(units: Sequence[Unit], shard: Shard | None) -> list[Unit]:
    """Return what of a plan is this machine's.

    Raises:
        ShardError: there are more shards than units.
    """
    return list(units) if shard is None else shard.of(units, lambda unit: unit.key)
