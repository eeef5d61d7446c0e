"""The pytest plugin: `-p ropebridge_conformance`. One test a question, with ids that read as sentences.

The reference and everything that needs it are imported inside the hooks: jaxtyping's `--jaxtyping-packages` checks only
what is imported after it (a test says so).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ropebridge_conformance.bench import Bench

DEFAULT_SUBJECTS = ("ropebridge_conformance.subjects.reference:Factory", "ropebridge.subject:Factory")
DTYPES = ("float32", "bfloat16", "float16", "float64")

KNOWN = pytest.StashKey[Sequence[Any]]()
VERDICTS = pytest.StashKey[list[Any]]()
BENCHES = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the suite."""
    group = parser.getgroup("ropebridge", "hooks on rotary attention")
    group.addoption("--subject", action="append", metavar="PKG.MOD:FACTORY", help="what to judge; may be repeated (default: reference and bridge)")
    group.addoption("--family", action="append", metavar="NAME", help="only this case or family, or 'all'; may be repeated (default: the core)")
    group.addoption("--dtype", action="append", choices=DTYPES, help="only this dtype; may be repeated (default: all)")
    group.addoption("--device", action="append", metavar="DEVICE", help="only this device; may be repeated (default: all that are present)")
    group.addoption("--results", type=Path, metavar="FILE", help="write verdicts as JSON lines")
    group.addoption("--known-failures", type=Path, metavar="FILE", help="TOML file of failures that are expected")


def subjects_of(config: pytest.Config) -> tuple[str, ...]:
    """The import paths of the subjects."""
    return tuple(config.getoption("--subject") or DEFAULT_SUBJECTS)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse a subject that cannot be loaded, and a family that is not there, before anything runs."""
    from ropebridge_conformance.bench import SubjectError, load_subject
    from ropebridge_conformance.known_failures import KnownFailuresError, read_known_failures
    from ropebridge_conformance.names import UnknownFamily, refuse_unknown_families

    path = session.config.getoption("--known-failures")
    try:
        for subject in session.config.getoption("--subject") or ():
            load_subject(subject)
        refuse_unknown_families(session.config.getoption("--family"))
        session.config.stash[KNOWN] = read_known_failures(path) if path else []
    except (SubjectError, KnownFailuresError, UnknownFamily) as error:
        raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each question about each subject."""
    if "question" not in metafunc.fixturenames:
        return
    from ropebridge_conformance.bench import available_devices, load_subject
    from ropebridge_conformance.judge import plan

    config = metafunc.config
    check = metafunc.function.__name__.removeprefix("test_")
    chosen = (config.getoption("--family"), config.getoption("--dtype") or DTYPES, config.getoption("--device") or available_devices())
    questions = [question for question in plan(*chosen) if question.check == check]
    subjects = subjects_of(config)
    pairs = [(subject, question) for subject in subjects for question in questions]
    tag = {subject: f"-{load_subject(subject).name}" if len(subjects) > 1 else "" for subject in subjects}
    metafunc.parametrize(("subject_bench", "question"), pairs, ids=[f"{q.id}{tag[s]}" for s, q in pairs], indirect=["subject_bench"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ask layer by layer, so that what one question needs the next finds made; other tests stay where they are."""

    from ropebridge_conformance.questions import Question

    def layer(item: pytest.Item) -> tuple[str, ...]:
        params = getattr(getattr(item, "callspec", None), "params", {})
        question = params.get("question")
        return (params["subject_bench"], question.case, question.dtype, question.device) if isinstance(question, Question) else ()

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
    from ropebridge_conformance.judge import judge
    from ropebridge_conformance.verdicts import BAD, Outcome

    verdict = judge(bench, question, config.stash[KNOWN])
    config.stash.setdefault(VERDICTS, []).append(verdict)
    if verdict.verdict in BAD:
        pytest.fail(f"{verdict.verdict}: clause {verdict.clause}: {verdict.reason}", pytrace=False)
    if verdict.verdict == Outcome.KNOWN_FAILURE:
        pytest.xfail(verdict.reason)
    if verdict.verdict in (Outcome.UNSUPPORTED, Outcome.NOT_EXERCISED):
        pytest.skip(f"{verdict.verdict}: {verdict.reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the verdicts; under pytest-xdist each worker writes its own file, named after it."""
    path: Path | None = session.config.getoption("--results")
    verdicts = session.config.stash.get(VERDICTS, [])
    if path is None or not verdicts:
        return
    from ropebridge_conformance.results import write_results

    worker = getattr(session.config, "workerinput", {}).get("workerid")
    path = path.with_stem(f"{path.stem}-{worker}") if worker else path
    write_results(path, verdicts, subjects_of(session.config), sorted({v.device for v in verdicts}))
