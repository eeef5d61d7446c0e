"""Direct logit attribution: what each head adds to a logit by the residual stream alone."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ropebridge.bridged import BridgedModel
from ropebridge.methods.errors import MethodError
from ropebridge.methods.frozen import cut, freeze_norm, is_norm, leaf, roundoff
from ropebridge.methods.running import Inputs, logits_of
from ropebridge.methods.selection import Heads, Selection, select

SLACK = 64
"""How many roundings of the terms' sizes, added up, the decomposition may be off by."""


def direct_logit_attribution(
    bridged: BridgedModel,
    inputs: Inputs,
    answers: Tensor,
    wrong: Tensor | None = None,
    *,
    layers: Iterable[int] | None = None,
    heads: Heads | None = None,
    positions: Iterable[int] | None = None,
) -> Tensor:
    """Return what each head adds to the logit of a token, position by position, by the direct path.

    Held at their values in this very run, and so not answerable for: every attention pattern, every
    MLP (each branch of a block that has a matrix of its own), and the scale of every norm, the
    final one and those after attention
    included: a norm's 1/rms (or 1/std) is a constant of each position, its weight and its centring
    are applied. A projection's bias b_O is no head's. The logit is what the unembedding gives,
    before a cap or a scale that the model puts on it. What heads, embedding, branches and biases
    add comes to that logit: this is checked at every position.

    Args:
        answers: (batch, pos) the token whose logit is attributed, at each position.
        wrong: (batch, pos) tokens whose logit is taken off: attributes the logit difference.
        layers, heads, positions: what is told; as in `select`.

    Returns:
        (layer, head, batch, pos) float32: what the head adds; nan where a layer has no such head,
        or it or the position was not chosen.

    Raises:
        MethodError: answers of another shape, a norm or a path that is not understood, or a model
            without unembedding.
        SubmoduleError: W_O cannot be read off the output projection.
    """
    chosen = select(bridged, layers, heads, positions)
    run = DirectPath(bridged)
    with torch.enable_grad(), run:
        logits_of(
            bridged,
            inputs,
            [
                *((f"{layer.name}.hook_z", run.keep) for layer in bridged.layers),
                *((f"{layer.name}.hook_out", run.begin) for layer in bridged.layers),
            ],
        )
        picked = pick(run.unembedded, answers) - (
            0 if wrong is None else pick(run.unembedded, wrong)
        )
        gradients = torch.autograd.grad(
            picked.sum(), run.leaves, allow_unused=True, materialize_grads=True
        )
    refuse_other_paths(
        picked.detach(), run.leaves, gradients, constant(run.unembedding, answers, wrong)
    )
    at = {id(tensor): gradient for tensor, gradient in zip(run.leaves, gradients, strict=True)}
    outs = [at[id(run.outs[layer.name])] for layer in bridged.layers]
    parts = [
        by_head(run.z[layer.name], layer.W_O.detach(), out)
        for layer, out in zip(bridged.layers, outs, strict=True)
    ]
    table = nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=torch.nan)
    return only(table, bridged, chosen)


def only(table: Tensor, bridged: BridgedModel, chosen: Selection) -> Tensor:
    """Return a table (layer, head, batch, pos) with nan in place of what was not chosen."""
    kept = torch.zeros(table.shape, dtype=torch.bool)
    rows = list(chosen.positions_of(table.shape[3]))
    for layer in chosen.layers:
        for head in chosen.heads_of(layer, bridged.layers[layer].variant.heads):
            kept[layer, head, :, rows] = True
    return table.masked_fill(~kept.to(table.device), torch.nan)


class DirectPath:
    """Let gradients flow, while it is open, from the unembedding to `leaves` by the residual stream
    alone, with the scales of norms frozen.

    Attributes:
        leaves: where the direct path begins: embedding, attention outputs, branches, norm biases.
        outs: layer name -> the leaf at its hook_out, (batch, pos, d_model).
        z: layer name -> hook_z, (batch, pos, head, d_head_v).
        unembedded: (batch, pos, vocabulary), what the unembedding gave.
    """

    def __init__(self, bridged: BridgedModel) -> None:
        self.bridged = bridged
        self.unembedding: Any = unembedding_of(bridged.model)
        self.leaves: list[Tensor] = []
        self.outs: dict[str, Tensor] = {}
        self.z: dict[str, Tensor] = {}
        self.unembedded: Tensor
        self._stack = ExitStack()

    def __enter__(self) -> DirectPath:
        model: Any = self.bridged.model
        attention = {id(layer.original_component) for layer in self.bridged.layers}
        self._hook(
            model.get_input_embeddings(), lambda module, args, output: cut(output, self.leaves)
        )
        self._hook(self.unembedding, self._keep_logits)
        for parent, module in outside(model, attention):
            if is_norm(module):
                self._hook(
                    module,
                    lambda module, args, output: freeze_norm(module, args[0], output, self.leaves),
                )
            elif parent in self._blocks() and has_matrix(module):
                self._hook(module, lambda module, args, output: cut(output, self.leaves))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def keep(self, z: Tensor, hook: Any) -> None:
        """Keep what hook_z holds, as a hook there."""
        self.z[hook.name.removesuffix(".hook_z")] = z.detach()

    def begin(self, out: Tensor, hook: Any) -> Tensor:
        """Return a hook at hook_out: the direct path of this layer's heads begins here."""
        start = self.outs[hook.name.removesuffix(".hook_out")] = leaf(out, self.leaves)
        return start

    def _keep_logits(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.unembedded = output

    def _hook(self, module: nn.Module, fn: Any) -> None:
        self._stack.callback(module.register_forward_hook(fn).remove)

    def _blocks(self) -> set[nn.Module]:
        """Return the modules that hold an attention layer: the blocks."""
        attention = {id(layer.original_component) for layer in self.bridged.layers}
        return {
            module
            for module in self.bridged.model.modules()
            if any(id(child) in attention for child in module.children())
        }


def outside(model: nn.Module, attention: set[int]) -> list[tuple[nn.Module, nn.Module]]:
    """Return every (parent, child) of the model that does not lie in an attention layer."""
    inside = {
        id(part)
        for module in model.modules()
        if id(module) in attention
        for part in module.modules()
    }
    return [
        (parent, child)
        for parent in model.modules()
        for child in parent.children()
        if id(child) not in inside and id(parent) not in inside
    ]


def has_matrix(module: nn.Module) -> bool:
    """Return whether a branch has weights of two axes or more: an MLP, experts; not a dropout."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


def unembedding_of(model: Any) -> nn.Module:
    """Return the module that turns the residual stream into logits."""
    found = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(found, nn.Module):
        raise MethodError(
            f"{type(model).__name__} has no unembedding to attribute to; attach to the causal"
            " language model (AutoModelForCausalLM), not to its body"
        )
    return found


def pick(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return (batch, pos) the logits of tokens (batch, pos)."""
    if tuple(tokens.shape) != tuple(logits.shape[:2]):
        raise MethodError(
            f"answers of shape {tuple(tokens.shape)}; there must be a token for every batch and"
            f" pos: {tuple(logits.shape[:2])}"
        )
    return logits.double().gather(-1, tokens.to(logits.device).unsqueeze(-1)).squeeze(-1)


def constant(unembedding: Any, answers: Tensor, wrong: Tensor | None) -> Tensor:
    """Return (batch, pos) what the unembedding's own bias adds."""
    bias = getattr(unembedding, "bias", None)
    if bias is None:
        return torch.zeros(answers.shape, dtype=torch.float64)
    bias = bias.detach().double()
    added: Tensor = bias[answers.to(bias.device)] - (
        0 if wrong is None else bias[wrong.to(bias.device)]
    )
    return added


def refuse_other_paths(
    picked: Tensor, leaves: list[Tensor], gradients: tuple[Tensor, ...], bias: Tensor
) -> None:
    """Refuse a model whose logit is not the sum of what was traced: it has a path that this method
    does not know.

    Raises:
        MethodError: naming the worst gap.
    """
    pairs = [
        (leaf.detach().double(), gradient.double())
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]
    gap = (
        picked - bias.to(picked.device) - sum((leaf * gradient).sum(-1) for leaf, gradient in pairs)
    ).abs()
    allowed = (
        SLACK
        * roundoff(leaves[0])
        * (
            sum(leaf.norm(dim=-1) * gradient.norm(dim=-1) for leaf, gradient in pairs)
            + picked.abs()
        )
    )
    if not bool((gap <= allowed).all()):
        raise MethodError(
            f"the parts come short of the logit by {float(gap.max()):.3g}, where rounding explains"
            f" {float(allowed.max()):.3g}\n  the model has a path from heads to logits beside"
            " residual stream, branches and norms, and this method does not serve it"
        )


def by_head(z: Tensor, W_O: Tensor, gradient: Tensor) -> Tensor:
    """Return (head, batch, pos): each head's z W_O along the direction in which the logit grows."""
    towards = torch.einsum("bpm,hdm->bphd", gradient.float(), W_O.float())
    return (z.float() * towards).sum(-1).permute(2, 0, 1).cpu()
