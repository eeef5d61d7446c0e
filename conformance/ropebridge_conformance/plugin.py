"""Pytest plugin: `-p ropebridge_conformance`. One test per question, with ids that read as
sentences.

The reference and everything that needs it are imported inside the hooks: jaxtyping's
`--jaxtyping-packages` checks only what is imported after it (a test says so).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ropebridge_conformance.judging.ids import DTYPES

if TYPE_CHECKING:
    from ropebridge_conformance.judging.bench import Bench
    from ropebridge_conformance.judging.verdicts import Verdict

DEFAULT_SUBJECTS = (
    "ropebridge_conformance.subjects.reference:Factory",
    "ropebridge.subject:Factory",
)
PROFILES = ("smoke", "default", "soak")

KNOWN = pytest.StashKey[Any]()
RECORDER, DESK = pytest.StashKey[Any](), pytest.StashKey[Any]()
BENCHES = pytest.StashKey[dict[str, Any]]()


PREFIX = "--ropebridge-"
"""How every option begins: other people's suites have a `--device` and a `--dtype` of their own."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "subject": {
        "action": "append",
        "metavar": "PKG.MOD:FACTORY",
        "help": "what to judge; may be repeated (default: reference and bridge)",
    },
    "family": {
        "action": "append",
        "metavar": "NAME",
        "help": "only this case or family, or 'all'; may be repeated (default: the core)",
    },
    "dtype": {
        "action": "append",
        "choices": DTYPES,
        "help": "only this dtype; may be repeated (default: all)",
    },
    "device": {
        "action": "append",
        "metavar": "DEVICE",
        "help": "only this device; may be repeated (default: all that are present)",
    },
    "profile": {
        "choices": PROFILES,
        "help": "how much is asked and drawn, where nothing narrows it (default: default)",
    },
    "shard": {
        "metavar": "I/N",
        "help": "only the i-th of n parts of the suite, for many machines",
    },
    "timeout": {
        "type": float,
        "metavar": "SECONDS",
        "help": "put questions in another process, which is stopped after so long (default: in"
        " this one)",
    },
    "results": {"type": Path, "metavar": "FILE", "help": "write verdicts as JSON lines"},
    "known-failures": {
        "type": Path,
        "metavar": "FILE",
        "help": "TOML file of failures that are expected",
    },
}
"""The options of the suite: name -> what pytest is told of it. `ropebridge check` has the same
without the prefix."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the suite to pytest's."""
    group = parser.getgroup("ropebridge", "hooks on rotary attention")
    for name, about in OPTIONS.items():
        group.addoption(PREFIX + name, **about)


def option(config: pytest.Config, name: str) -> Any:
    """Return what was given for an option of the suite, named without its prefix."""
    return config.getoption(PREFIX + name)


def subjects_of(config: pytest.Config) -> tuple[str, ...]:
    """Return the import paths of the subjects."""
    return tuple(option(config, "subject") or DEFAULT_SUBJECTS)


def pytest_configure(config: pytest.Config) -> None:
    """Let hypothesis draw as many examples as the profile says, where one is given."""
    if option(config, "profile"):
        from ropebridge_conformance.judging.profiles import PROFILE_BY_NAME, use_hypothesis_profile

        use_hypothesis_profile(PROFILE_BY_NAME[option(config, "profile")])


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse a subject that cannot be loaded, and a family or device that is not there, before
    anything runs."""
    from ropebridge_conformance.judging.known_failures import (
        KnownFailuresError,
        read_known_failures,
    )
    from ropebridge_conformance.judging.planning import PlanError, refuse_absent_devices
    from ropebridge_conformance.judging.shards import ShardError, read_shard
    from ropebridge_conformance.subjects.loading import SubjectError, load_subject
    from ropebridge_conformance.zoo.names import UnknownFamily, refuse_unknown_families

    path = option(session.config, "known-failures")
    try:
        for subject in option(session.config, "subject") or ():
            load_subject(subject)
        refuse_unknown_families(option(session.config, "family"))
        refuse_absent_devices(option(session.config, "device") or ())
        session.config.stash[KNOWN] = read_known_failures(path) if path else []
        read_shard(option(session.config, "shard") or "1/1")
    except (SubjectError, KnownFailuresError, PlanError, UnknownFamily, ShardError) as error:
        raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test for each question about each subject."""
    if "question" not in metafunc.fixturenames:
        return
    from ropebridge_conformance.judging.judge import plan
    from ropebridge_conformance.subjects.loading import load_subject

    config = metafunc.config
    check = metafunc.function.__name__.removeprefix("test_")
    families, dtypes, devices = narrowed(config)
    questions = [
        question for question in plan(families, dtypes, devices) if question.check == check
    ]
    subjects = subjects_of(config)
    mine = this_shard(config)
    pairs = [
        (subject, question)
        for subject in subjects
        for question in questions
        if (subject, question.case, question.dtype, question.device) in mine
    ]
    tag = {subject: load_subject(subject).name if len(subjects) > 1 else "" for subject in subjects}
    metafunc.parametrize(
        ("subject_bench", "question"),
        pairs,
        ids=[replace(q.id, subject=tag[s]).layer for s, q in pairs],
        indirect=["subject_bench"],
    )


def narrowed(config: pytest.Config) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the families, dtypes and devices to ask about."""
    from ropebridge_conformance.judging.bench import available_devices
    from ropebridge_conformance.judging.profiles import PROFILE_BY_NAME

    profile = PROFILE_BY_NAME[option(config, "profile") or "default"]
    families, dtypes, devices = (
        tuple(option(config, name) or ()) for name in ("family", "dtype", "device")
    )
    return (
        families or profile.families,
        dtypes or profile.dtypes,
        devices or tuple(available_devices()),
    )


def this_shard(config: pytest.Config) -> set[tuple[str, str, str, str]]:
    """Return the layers to ask about: subject, case, dtype, device. Dealt out as `ropebridge check
    --shard` deals them."""
    from ropebridge_conformance.judging.shards import ShardError, read_shard
    from ropebridge_conformance.zoo.specimens import chosen_cases

    families, dtypes, devices = narrowed(config)
    layers = [
        (path, case.id, dtype, on)
        for path in subjects_of(config)
        for on in devices
        for case in chosen_cases(families)
        for dtype in dtypes
    ]
    shard = option(config, "shard")
    try:
        return set(read_shard(shard).of(layers, "|".join) if shard else layers)
    except ShardError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the questions layer by layer, so that what one needs the next finds made.

    The questions take the places that questions had; every other test stays where it is. Each can
    be chosen by its id with `-k`, whoever it is put to: this comes before pytest reads `-k`.
    """
    places = [place for place, item in enumerate(items) if question_of(item) is not None]
    for place, item in zip(places, sorted((items[at] for at in places), key=layer), strict=True):
        items[place] = item
        item.extra_keyword_matches.add(str(question_of(item).id))


def question_of(item: pytest.Item) -> Any:
    """Return the question that a test puts; None where it is a test of another kind."""
    from ropebridge_conformance.judging.questions import Question

    question = getattr(getattr(item, "callspec", None), "params", {}).get("question")
    return question if isinstance(question, Question) else None


def layer(item: Any) -> tuple[str, ...]:
    """Return what a question's layer is sorted by: subject, case, dtype, device."""
    question = question_of(item)
    subject = item.callspec.params["subject_bench"]
    return (subject, question.case, question.dtype, question.device)


@pytest.fixture
def subject_bench(request: pytest.FixtureRequest) -> Bench:
    """Return the bench of the subject a question is about."""
    from ropebridge_conformance.judging.bench import Bench
    from ropebridge_conformance.judging.judge import single_threaded
    from ropebridge_conformance.subjects.loading import load_subject

    single_threaded()
    held = request.config.stash.setdefault(BENCHES, {})
    if request.param not in held:
        held[request.param] = Bench(load_subject(request.param))
    found: Bench = held[request.param]
    return found


def expect_pass(bench: Bench, question: Any, config: pytest.Config) -> None:
    """Put the question; note the verdict; let the test end as the verdict says."""
    from ropebridge_conformance.judging.verdicts import BAD, Outcome

    verdict = verdict_on(bench, question, config)
    note(verdict, config)
    if verdict.outcome in BAD:
        pytest.fail(f"{verdict.outcome}: clause {verdict.clause}: {verdict.reason}", pytrace=False)
    if verdict.outcome == Outcome.KNOWN_FAILURE:
        pytest.xfail(verdict.reason)
    if verdict.outcome in (Outcome.UNSUPPORTED, Outcome.NOT_EXERCISED):
        pytest.skip(f"{verdict.outcome}: {verdict.reason}")


def verdict_on(bench: Bench, question: Any, config: pytest.Config) -> Verdict:
    """Return the verdict, from this process, or with `--ropebridge-timeout` from another."""
    from ropebridge_conformance.judging.judge import judge
    from ropebridge_conformance.judging.pool import Desk, put
    from ropebridge_conformance.judging.worker import Task

    timeout = option(config, "timeout")
    if timeout is None:
        return judge(bench, question, config.stash[KNOWN])
    if DESK not in config.stash:
        config.stash[DESK] = Desk(timeout, Counter())
    path = next(path for path, held in config.stash[BENCHES].items() if held is bench)
    key = "|".join((path, question.case, question.dtype, question.device))
    known: tuple[Any, ...] = tuple(config.stash[KNOWN])
    return put(config.stash[DESK], Task(path, bench.subject.name, key, (question,), known))


def note(verdict: Verdict, config: pytest.Config) -> None:
    """Put a verdict on disk, if results are wanted; under pytest-xdist each worker writes its own
    file, named after it."""
    from ropebridge_conformance.results.files import Recorder, header

    path: Path | None = option(config, "results")
    if path is None:
        return
    if RECORDER not in config.stash:
        worker = getattr(config, "workerinput", {}).get("workerid")
        names = {subject: bench.subject.name for subject, bench in config.stash[BENCHES].items()}
        first = header(subjects_of(config), narrowed(config)[2], {"names": names})
        config.stash[RECORDER] = Recorder(
            path.with_stem(f"{path.stem}-{worker}") if worker else path, first
        )
    config.stash[RECORDER].note(verdict)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Close the results, and end the other process, where there are any."""
    for key in (RECORDER, DESK):
        if key in session.config.stash:
            session.config.stash[key].close()
