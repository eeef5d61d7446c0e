"""Define what a method refuses to run on."""

from __future__ import annotations

from ropebridge_spec import RopebridgeError


class MethodError(RopebridgeError, ValueError):
    """Report that a method was given what it cannot work with; the message says what was given,
    what is required and what to do."""
