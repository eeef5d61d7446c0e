"""What is known of an attention class beyond what its live modules show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ropebridge_spec.variant import Projections


@dataclass(frozen=True)
class NormKind:
    """What a family's q/k norm is, and under which names its modules lie; whether a module has it, and its eps, are read from the module."""

    kind: Literal["rms", "layer"] = "rms"
    over: Literal["head", "flat"] = "head"
    weight: Literal["scale", "one_plus"] = "scale"
    per_head: bool = False
    rounds_before_weight: bool = False
    q: str = "q_norm"
    k: str = "k_norm"


@dataclass(frozen=True)
class RotaryKind:
    """What attributes cannot show of a family's rotation.

    partial: the class rotates the leading `partial_rotary_factor` of a head, as its config says, and not always all of it.
    where: a layer rotates if any of these dotted attribute paths is true on its module; "!" before a path negates it.
        Empty: every layer rotates.
    """

    pairing: Literal["half", "interleaved"] = "half"
    table: Literal["full", "repeated", "half"] = "full"
    precision: Literal["input", "float32"] = "input"
    partial: bool = False
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """What one attention class computes, beyond what its live modules show.

    `window`, `softcap`, `sinks` and `output_dropout` are dotted attribute paths on the module, with "?" at the end where it may be missing.
    A value that the class sets but does not pass on (Gemma 3's softcap) has no path here. `source` is the transformers file that the mathematics was read from.
    """

    source: str = ""
    norm: NormKind | None = None
    rotary: RotaryKind = RotaryKind()
    window: str | None = None
    softcap: str | None = None
    sinks: str | None = None
    output_dropout: str | None = None
    projections: Projections = field(default_factory=Projections)
