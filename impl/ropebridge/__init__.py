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
from ropebridge.captured import Captured
from ropebridge.capturing import CapturePlan, capture, plan_capture
from ropebridge.hooks import HookHandle, HookPoint
from ropebridge.kernels.demand import KernelSettings
from ropebridge.model import attach, get_bridged_model
from ropebridge.position import PositionEmbeddingHooksMixin
from ropebridge.reductions import (
    Entropy,
    Largest,
    MeanOverQueries,
    Reduction,
    TopK,
    TopWeights,
    WeightOn,
)
from ropebridge.sizes import bytes_needed
from ropebridge.versions import UntestedTransformers
from ropebridge.watch import Watch
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
    describe,
)

__version__ = "0.1.0"

__all__ = [
    "ARGUMENTS",
    "FAMILIES",
    "AttachError",
    "AttentionBridge",
    "BridgedModel",
    "CapturePlan",
    "Captured",
    "ContractError",
    "Entropy",
    "Family",
    "HookHandle",
    "HookNeverFired",
    "HookPoint",
    "KernelSettings",
    "Largest",
    "MaskError",
    "MeanOverQueries",
    "NormKind",
    "NotBound",
    "PositionEmbeddingHooksMixin",
    "PositionEmbeddingsAttentionBridge",
    "Reduction",
    "RopebridgeError",
    "RotaryKind",
    "RotaryMissing",
    "Selection",
    "SubmoduleError",
    "TopK",
    "TopWeights",
    "UnknownHook",
    "UnsupportedAttention",
    "UntestedTransformers",
    "Variant",
    "VerificationError",
    "Watch",
    "WeightOn",
    "attach",
    "bytes_needed",
    "capture",
    "describe",
    "get_bridged_model",
    "plan_capture",
]
