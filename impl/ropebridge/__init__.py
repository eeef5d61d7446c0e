"""ropebridge: hooks on Hugging Face rotary attention that fire at the right stage, and cost nothing
where nobody watches.

In use:

    from ropebridge import attach

    with attach(model) as bridged:
        output, cache = bridged.run_with_cache(input_ids, names_filter="blocks.0.attn.hook_pattern")
"""

from ropebridge.base import AttentionBridge
from ropebridge.bridge import PositionEmbeddingsAttentionBridge
from ropebridge.bridged import BridgedModel
from ropebridge.hooks import HookHandle, HookPoint
from ropebridge.kernels.demand import KernelSettings
from ropebridge.model import attach, get_bridged_model
from ropebridge.position import PositionEmbeddingHooksMixin
from ropebridge.sizes import bytes_needed
from ropebridge.versions import UntestedTransformers
from ropebridge_spec import (
    ARGUMENTS,
    FAMILIES,
    AttachError,
    ContractError,
    Family,
    HookNeverFired,
    MaskError,
    NormKind,
    NotBound,
    RopebridgeError,
    RotaryKind,
    RotaryMissing,
    Selection,
    SubmoduleError,
    UnknownHook,
    UnsupportedAttention,
    Variant,
    VerificationError,
    Watch,
    describe,
)

__version__ = "0.1.0"

__all__ = [
    "ARGUMENTS",
    "FAMILIES",
    "AttachError",
    "AttentionBridge",
    "BridgedModel",
    "ContractError",
    "Family",
    "HookHandle",
    "HookNeverFired",
    "HookPoint",
    "KernelSettings",
    "MaskError",
    "NormKind",
    "NotBound",
    "PositionEmbeddingHooksMixin",
    "PositionEmbeddingsAttentionBridge",
    "RopebridgeError",
    "RotaryKind",
    "RotaryMissing",
    "Selection",
    "SubmoduleError",
    "UnknownHook",
    "UnsupportedAttention",
    "UntestedTransformers",
    "Variant",
    "VerificationError",
    "Watch",
    "attach",
    "bytes_needed",
    "describe",
    "get_bridged_model",
]
