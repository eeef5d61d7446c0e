"""Let a module run its bridge in place of its own forward, and its own again."""

from __future__ import annotations

from torch import nn

from ropebridge.bridge import PositionEmbeddingsAttentionBridge


def bridge_in_force(module: nn.Module) -> PositionEmbeddingsAttentionBridge | None:
    """Return the bridge that a module runs in place of its own forward."""
    owner = getattr(vars(module).get("forward"), "__self__", None)
    return owner if isinstance(owner, PositionEmbeddingsAttentionBridge) else None


def take_over(bridge: PositionEmbeddingsAttentionBridge) -> None:
    """Let the wrapped module run the bridge. The class stays untouched: only this instance changes
    (law: no patching)."""
    bridge.wrapped.forward = bridge.forward


def give_back(bridge: PositionEmbeddingsAttentionBridge) -> bool:
    """Let the wrapped module run its own forward again; False where another's lies over the
    bridge's, and nothing can be done. No hook fires in the bridge any more."""
    for point in bridge.hook_points.values():
        point.remove_hooks()
        point.detached = True
    module = bridge.original_component
    if module is None or "forward" not in vars(module):
        return True
    if bridge_in_force(module) is not bridge:
        return False
    del module.forward
    return True
