"""The ropebridge contract, as data: hook points, numbered clauses, what a layer computes, and the bounds it is held to.

Standard library only, so that anything may import it.
"""

from ropebridge_spec import bounds
from ropebridge_spec.clauses import CLAUSE, CLAUSES, Clause
from ropebridge_spec.document import SPEC_VERSION, spec_hash
from ropebridge_spec.errors import (
    AttachError,
    ContractError,
    HookNeverFired,
    MaskError,
    NotBound,
    RopebridgeError,
    RotaryMissing,
    SubmoduleError,
    UnknownHook,
    UnsupportedAttention,
    VerificationError,
)
from ropebridge_spec.families import describe, layer_type, position_axes, shared_key
from ropebridge_spec.family import Family, GateKind, LatentKind, NormKind, RotaryKind, SharedKind, TemperatureKind
from ropebridge_spec.hooks import (
    HOOK,
    HOOKS,
    RESERVED,
    HookSpec,
    attended,
    axis_names,
    axis_sizes,
    hook_order,
    shape_of,
    ungrouped,
)
from ropebridge_spec.subject import HookFunction, Layer, Subject
from ropebridge_spec.table import FAMILIES, OTHERS
from ropebridge_spec.variant import OPT_INS, Calling, Gate, Latent, Norm, OptIn, Projections, Rotary, Temperature, Variant

__all__ = [
    "CLAUSE",
    "CLAUSES",
    "FAMILIES",
    "HOOK",
    "HOOKS",
    "OPT_INS",
    "OTHERS",
    "RESERVED",
    "SPEC_VERSION",
    "AttachError",
    "Calling",
    "Clause",
    "ContractError",
    "Family",
    "Gate",
    "GateKind",
    "HookFunction",
    "HookNeverFired",
    "HookSpec",
    "Latent",
    "LatentKind",
    "Layer",
    "MaskError",
    "Norm",
    "NormKind",
    "NotBound",
    "OptIn",
    "Projections",
    "RopebridgeError",
    "Rotary",
    "RotaryKind",
    "RotaryMissing",
    "SharedKind",
    "Subject",
    "SubmoduleError",
    "Temperature",
    "TemperatureKind",
    "UnknownHook",
    "UnsupportedAttention",
    "Variant",
    "VerificationError",
    "attended",
    "axis_names",
    "axis_sizes",
    "bounds",
    "describe",
    "hook_order",
    "layer_type",
    "position_axes",
    "shape_of",
    "shared_key",
    "spec_hash",
    "ungrouped",
]
