"""Verdicts: what came of one question. They are never merged into each other."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from importlib import metadata
from typing import Any

import torch
import transformers

from ropebridge_conformance.judging.heat import HeatMap
from ropebridge_conformance.judging.ids import Id
from ropebridge_spec import SPEC_VERSION, spec_hash


class Outcome(StrEnum):
    """Hold what may come of a question.

    PASS: the subject keeps the clause, on an input that could have shown otherwise.
    FAIL: it does not, or it raised.
    UNSUPPORTED: the subject declares that it does not have this.
    KNOWN_FAILURE: it fails as a known-failures file says it does; an unexpected pass is a FAIL.
    NOT_EXERCISED: the question could not be put on this machine.
    VACUOUS: the input could not tell right from wrong. Not a pass.
    JUDGE_ERROR: the judge itself went wrong; the reason is its traceback. Says nothing of the
        subject.
    """

    PASS = "pass"
    FAIL = "fail"
    UNSUPPORTED = "unsupported"
    KNOWN_FAILURE = "known-failure"
    NOT_EXERCISED = "not-exercised"
    VACUOUS = "vacuous"
    JUDGE_ERROR = "judge-error"


BAD = (Outcome.FAIL, Outcome.VACUOUS, Outcome.JUDGE_ERROR)
"""Outcomes that make a run fail."""


@dataclass(frozen=True)
class Verdict:
    """Hold one line of results.

    case: the id of the layer. scenario: how it was called.
    error, bound: of the worst element, where numbers were compared. divergent: the first stage
        outside its bound.
    follows: of a failure that is no cause of its own, the hook point whose fault it follows.
    worst, heat: where a bound is broken, the index of the worst element, and a coarse map of error
        over bound; absent from other lines, as `follows` is.
    """

    subject: str
    clause: str
    check: str
    hook: str | None
    family: str
    case: str
    dtype: str
    device: str
    outcome: Outcome
    error: float | None = None
    bound: float | None = None
    divergent: str | None = None
    seed: int = 0
    reason: str = ""
    worst: tuple[int, ...] | None = None
    heat: HeatMap | None = None
    follows: str | None = None
    scenario: str = ""

    @property
    def id(self) -> str:
        """Return the id of the question, with the subject it was put to.

        `ropebridge check --only` puts it again. It begins with the name of the test that puts it.
        """
        return str(replace(self.question, subject=self.subject))

    @property
    def question(self) -> Id:
        """Return the id of the question, whoever it was put to."""
        return Id(self.check, self.hook, self.case, self.scenario, self.dtype, self.device)

    def line(self) -> str:
        """Return the verdict as one JSON line; infinities and NaN, which JSON has not, as text."""
        fields = {
            key: str(value) if value in (float("inf"), float("-inf")) or value != value else value
            for key, value in vars(self).items()
            if value is not None or key not in ("worst", "heat", "follows")
        }
        if self.heat is not None:
            fields["heat"] = asdict(self.heat)
        return json.dumps(fields)


def read_line(line: str) -> Verdict:
    """Return a verdict from its JSON line."""
    fields = json.loads(line)
    numbers = {
        key: None if fields[key] is None else float(fields[key]) for key in ("error", "bound")
    }
    return Verdict(
        **{**fields, **numbers, "outcome": Outcome(fields["outcome"]), **located(fields)}
    )


def located(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the error is, if the line says it."""
    worst, heat = fields.get("worst"), fields.get("heat")
    return {
        "worst": None if worst is None else tuple(worst),
        "heat": (
            None
            if heat is None
            else HeatMap(**{**heat, "axes": tuple(heat["axes"]), "sizes": tuple(heat["sizes"])})
        ),
    }


def provenance(subjects: Sequence[str], devices: Sequence[str]) -> dict[str, Any]:
    """Return the header of a results file: under what the verdicts were made."""
    return {
        "ropebridge_spec": SPEC_VERSION,
        "spec_hash": spec_hash(),
        "ropebridge": metadata.version("ropebridge"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "subjects": list(subjects),
        "devices": [device_name(device) for device in devices],
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "bf16_reduced_precision": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "fp16_reduced_precision": torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
    }


def device_name(device: str) -> str:
    """Return the device, with the accelerator's name where it has one."""
    return (
        f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device
    )
