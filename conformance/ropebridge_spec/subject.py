"""Define what the judge asks of an implementation: one small object that can build a layer and run
it with hooks.

A subject is any object of this shape; nothing needs to be imported or subclassed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from ropebridge_spec.parts import Watch
from ropebridge_spec.variant import OptIn

HookFunction = Callable[..., Any]
"""`fn(tensor, hook=...)`: returns None to look, or a tensor to replace (clause FIRE-4)."""
Hooks = Sequence[tuple[str | Watch, HookFunction]]


@runtime_checkable
class Layer(Protocol):
    """Run one attention layer of a subject, built around a Hugging Face attention module."""

    def run(
        self, inputs: Mapping[str, Any], hooks: Hooks = (), backward_hooks: Hooks = ()
    ) -> tuple[Any, Any]:
        """Return one forward call, and nothing left of its hooks for the next.

        Args:
            inputs: the keyword arguments that the module's own forward would be called with, by the
                names of its signature in the
                installed transformers: `hidden_states` (batch, pos, d_model); `position_embeddings`
                (cos, sin), None where the layer takes no tables, and not there where it makes its
                own; `attention_mask` with four axes or two, or None (MASK-1 to MASK-3); at decode a
                transformers cache that the call extends, as `cache`, `past_key_values` or
                `layer_past`. What it does not understand it refuses (ARG-1).
            hooks: pairs of a hook point's short name (`hook_rot_q`) and a function; several may
                share a name. Where a function is to be given a part, a `Watch` of the name stands
                in its place: only in the checks about parts, which a subject that has none
                declares `unsupported` by their clauses (PART-1, PART-2, MEM-2).
            backward_hooks: pairs of a hook point's short name and a function of the gradient there,
                which it may replace (GRAD-1); they are called in the backward pass that follows.
                Given only by the checks about them: a subject that has none declares those checks
                `unsupported`, and `run` need not take the argument.

        Returns: the output (batch, pos, d_model), and the attention weights if
            `inputs["output_attentions"]` is true.

        A layer may have `get_random_inputs(batch, pos, device, dtype)`, which gives the
        `hidden_states` and `position_embeddings` of its calls; else the judge draws them.
        """


@runtime_checkable
class Subject(Protocol):
    """Describe an implementation to be judged.

    `ropebridge check package.module:Factory` calls Factory() for one.

    Attributes:
        name: what reports call it.
        unsupported: what is not had -> why. A name is a hook point, a clause, a check, an opt-in, a
            family or a layer of the zoo; a reason may be a function of the attention module, "" for
            a layer that has it. A declared gap is reported, and makes nothing else fail.
        conventions: what is done otherwise where the contract allows it, an optional attribute:
            `{"masked_scores": "lowest"}` where a masked score is the lowest number of its dtype.
    """

    @property
    def name(self) -> str: ...

    @property
    def unsupported(self) -> Mapping[str, str | Callable[[Any], str]]: ...

    def layer(self, module: Any, *, rotary: Any, opted_in: Sequence[OptIn] = ()) -> Layer:
        """Build a layer around an attention module; `rotary` is the model's rotary embedding
        module.

        A subject that wraps whole models takes one keyword more, `model`: a model of its own with
        that very module in it, None where the layer is of no model of the zoo. Its dtype is the
        module's for the module alone, float32 for the rest.

        What the layer computes, `ropebridge_spec.describe(module)` says. `module.training` is the
        mode: in training mode dropout is drawn after hook_pattern (DROP-1). Backward passes are run
        through what `run` returns, and through what hooks were given (GRAD-1).
        """
