"""Judge of hooks on rotary attention: a pytest plugin and a command line that judge any
implementation, stage by stage.

pytest -p ropebridge_conformance --pyargs ropebridge_conformance \\
    --ropebridge-subject package.module:Factory
ropebridge check package.module:Factory
"""

from importlib.util import find_spec

if find_spec("pytest") is not None:
    from ropebridge_conformance.plugin import (
        pytest_addoption,
        pytest_collection_modifyitems,
        pytest_configure,
        pytest_generate_tests,
        pytest_sessionfinish,
        pytest_sessionstart,
        subject_bench,
    )

    __all__ = [
        "pytest_addoption",
        "pytest_collection_modifyitems",
        "pytest_configure",
        "pytest_generate_tests",
        "pytest_sessionfinish",
        "pytest_sessionstart",
        "subject_bench",
    ]
