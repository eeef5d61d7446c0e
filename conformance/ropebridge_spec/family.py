"""What is known of an attention class beyond what its live modules show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ropebridge_spec.variant import Calling, Projections, Source


@dataclass(frozen=True)
class NormKind:
    """What a family's norm is, and under which names its modules lie; whether a module has it, and
    its eps, are read from the module.

    flat_if: path of the condition that makes it a norm over all heads at once, or None.
    """

    kind: Literal["rms", "layer"] = "rms"
    over: Literal["head", "flat"] = "head"
    weight: Literal["scale", "one_plus", "none"] = "scale"
    bias: bool = False
    per_head: bool = False
    apart: bool = False
    rounds_before_weight: bool = False
    after_rotation: bool = False
    flat_if: str | None = None
    q: str = "q_norm"
    k: str = "k_norm"


@dataclass(frozen=True)
class RotaryKind:
    """What attributes cannot show of a family's rotation.

    partial: the class rotates the leading `partial_rotary_factor` of a head, as its config says,
        and not always all of it.
    width: path of how many dimensions rotate, where the module says it itself; or None.
    interleaved_if: path of the switch that makes the pairing interleaved, or None.
    values: path of the switch by which values are rotated too, or None.
    where: a layer rotates if any of these conditions holds on its module (`ropebridge_spec.paths`).
        Empty: every layer rotates.
    """

    pairing: Literal["half", "interleaved"] = "half"
    table: Literal["full", "repeated", "half", "complex"] = "full"
    precision: Literal["input", "float32"] = "input"
    end: Literal["leading", "trailing"] = "leading"
    direction: Literal["forward", "backward"] = "forward"
    partial: bool = False
    width: str | None = None
    interleaved_if: str | None = None
    values: str | None = None
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class GateKind:
    """What a family's gate is; whether it has one for each head or each channel is read from the
    module's width."""

    module: str = "gate_proj"
    activation: Literal["sigmoid", "softplus"] = "sigmoid"
    in_query: bool = False
    bias: str | None = None


@dataclass(frozen=True)
class LatentKind:
    """Multi-head latent attention: its norm, and the paths of its factors. Ranks and widths are
    read from the module."""

    norm: NormKind = NormKind(rounds_before_weight=True, q="q_a_layernorm", k="kv_a_layernorm")
    rotary_norm: NormKind | None = None
    q_scale: str | None = None
    kv_scale: str | None = None
    q_beside: bool = False
    q_up: str = "q_b_proj"


@dataclass(frozen=True)
class SelectorKind:
    """What picks a family's keys: the module that does, what it gives, the path of its block's
    size, and the argument in which picks are handed on."""

    picks: Literal["keys", "mask", "blocks"] = "keys"
    module: str = "indexer"
    block: str | None = None
    through: str | None = None


@dataclass(frozen=True)
class TemperatureKind:
    """A factor on the query that grows with position: where its numbers stand, and on which layers
    it is in force."""

    beta: str | None = None
    length: str | None = None
    shift: int = 0
    counted: bool = False
    given: str | None = None
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class SharedKind:
    """Keys and values that some layers leave and others take: the argument they pass through, and
    the paths that say which layer does what."""

    through: str = "shared_kv_states"
    takes: str = "is_kv_shared_layer"
    leaves: str = "store_full_length_kv"


@dataclass(frozen=True)
class Family:
    """What one attention class computes, beyond what its live modules show.

    `window`, `chunk`, `softcap`, `sinks`, `clip`, `k_multiplier`, `v_multiplier`, `dropout` and
    `output_dropout` are paths of attributes on the module (`ropebridge_spec.paths`). `scale` is the
    paths whose product is the scale; none stand for 1 / sqrt(d_head).
    `window_beside`: the window counts the keys on each side, not the query's own, where the layer
        is not causal.
    `differential`: path of the number that the strength of a subtraction begins with, where heads
        come in pairs.
    `key_bias`: path of how many keys a query sees at most, where their values bias them.
    `source_states`, `value_added` and `exclusive` are those of `Variant`.
    `causal` is the path of what says so; a layer is causal where it leads nowhere.
    `only`: a condition of which modules of the class attend by rotation; the others are
        cross-attention, and left alone.
    `since`: path of an attribute that the class has in newer releases of transformers only; in
    those without it `before` describes the class. A value that the class sets but does not pass on
    (Gemma 3's softcap) has no path here. `source` is the transformers file that the mathematics was
    read from.
    """

    source: str = ""
    causal: str = "is_causal?"
    only: str | None = None
    scale: tuple[str, ...] = ("scaling",)
    norm: NormKind | None = None
    value_norm: NormKind | None = None
    z_norm: NormKind | None = None
    rotary: RotaryKind = RotaryKind()
    latent: LatentKind | None = None
    gate: GateKind | None = None
    shared: SharedKind | None = None
    source_states: Source | None = None
    value_added: str | None = None
    exclusive: str | None = None
    differential: str | None = None
    key_bias: str | None = None
    selector: SelectorKind | None = None
    temperature: TemperatureKind | None = None
    k_multiplier: str | None = None
    v_multiplier: str | None = None
    clip: str | None = None
    window: str | None = None
    window_beside: bool = False
    chunk: str | None = None
    score_precision: Literal["input", "float32"] = "input"
    softcap: str | None = None
    sinks: str | None = None
    dropout: str | None = "attention_dropout?"
    output_dropout: str | None = None
    projections: Projections = field(default_factory=Projections)
    calling: Calling = field(default_factory=Calling)
    since: str | None = None
    before: Family | None = None
