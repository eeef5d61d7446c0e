"""Every error ropebridge raises on purpose. Each message says what was given, what is required, and
what to do."""

from __future__ import annotations


class RopebridgeError(Exception):
    """Report any error that ropebridge raises on purpose."""


class ContractError(RopebridgeError, ValueError):
    """Report a tensor that breaks a clause of the contract: wrong shape, dtype, device, or kind."""


class UnknownHook(RopebridgeError, KeyError):
    """Report a hook name that does not exist in this model or layer."""

    def __str__(self) -> str:
        # KeyError would print the repr of the message, with its line breaks escaped.
        return str(self.args[0])


class HookNeverFired(RopebridgeError, RuntimeError):
    """Report that a hook that was asked for did not fire (clause FIRE-3)."""


class MaskError(RopebridgeError, ValueError):
    """Report an attention mask of a form or shape that does not fit (clause MASK-4)."""


class UnsupportedAttention(RopebridgeError, NotImplementedError):
    """Report an attention module that no description serves. It is refused, never guessed."""


class SubmoduleError(RopebridgeError, RuntimeError):
    """Report that what the adapter declared does not fit the module it is to wrap (clause
    CFG-4)."""


class NotBound(RopebridgeError, RuntimeError):
    """Report that a bridge was used before `set_original_component` gave it an attention module."""


class RotaryMissing(RopebridgeError, RuntimeError):
    """Report that rotary tables are needed, and there is no rotary module to make them."""


class AttachError(RopebridgeError, RuntimeError):
    """Report a model that cannot be attached to as it stands."""


class VerificationError(RopebridgeError, RuntimeError):
    """Report that the bridge did not reproduce the module it wraps; the model was left as it
    was."""
