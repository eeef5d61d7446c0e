"""Id of a question: the name of its test, which reports print and `--only` reads."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

DTYPES = ("float32", "bfloat16", "float16", "float64")
PLAIN_CALL = "prefill"
"""The scenario that an id leaves out: a layer called once, as it most often is."""
SHAPE = re.compile(r"(?:.*::)?test_(?P<check>\w+)\[(?P<layer>[^\[\]]+)\]", re.DOTALL)


class IdError(Exception):
    """Report a text that is no id; the message says what was given and how an id looks."""


@dataclass(frozen=True)
class Id:
    """Hold the parts of an id: `test_{check}[{hook}-{case}-{scenario}-{dtype}-{device}-{subject}]`.

    hook: None where the question is about the layer as a whole.
    subject: the name of the one subject that is meant; "" where every subject of the run is.
    """

    check: str
    hook: str | None
    case: str
    scenario: str
    dtype: str
    device: str
    subject: str = ""

    @property
    def layer(self) -> str:
        """Return what stands in the brackets: hook_rot_q-gemma3_local-bfloat16-cpu."""
        scenario = "" if self.scenario == PLAIN_CALL else self.scenario
        parts = (self.hook, self.case, scenario, self.dtype, self.device, self.subject)
        return "-".join(part for part in parts if part)

    def means(self, other: Id, subject: str = "") -> bool:
        """Return whether this id means the question `other`, put to a subject of this name.

        A name that is not said, here or there, is any subject's.
        """
        whose = not self.subject or not subject or self.subject == subject
        return whose and replace(self, subject="") == replace(other, subject="")

    def __str__(self) -> str:
        return f"test_{self.check}[{self.layer}]"


def read_id(text: str) -> Id:
    """Return the parts of an id, with or without a pytest file and `::` before it.

    Raises:
        IdError: the text is no id.
    """
    match = SHAPE.fullmatch(text.strip())
    parts = match["layer"].split("-") if match else []
    dtypes = [place for place, part in enumerate(parts) if part in DTYPES]
    before = parts[: dtypes[0]] if dtypes else []
    hook = before.pop(0) if before and before[0].startswith("hook_") else None
    if match is None or not 1 <= len(before) <= 2 or len(parts) < dtypes[0] + 2:
        raise IdError(
            f"{text!r} is no id of a question\n  an id is the name of a test, as reports print it:"
            " test_a_stage_gives_the_value_of_its_clause[hook_rot_q-llama-float32-cpu]"
        )
    case, scenario = before if len(before) == 2 else (before[0], PLAIN_CALL)
    dtype, device = parts[dtypes[0] : dtypes[0] + 2]
    subject = "-".join(parts[dtypes[0] + 2 :])
    return Id(match["check"], hook, case, scenario, dtype, device, subject)
