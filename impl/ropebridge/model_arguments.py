"""Refuse arguments that a model's forward does not name: they would vanish in its `**kwargs`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import TransformersKwargs

from ropebridge_spec import ContractError

READ_BY_TRANSFORMERS = frozenset(
    {"return_dict", "output_attentions", "output_hidden_states", "output_router_logits"}
    | set(TransformersKwargs.__annotations__)
)
"""What transformers takes out of the `**kwargs` of a forward."""

OWN = (
    "fwd_hooks",
    "bwd_hooks",
    "names_filter",
    "device",
    "dtype",
    "incl_bwd",
    "pos_slice",
    "remove_batch_dim",
    "model_kwargs",
)
"""The keywords that the ways to run a bridged model take themselves, one or another."""

ELSEWHERE = {
    "stop_at_layer": "the model runs through all its layers; raise an exception in a hook to stop",
    "start_at_layer": "the model runs through all its layers; edit hook_in to begin elsewhere",
    "return_type": "the model's own output is returned: take output.logits or output.loss",
    "loss_per_token": "the model's own loss is a mean; take it from output.logits",
    "prepend_bos": "tokens come from the tokenizer, and it puts the first one there or not",
    "padding_side": "tokens come from the tokenizer: tokenizer.padding_side",
    "reset_hooks_end": "hooks of a run are gone after it, whatever happens",
    "clear_contexts": "hook_point.remove_hooks() empties hook.ctx",
    "return_cache_object": "the cache is a dict",
    "past_kv_cache": "transformers calls it past_key_values",
    "input": "transformers calls it input_ids",
    "tokens": "transformers calls it input_ids",
    "verbose": "nothing is printed",
}
"""Arguments that TransformerLens has, and what stands for them here."""


def refuse_unnamed(
    model: nn.Module, path: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Refuse what the model's forward does not name, and what is no tensor where it takes one.

    Args:
        model: whose forward is called.
        path: where in it an attention layer is, which says what wrappers pass arguments on to.
        args, kwargs: what it is called with.

    Raises:
        ContractError: names the argument, what stands for it here, and the nearest names.
    """
    for place, value in enumerate(args):
        if value is not None and not isinstance(value, Tensor):
            raise ContractError(message_of_positional(model, place, value))
    names = accepted_names(model, path)
    for name in kwargs:
        if names and name not in names:
            raise ContractError(message_of_argument(model, name, names))


def accepted_names(model: nn.Module, path: str) -> frozenset[str]:
    """Return the names that a model's forward, and those that its wrappers pass arguments on to,
    take; none where nothing says what they are."""
    chain = [model]
    for part in path.split("."):
        if isinstance(chain[-1], PreTrainedModel):
            break
        chain.append(getattr(chain[-1], part))
    chain = chain if isinstance(chain[-1], PreTrainedModel) else [model]
    named = frozenset[str]().union(*(parameter_names(module.forward) for module in chain))
    return named and named | READ_BY_TRANSFORMERS


def parameter_names(forward: Any) -> frozenset[str]:
    """Return the names of the parameters of a forward, without self, *args and **kwargs."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return frozenset(
        name
        for name, parameter in inspect.signature(forward).parameters.items()
        if parameter.kind not in variadic and name != "self"
    )


def message_of_positional(model: nn.Module, place: int, value: object) -> str:
    """Return the message for a positional argument that is no tensor."""
    kind = type(model).__name__
    if isinstance(value, str) and place == 0:
        return (
            f"{kind} was given the text {value!r}, and takes token ids (batch, pos)\n  tokenise it"
            " first: bridged.run_with_cache(**tokenizer(text, return_tensors='pt'))"
        )
    if isinstance(value, Mapping):
        return (
            f"{kind} was given a {type(value).__name__} as positional argument {place}; pass its"
            " items as keywords: run_with_cache(**inputs)"
        )
    return (
        f"{kind} was given {value!r} as positional argument {place}, and takes tensors there: token"
        " ids (batch, pos) first\n  what is not the model's is a keyword:"
        " run_with_cache(ids, names_filter=...), run_with_hooks(ids, fwd_hooks=[...])"
    )


def message_of_argument(model: nn.Module, name: str, names: frozenset[str]) -> str:
    """Return the message for a keyword that the model's forward does not name."""
    near = get_close_matches(name, [*OWN, *sorted(names)], n=3, cutoff=0.6)
    hint = f"  {ELSEWHERE[name]}\n" if name in ELSEWHERE else ""
    hint += f"  nearest: {', '.join(near)}\n" if near else ""
    return (
        f"there is no argument {name!r} of this call, nor of the forward of"
        f" {type(model).__name__}, which would ignore it in silence\n{hint}  where the model reads"
        f" it all the same: model_kwargs={{{name!r}: ...}}"
    )
