"""Hugging Face's own eager attention, judged without a bridge.

`ropebridge check ropebridge_conformance.subjects.hugging_face:Factory`. Hooks on its modules show
inputs, projections, norms and output; an attention function registered with `AttentionInterface`
shows the rotated query and key, and what attention gives back; and since that function runs the
class's own eager attention under a torch function mode, scores and pattern too. It is handed the
additive mask that the model around would make, in whatever form a question has it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface

from ropebridge_conformance.subjects.layouts import FINITE_MASK, HEADS_FIRST, Layout, translated
from ropebridge_conformance.zoo.specimens import layer_number
from ropebridge_conformance.zoo.visibility import Span, bias_of
from ropebridge_spec import HookFunction, OptIn, UnsupportedAttention, Variant, by_role, describe

INTERFACE = "ropebridge_seen"
"""The name under which the attention function is registered."""

GAPS = {
    "FIRE-1": "hooks on modules fire in the order in which each class calls its modules",
    "NORM-2": (
        "in some classes a norm over one head has axes batch head pos d_head; this subject turns"
        " them to the contract's, so the axes are not judged"
    ),
    "MASK-5": (
        "masks with the dtype's lowest number; this subject shows it as -inf, and judges everything"
        " else about the scores"
    ),
    "MASK-2": (
        "eager attention does not mask on its own; this subject hands down the mask that the model"
        " around would make"
    ),
    "MASK-3": (
        "eager attention takes additive masks; this subject hands down the mask that the model"
        " around would make"
    ),
    "an_edit_in_place_stays_in_the_layer": (
        "modules are handed tensors that others hold too, and hooks on them may write into those"
    ),
    "a_hook_is_shown_a_contiguous_tensor_of_its_own": (
        "modules hand on the tensors that hooks on them were shown"
    ),
    "an_edit_through_a_view_is_an_edit_in_place": (
        "modules hand on transposes of what lies in memory, and a reshape of one is a copy"
    ),
    "an_edit_counts_where_gradients_are_taken": (
        "modules are handed the caller's own tensors, which must not be written into where they"
        " require a gradient"
    ),
    "returned_weights_are_the_pattern_before_dropout": "weights are returned after dropout",
    "EDIT-3": "hooks of torch take any replacement",
    "SCORE-3": "hooks of torch take any replacement",
    "SCORE-6": "hooks of torch take any replacement",
    "FIRE-3": "a hook that never fires is nobody's error",
    "ARG-1": "modules pass on what they do not name",
    "GRAD-1": (
        "hooks of modules are handed tensors that the forward pass goes on to reshape, and this"
        " subject takes no backward hooks"
    ),
    "MEM-1": "eager attention makes scores and pattern whether or not anybody watches",
    "TYPE-2": "this subject compares what a hook left with what it was shown",
    **dict.fromkeys(("PART-1", "PART-2", "MEM-2"), "hooks of torch are given the whole"),
    "attn_in": "there is no hook between the input and the projections of each head",
    "split_qkv_input": "there is no hook between the input and the projections of each head",
    "attn_result": "there is no hook between the output projection and the sum over heads",
}


@dataclass(frozen=True)
class Seen:
    """Hold the hooks of one call, the layouts they are shown through, the layer's number, and how
    many keys that a cache gives back stand before the call's own."""

    hooks: tuple[tuple[str, HookFunction], ...]
    layouts: Mapping[str, Layout]
    number: int
    before: int = 0

    def show(self, name: str, value: Tensor, layout: Layout | None = None) -> Tensor:
        """Return what the hooks at a hook point leave of a value."""
        layouts = self.layouts if layout is None else {name: layout}
        for fn in [translated(name, fn, layouts, same) for hook, fn in self.hooks if hook == name]:
            left = fn(value, hook=SimpleNamespace(name=f"blocks.{self.number}.attn.{name}"))
            value = value if left is None else left
        return value


def same(name: str) -> str:
    """Return the name as it is."""
    return name


class SoftmaxSeen(TorchFunctionMode):
    """Show what eager attention gives to softmax, and what it gives to dropout: the scores and the
    pattern."""

    def __init__(self, seen: Seen, sinks: bool) -> None:
        super().__init__()
        self.seen = seen
        self.scores_to = torch.cat if sinks else nn.functional.softmax

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a torch function, on other arguments where hooks were given them."""
        # the sink joins the scores as a column of its own
        if func is self.scores_to and func is torch.cat:
            scores, *others = args[0]
            args = ([self.seen.show("hook_attn_scores", scores), *others], *args[1:])
        elif func is self.scores_to:
            args = (self.seen.show("hook_attn_scores", args[0]), *args[1:])
        elif func is nn.functional.dropout:
            args = (self.seen.show("hook_pattern", args[0]), *args[1:])
        return func(*args, **(kwargs or {}))


def attention_seen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    *,
    ropebridge_seen: Seen,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Return the eager attention of the module's own file, with hooks on what it is given and what
    it gives back."""
    eager: Callable[..., tuple[Tensor, Tensor]] = sys.modules[
        type(module).__module__
    ].eager_attention_forward
    query = ropebridge_seen.show("hook_rot_q", query, HEADS_FIRST)
    # (batch, kv_head, key, d_head): those of earlier calls, this call's, and room for more
    earlier, own, room = key.tensor_split(
        [ropebridge_seen.before, ropebridge_seen.before + query.shape[2]], dim=2
    )
    left = ropebridge_seen.show("hook_rot_k", own, HEADS_FIRST)
    key = key if left is own else torch.cat([earlier, left, room], 2)
    with SoftmaxSeen(ropebridge_seen, sinks=hasattr(module, "sinks")):
        z, pattern = eager(module, query, key, value, mask, **options)
    return ropebridge_seen.show("hook_z", z), pattern


class SeenLayer:
    """Run a copy of one attention module, with hooks in it."""

    def __init__(self, module: nn.Module) -> None:
        self.variant = servable(module)
        self.module = copy.deepcopy(module)
        config: Any = self.module.config
        config._attn_implementation = INTERFACE
        self.layouts = {"hook_attn_scores": FINITE_MASK, **self.norm_layouts()}

    def run(
        self, inputs: Mapping[str, Any], hooks: Sequence[tuple[str, HookFunction]] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Return one call, with hooks that are gone after it."""
        span, number = self.span(inputs), layer_number(self.module) or 0
        before = span.first_query - span.first_key
        seen = Seen(tuple(hooks), self.layouts, number, before)
        with ExitStack() as stack:
            for handle in self.hooked(seen):
                stack.callback(handle.remove)
            out, weights = self.module(
                **{**inputs, "attention_mask": self.mask(inputs, span)}, ropebridge_seen=seen
            )
        return out, weights

    def hooked(self, seen: Seen) -> list[Any]:
        """Put hooks on the modules, and return the handles to remove them by."""
        handles = [
            self.module.register_forward_pre_hook(inputs_hook(seen), with_kwargs=True),
            self.module.register_forward_hook(output_hook(seen)),
        ]
        heads = {"q": self.variant.heads, "k": self.variant.kv_heads, "v": self.variant.kv_heads}
        for role, count in heads.items():
            handles.append(
                self.part(role).register_forward_hook(projection_hook(seen, f"hook_{role}", count))
            )
        handles += [
            self.part(role).register_forward_hook(norm_hook(seen, f"hook_{role}ed"))
            for role in self.variant.norm_roles
        ]
        return handles

    def part(self, role: str) -> nn.Module:
        """Return the module in a role."""
        found: nn.Module = self.module.get_submodule(
            {**self.variant.roles, **self.variant.norm_roles}[role]
        )
        return found

    def span(self, inputs: Mapping[str, Any]) -> Span:
        """Return where the queries and keys of a call stand, as its cache says."""
        pos, cache = inputs["hidden_states"].shape[1], by_role(inputs, self.variant).get("cache")
        if cache is None:
            return Span(0, pos)
        number = self.module.layer_idx
        keys, first_key = cache.get_mask_sizes(pos, number)
        return Span(int(cache.get_seq_length(number)), pos, int(first_key), int(keys))

    def mask(self, inputs: Mapping[str, Any], span: Span) -> Tensor:
        """Return the additive mask (batch or 1, 1, query, key) that the model around hands down to
        eager attention."""
        x = inputs["hidden_states"]
        bias = bias_of(inputs["attention_mask"], span, self.variant, x.device)
        return bias.masked_fill(bias == -torch.inf, torch.finfo(x.dtype).min).to(x.dtype)

    def norm_layouts(self) -> dict[str, Layout]:
        """Return the norms' hooks whose heads come before the positions, found by a call with more
        positions than heads."""
        shapes: dict[str, torch.Size] = {}
        handles = [
            self.part(role).register_forward_hook(keep_shape(shapes, f"hook_{role}ed"))
            for role in self.variant.norm_roles
        ]
        like, pos = next(self.module.parameters()), self.variant.heads + 1
        table = torch.ones(
            1,
            pos,
            self.variant.rotary.table_width if self.variant.rotary else 1,
            dtype=like.dtype,
            device=like.device,
        )
        x = torch.zeros(1, pos, self.variant.d_model, dtype=like.dtype, device=like.device)
        with torch.no_grad():
            self.module(
                hidden_states=x,
                position_embeddings=(table, table),
                attention_mask=None,
                ropebridge_seen=Seen((), {}, 0),
            )
        for handle in handles:
            handle.remove()
        return {
            name: HEADS_FIRST
            for name, shape in shapes.items()
            if len(shape) == 4 and shape[1] != pos
        }


def servable(module: nn.Module) -> Variant:
    """Return the module's variant.

    Raises UnsupportedAttention where query, key and value do not each come out of a projection of
    their own, or are shaped by more than a norm before they are rotated: hooks on modules would
    then not show what the contract names.
    """
    variant = describe(module)
    plain = replace(variant, norm=None, rotary=None, softcap=None, sinks=None)
    other = (
        plain.latent,
        plain.gate,
        plain.value_norm,
        plain.z_norm,
        plain.clip,
        plain.temperature,
        plain.shared_kv_argument,
        plain.projections.fused,
    )
    late = variant.norm is not None and (
        variant.norm.after_rotation or variant.norm.module_per_head
    )
    if (
        any(other)
        or late
        or plain.value_is_key
        or plain.projections.o is None
        or (plain.k_multiplier, plain.v_multiplier) != (1.0, 1.0)
    ):
        raise UnsupportedAttention(
            f"{type(module).__name__} does more than project, norm and rotate; this subject serves"
            " classes whose modules show each stage: see the core zoo"
        )
    return variant


def inputs_hook(seen: Seen) -> Callable[..., Any]:
    """Return a pre-hook of the module: what it is given, and the tables."""

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        x = seen.show("hook_in", kwargs["hidden_states"])
        cos, sin = kwargs["position_embeddings"]
        return args, {
            **kwargs,
            "hidden_states": x,
            "position_embeddings": (seen.show("hook_cos", cos), seen.show("hook_sin", sin)),
        }

    return hook


def projection_hook(seen: Seen, name: str, heads: int) -> Callable[..., Any]:
    """Return a hook of a projection, whose output it shows head by head."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return seen.show(name, output.unflatten(-1, (heads, -1))).flatten(-2)

    return hook


def norm_hook(seen: Seen, name: str) -> Callable[..., Any]:
    """Return a hook of a norm."""
    return lambda module, args, output: seen.show(name, output)


def output_hook(seen: Seen) -> Callable[..., Any]:
    """Return a hook of the module: what it returns."""
    return lambda module, args, output: (seen.show("hook_out", output[0]), *output[1:])


def keep_shape(shapes: dict[str, torch.Size], name: str) -> Callable[..., Any]:
    """Return a hook that keeps the shape of an output."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        shapes[name] = output.shape

    return hook


@dataclass(frozen=True)
class Factory:
    """Make subjects of Hugging Face's eager attention."""

    name: str = "hugging_face"
    unsupported: Mapping[str, str] = field(default_factory=lambda: dict(GAPS))

    def __post_init__(self) -> None:
        AttentionInterface.register(INTERFACE, attention_seen)

    def layer(
        self, module: nn.Module, *, rotary: nn.Module, opted_in: Sequence[OptIn] = ()
    ) -> SeenLayer:
        """Return a copy of an attention module, hooked."""
        return SeenLayer(module)
