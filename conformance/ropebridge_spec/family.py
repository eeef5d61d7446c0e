"""Define what is known of an attention class beyond what its live modules show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ropebridge_spec.variant import Calling, Projections, Source


@dataclass(frozen=True)
class NormKind:
    """Describe what a family's norm is. Whether a module has it, and its eps, are read from the
    module.

    kind: `rms` or `layer`, as in `Norm`.
    over: `head` or `flat`, as in `Norm`.
    weight: `scale`, `one_plus` or `none`, as in `Norm`.
    bias: a learned bias is added at the end.
    per_head: weight and bias have one row for each head.
    module_per_head: each head has a module of its own, in the list `norms`.
    rounds_before_weight: the value is rounded before it is multiplied by the weight.
    after_rotation: query and key are normalised after they are rotated.
    flat_if: path of the condition under which the norm is over all heads at once, or None.
    q, k: attribute names of the modules.
    """

    kind: Literal["rms", "layer"] = "rms"
    over: Literal["head", "flat"] = "head"
    weight: Literal["scale", "one_plus", "none"] = "scale"
    bias: bool = False
    per_head: bool = False
    module_per_head: bool = False
    rounds_before_weight: bool = False
    after_rotation: bool = False
    flat_if: str | None = None
    q: str = "q_norm"
    k: str = "k_norm"


@dataclass(frozen=True)
class RotaryKind:
    """Describe what the attributes of a module cannot show of a family's rotation.

    pairing: `half` or `interleaved`, as in `Rotary`.
    table: `full`, `repeated`, `half` or `complex`, as in `Rotary`.
    precision: `input` or `float32`, as in `Rotary`.
    end: `leading` or `trailing`, as in `Rotary`.
    direction: `forward` or `backward`, as in `Rotary`.
    partial: the class rotates the leading `partial_rotary_factor` of a head, as its config says.
    width: path of how many dimensions rotate, where the module says so itself; or None.
    interleaved_if: path of the switch that makes the pairing interleaved, or None.
    values: path of the switch that rotates values too, or None.
    where: a layer rotates if any of these conditions holds on its module (`ropebridge_spec.paths`).
        Where there is none, every layer rotates.
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
    """Describe what a family's gate is. Whether it is per head or per channel is read from its
    width.

    module: attribute name, or path, of the projection that makes the gate, as in `Gate`.
    activation: `sigmoid` or `softplus`.
    in_query: the gate's rows lie in the query projection.
    bias: name of a parameter that is added before the activation, or None.
    """

    module: str = "gate_proj"
    activation: Literal["sigmoid", "softplus"] = "sigmoid"
    in_query: bool = False
    bias: str | None = None


@dataclass(frozen=True)
class LatentKind:
    """Describe multi-head latent attention. Ranks and widths are read from the module.

    norm: how the latents are normalised.
    rotary_norm: how the rotary part that all heads share is normalised, or None.
    q_scale, kv_scale: paths of factors on the normalised latents, or None.
    q_beside: the query comes up from the normalised latent followed by the latent before its norm.
    q_up: attribute name of the projection that the query comes up by.
    """

    norm: NormKind = NormKind(rounds_before_weight=True, q="q_a_layernorm", k="kv_a_layernorm")
    rotary_norm: NormKind | None = None
    q_scale: str | None = None
    kv_scale: str | None = None
    q_beside: bool = False
    q_up: str = "q_b_proj"


@dataclass(frozen=True)
class SelectorKind:
    """Describe what picks the keys of a family's layers.

    picks: `keys`, `mask` or `blocks`, as in `Selector`.
    module: attribute name of the selector.
    block: path of how many keys a block has, or None.
    through: the forward argument in which picks are handed on, or None.
    """

    picks: Literal["keys", "mask", "blocks"] = "keys"
    module: str = "indexer"
    block: str | None = None
    through: str | None = None


@dataclass(frozen=True)
class TemperatureKind:
    """Describe a factor on the query that grows with its position.

    beta: path of how fast it grows, or None.
    length: path of how many positions share one factor, or None.
    shift: added to the position.
    counted: positions count on from the cache; else they are those of `position_ids`.
    factor_argument: the forward argument in which the model passes the factor itself, or None.
    where: conditions under which a layer has it; where there is none, every layer has.
    """

    beta: str | None = None
    length: str | None = None
    shift: int = 0
    counted: bool = False
    factor_argument: str | None = None
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class SharedKind:
    """Describe keys and values that some layers leave and later layers take.

    through: the forward argument that they pass through.
    takes: path of whether a layer takes them.
    leaves: path of whether a layer leaves them.
    """

    through: str = "shared_kv_states"
    takes: str = "is_kv_shared_layer"
    leaves: str = "store_full_length_kv"


@dataclass(frozen=True)
class Family:
    """Describe what one attention class computes, beyond what its live modules show.

    Paths are those of `ropebridge_spec.paths`, on the module. A value that the class sets but does
    not pass on (Gemma 3's softcap) has no path here.

    source: the transformers file that the mathematics was read from.
    causal: path of whether a layer is causal; it is where the path leads nowhere.
    only: condition under which a module of the class attends by rotation; the others are
        cross-attention, and left alone. None where all do.
    scale: paths whose product is the scale; where there is none it is 1 / sqrt(d_head).
    norm: how query and key are normalised, or None.
    value_norm: how the value is normalised, or None.
    z_norm: how each head's mix of values is normalised, or None.
    rotary: how query and key are rotated.
    latent: the latents that query, key and value go through, or None.
    gate: what each head's mix of values is multiplied by, or None.
    shared: how layers share keys and values, or None.
    source_states: another sequence that keys and values are made of too, as `Variant.source`.
    added_value: the forward argument that is added to the projected value, or None.
    exclusive: path of a parameter, as in `Variant`; or None.
    differential: path of the number that the strength of a subtraction begins with, where heads
        come in pairs; or None.
    key_bias: path of how many keys a query sees at most, where values bias keys; or None.
    selector: what picks the keys that a query may see, or None.
    temperature: a factor on the query that grows with its position, or None.
    k_multiplier, v_multiplier: paths of factors on the projected key and value, or None.
    clip: path of the bound that query, key and value are clipped to, or None.
    window: path of the window, or None.
    window_excludes_self: in a bidirectional layer, window w means w keys on each side of the query,
        which is not counted.
    chunk: path of the chunk's length, or None.
    softcap: path of the softcap, or None.
    sinks: name of the parameter of extra logits, or None.
    dropout: path of the pattern's dropout rate, or None.
    output_dropout: path of the output's dropout rate, or None.
    projections: where the projection modules are found.
    calling: how the model around calls the layer.
    since: path of an attribute that the class has only in newer releases of transformers, or None.
    before: what the class computes in releases without that attribute, or None.
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
    added_value: str | None = None
    exclusive: str | None = None
    differential: str | None = None
    key_bias: str | None = None
    selector: SelectorKind | None = None
    temperature: TemperatureKind | None = None
    k_multiplier: str | None = None
    v_multiplier: str | None = None
    clip: str | None = None
    window: str | None = None
    window_excludes_self: bool = False
    chunk: str | None = None
    softcap: str | None = None
    sinks: str | None = None
    dropout: str | None = "attention_dropout?"
    output_dropout: str | None = None
    projections: Projections = field(default_factory=Projections)
    calling: Calling = field(default_factory=Calling)
    since: str | None = None
    before: Family | None = None
