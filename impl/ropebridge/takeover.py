"""Let a module run its bridge in place of its own forward, and its own again."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import nn

from ropebridge.bridge import PositionEmbeddingsAttentionBridge
from ropebridge.dispatch import is_dispatched


def place_of_forward(module: nn.Module) -> str:
    """Return under which name an instance keeps the forward that it runs: accelerate's hook keeps
    it under a name of its own, and brings devices into line around it."""
    return "_old_forward" if is_dispatched(module) else "forward"


def replacement(module: nn.Module) -> Any:
    """Return what an instance runs in place of its class's forward; None where it runs that: an
    instance may hold its class's own method, as after accelerate took its hooks away."""
    forward = vars(module).get(place_of_forward(module))
    own = getattr(forward, "__func__", None) is type(module).forward
    return None if own and getattr(forward, "__self__", None) is module else forward


def bridge_in_force(module: nn.Module) -> PositionEmbeddingsAttentionBridge | None:
    """Return the bridge that a module runs in place of its own forward."""
    owner = getattr(replacement(module), "__self__", None)
    return owner if isinstance(owner, PositionEmbeddingsAttentionBridge) else None


def take_over(bridge: PositionEmbeddingsAttentionBridge) -> None:
    """Let the wrapped module run the bridge. The class stays untouched: only this instance changes
    (law: no patching)."""
    setattr(bridge.wrapped, place_of_forward(bridge.wrapped), bridge.forward)


def give_back(bridge: PositionEmbeddingsAttentionBridge) -> bool:
    """Let the wrapped module run its own forward again; False where another's lies over the
    bridge's, and nothing can be done. No hook fires in the bridge any more."""
    for point in bridge.hook_points.values():
        point.remove_hooks()
        point.detached = True
    module = bridge.original_component
    if module is None or replacement(module) is None:
        return True
    if bridge_in_force(module) is not bridge:
        return False
    if is_dispatched(module):
        setattr(module, "_old_forward", MethodType(type(module).forward, module))  # noqa: B010
    else:
        del module.forward
    return True


def origin_of(function: Any) -> str:
    """Return where a function comes from, whatever it was made to look like: `package.module.name`
    of the code that runs."""
    function = getattr(function, "func", function)  # of a partial
    function = getattr(function, "__func__", function)  # of a bound method
    code, around = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    if code is None:
        return f"{type(function).__module__}.{type(function).__qualname__}"
    return f"{around.get('__name__', '?')}.{code.co_qualname}"
