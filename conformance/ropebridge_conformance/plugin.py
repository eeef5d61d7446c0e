"""The pytest plugin: `-p ropebridge_conformance`. One test a question, with ids that read as
sentences.

The reference and everything that needs it are imported inside the hooks: jaxtyping's
`--jaxtyping-packages` checks only what is imported after it (a test says so).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ropebridge_conformance.bench import Bench
    from ropebridge_conformance.verdicts import Verdict

DEFAULT_SUBJECTS = (
    "ropebridge_conformance.subjects.reference:Factory",
    "ropebridge.subject:Factory",
)
PROFILES = ("smoke", "default", "soak")
DTYPES = ("float32", "bfloat16", "float16", "float64")

KNOWN = pytest.StashKey[Any]()
RECORDER, DESK = pytest.StashKey[Any](), pytest.StashKey[Any]()
BENCHES = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the suite."""
    group = parser.getgroup("ropebridge", "hooks on rotary attention")
    group.addoption(
        "--subject",
        action="append",
        metavar="PKG.MOD:FACTORY",
        help="what to judge; may be repeated (default: reference and bridge)",
    )
    group.addoption(
        "--family",
        action="append",
        metavar="NAME",
        help="only this case or family, or 'all'; may be repeated (default: the core)",
    )
    group.addoption(
        "--dtype",
        action="append",
        choices=DTYPES,
        help="only this dtype; may be repeated (default: all)",
    )
    group.addoption(
        "--device",
        action="append",
        metavar="DEVICE",
        help="only this device; may be repeated (default: all that are present)",
    )
    group.addoption(
        "--profile",
        choices=PROFILES,
        help="how much is asked and drawn, where nothing narrows it (default: default)",
    )
    group.addoption(
        "--shard", metavar="I/N", help="only the i-th of n parts of the suite, for many machines"
    )
    group.addoption(
        "--check-timeout",
        type=float,
        metavar="SECONDS",
        help=(
            "put questions in another process, which is stopped after so long (default: in this"
            " one)"
        ),
    )
    group.addoption("--results", type=Path, metavar="FILE", help="write verdicts as JSON lines")
    group.addoption(
        "--known-failures",
        type=Path,
        metavar="FILE",
        help="TOML file of failures that are expected",
    )


def subjects_of(config: pytest.Config) -> tuple[str, ...]:
    """The import paths of the subjects."""
    return tuple(config.getoption("--subject") or DEFAULT_SUBJECTS)


def pytest_configure(config: pytest.Config) -> None:
    """With `--profile`, hypothesis draws as many examples as the profile says."""
    if config.getoption("--profile"):
        from ropebridge_conformance.profiles import PROFILE, use_hypothesis_profile

        use_hypothesis_profile(PROFILE[config.getoption("--profile")])


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse a subject that cannot be loaded, and a family that is not there, before anything
    runs."""
    from ropebridge_conformance.bench import SubjectError, load_subject
    from ropebridge_conformance.known_failures import KnownFailuresError, read_known_failures
    from ropebridge_conformance.names import UnknownFamily, refuse_unknown_families
    from ropebridge_conformance.shards import ShardError, read_shard

    path = session.config.getoption("--known-failures")
    try:
        for subject in session.config.getoption("--subject") or ():
            load_subject(subject)
        refuse_unknown_families(session.config.getoption("--family"))
        session.config.stash[KNOWN] = read_known_failures(path) if path else []
        read_shard(session.config.getoption("--shard") or "1/1")
    except (SubjectError, KnownFailuresError, UnknownFamily, ShardError) as error:
        raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each question about each subject."""
    if "question" not in metafunc.fixturenames:
        return
    from ropebridge_conformance.bench import load_subject
    from ropebridge_conformance.judge import plan

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
    tag = {
        subject: f"-{load_subject(subject).name}" if len(subjects) > 1 else ""
        for subject in subjects
    }
    metafunc.parametrize(
        ("subject_bench", "question"),
        pairs,
        ids=[f"{q.id}{tag[s]}" for s, q in pairs],
        indirect=["subject_bench"],
    )


def narrowed(config: pytest.Config) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The families, dtypes and devices to ask about."""
    from ropebridge_conformance.bench import available_devices
    from ropebridge_conformance.profiles import PROFILE

    profile = PROFILE[config.getoption("--profile") or "default"]
    families, dtypes, devices = (
        tuple(config.getoption(name) or ()) for name in ("--family", "--dtype", "--device")
    )
    return (
        families or profile.families,
        dtypes or profile.dtypes,
        devices or tuple(available_devices()),
    )


def this_shard(config: pytest.Config) -> set[tuple[str, str, str, str]]:
    """The layers to ask about: subject, case, dtype, device. Dealt out as `ropebridge check
    --shard` deals them."""
    from ropebridge_conformance.shards import ShardError, read_shard
    from ropebridge_conformance.zoo import chosen_cases

    families, dtypes, devices = narrowed(config)
    layers = [
        (path, case.id, dtype, on)
        for path in subjects_of(config)
        for on in devices
        for case in chosen_cases(families)
        for dtype in dtypes
    ]
    shard = config.getoption("--shard")
    try:
        return set(read_shard(shard).of(layers, "|".join) if shard else layers)
    except ShardError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ask layer by layer, so that what one question needs the next finds made; other tests stay
    where they are."""

    from ropebridge_conformance.questions import Question

    def layer(item: pytest.Item) -> tuple[str, ...]:
        params = getattr(getattr(item, "callspec", None), "params", {})
        question = params.get("question")
        return (
            (params["subject_bench"], question.case, question.dtype, question.device)
            if isinstance(question, Question)
            else ()
        )

    items.sort(key=layer)


@pytest.fixture
def subject_bench(request: pytest.FixtureRequest) -> Bench:
    """The bench of the subject a question is about."""
    from ropebridge_conformance.bench import Bench, load_subject
    from ropebridge_conformance.judge import single_threaded

    single_threaded()
    held = request.config.stash.setdefault(BENCHES, {})
    if request.param not in held:
        held[request.param] = Bench(load_subject(request.param))
    found: Bench = held[request.param]
    return found


def expect_pass(bench: Bench, question: Any, config: pytest.Config) -> None:
    """Put the question; note the verdict; let the test end as the verdict says."""
    from ropebridge_conformance.verdicts import BAD, Outcome

    verdict = verdict_on(bench, question, config)
    note(verdict, config)
    if verdict.verdict in BAD:
        pytest.fail(f"{verdict.verdict}: clause {verdict.clause}: {verdict.reason}", pytrace=False)
    if verdict.verdict == Outcome.KNOWN_FAILURE:
        pytest.xfail(verdict.reason)
    if verdict.verdict in (Outcome.UNSUPPORTED, Outcome.NOT_EXERCISED):
        pytest.skip(f"{verdict.verdict}: {verdict.reason}")


def verdict_on(bench: Bench, question: Any, config: pytest.Config) -> Verdict:
    """The verdict, from this process, or with `--check-timeout` from another."""
    from ropebridge_conformance.judge import judge
    from ropebridge_conformance.pool import Desk, put
    from ropebridge_conformance.worker import Task

    timeout = config.getoption("--check-timeout")
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
    from ropebridge_conformance.results import Recorder, header

    path: Path | None = config.getoption("--results")
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
