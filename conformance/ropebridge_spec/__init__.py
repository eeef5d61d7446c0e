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
from ropebridge_spec.families import describe
from ropebridge_spec.family import Family, NormKind, RotaryKind
from ropebridge_spec.hooks import (
    HOOK,
    HOOKS,
    RESERVED,
    HookSpec,
    axis_names,
    axis_sizes,
    hook_order,
    shape_of,
    ungrouped,
)
from ropebridge_spec.subject import HookFunction, Layer, Subject
from ropebridge_spec.table import FAMILIES, OTHERS
from ropebridge_spec.variant import OPT_INS, Norm, OptIn, Projections, Rotary, Variant

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
    "Clause",
    "ContractError",
    "Family",
    "HookFunction",
    "HookNeverFired",
    "HookSpec",
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
    "Subject",
    "SubmoduleError",
    "UnknownHook",
    "UnsupportedAttention",
    "Variant",
    "VerificationError",
    "axis_names",
    "axis_sizes",
    "bounds",
    "describe",
    "hook_order",
    "shape_of",
    "spec_hash",
    "ungrouped",
]
