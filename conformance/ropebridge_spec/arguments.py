"""One table of what an argument of an attention forward means to a bridge, in every supported
transformers (clause ARG-1).

transformers renames arguments: the cache was `past_key_values` until 5.23 and is `cache` since. An
argument that is not in this table is an error, at attach where a class names it, and at a call
where somebody passes it.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from ropebridge_spec.errors import ContractError, UnsupportedAttention
from ropebridge_spec.variant import Variant

Use = Literal["used", "ignored", "refused"]


@dataclass(frozen=True)
class Argument:
    """Describe what one argument means to a bridge.

    use: `used` is read; `ignored` changes nothing that attention computes; `refused` changes what
        is computed, in a way no bridge serves.
    reason: what is read from it, why it is safe to ignore, or why it is refused and what to do.
    role: the name of a used argument in the contract, the same whatever a class calls it.
    """

    use: Use
    reason: str
    role: str = ""


def used(role: str, reason: str) -> Argument:
    """Return an argument that the layer reads."""
    return Argument("used", reason, role)


def ignored(reason: str) -> Argument:
    """Return an argument that changes nothing in the layer."""
    return Argument("ignored", reason)


def refused(reason: str) -> Argument:
    """Return an argument that must be None."""
    return Argument("refused", reason)


CACHE = "keys and values of earlier positions (CACHE-1)"
OTHER_SEQUENCE = (
    "it asks for attention to another sequence, which is not rotated: attach to the part of the"
    " model without it"
)
PACKED = (
    "it packs several sequences into one row: pass a four-axis attention_mask that keeps them apart"
)
PAGED = "it belongs to a paged cache: generate with a DynamicCache or a StaticCache"
REPORTS = "it asks the model around for more outputs"

ARGUMENTS: Mapping[str, Argument] = {
    "hidden_states": used("hidden_states", "what the layer is given (IN-1)"),
    "position_embeddings": used("position_embeddings", "the tables cos and sin (POS-1)"),
    "attention_mask": used("attention_mask", "what each query may see (MASK-1 to MASK-5)"),
    "position_ids": used(
        "position_ids",
        "positions, where the layer makes its own tables or its temperature grows with them"
        " (SCORE-4)",
    ),
    "cache": used("cache", CACHE),
    "past_key_values": used("cache", f"{CACHE}; the name until transformers 5.23"),
    "layer_past": used("cache", f"{CACHE}; the name in GPT-NeoX, Falcon, CodeGen and GPT-J"),
    "output_attentions": used("output_attentions", "whether hook_pattern is returned (PAT-3)"),
    "is_causal": used("is_causal", "another causality than the layer's own is refused (MASK-2)"),
    # safe to ignore
    "use_cache": ignored("the layer fills the cache that it is handed, and makes none"),
    "output_hidden_states": ignored(REPORTS),
    "output_router_logits": ignored(REPORTS),
    "return_dict": ignored(REPORTS),
    "num_items_in_batch": ignored("it scales the loss"),
    "token_type_ids": ignored("the model around reads it, and says in the mask what it changes"),
    "mm_token_type_ids": ignored(
        "the model around reads it, and says in the mask and the tables what it changes"
    ),
    "shared_kv_states": ignored(
        "a layer that neither leaves keys and values for later layers nor takes an earlier layer's"
        " does not read it (KV-1)"
    ),
    "prev_topk_indices": ignored(
        "a layer with a selector of its own does not read an earlier layer's picks (SEL-1)"
    ),
    # refused
    "encoder_hidden_states": refused(OTHER_SEQUENCE),
    "encoder_attention_mask": refused(OTHER_SEQUENCE),
    "key_value_states": refused(OTHER_SEQUENCE),
    "alibi": refused("it biases scores by distance in place of rotation"),
    "codebook_idx": refused("it chooses other weights for each position"),
    **dict.fromkeys(
        ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"),
        refused(PACKED),
    ),
    **dict.fromkeys(
        ("block_table", "page_table", "read_index", "write_index", "k_cache", "v_cache"),
        refused(PAGED),
    ),
}
"""Argument name -> what it means in any class; what a family adds is in `arguments_of`."""


def arguments_of(variant: Variant) -> Mapping[str, Argument]:
    """Return name -> what it means, for a layer of this description: `ARGUMENTS`, and the names
    that its family gives to more."""
    calling, temperature, selector, source = (
        variant.calling,
        variant.temperature,
        variant.selector,
        variant.source,
    )
    family = {
        calling.tables_in: used("position_embeddings", "the tables cos and sin (POS-1)"),
        calling.mask_in: used("attention_mask", "what each query may see (MASK-1 to MASK-5)"),
        variant.shared_kv_argument: used("shared_kv", "an earlier layer's keys and values (KV-1)"),
        calling.kept_kv_argument: used(
            "shared_kv", "where this layer's keys and values are left for later ones (KV-1)"
        ),
        source.argument if source else None: used("source", "states of another sequence (KV-2)"),
        variant.added_value: used("added_value", "what is added to the value (PROJ-1)"),
        temperature.factor_argument if temperature else None: used(
            "temperature", "the query's temperature (SCORE-4)"
        ),
        selector.picks_argument if selector else None: used(
            "picks", "an earlier layer's picks (SEL-1)"
        ),
        calling.layer: used("layer", "which of the layers that share this module is called"),
        calling.cache_offset: used(
            "cache_offset", "what is added to the layer's number where the cache is asked"
        ),
    }
    return {
        **ARGUMENTS,
        **{name: argument for name, argument in family.items() if name is not None},
    }


def forwards_of(kind: type) -> list[Callable[..., Any]]:
    """Return the forward of a class, and while one takes keyword arguments that it does not name,
    that of the base class it stands before.

    A subclass whose forward is (self, *args, **kwargs) hands them on; that it does is proved at
    attach.
    """
    found: list[Callable[..., Any]] = []
    for base in kind.__mro__:
        forward = vars(base).get("forward")
        if forward is not None:
            found.append(forward)
            if not takes_more(forward):
                break
    return found


@lru_cache(maxsize=4096)
def read_signature(forward: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a function, which is read once."""
    return inspect.signature(forward)


def takes_more(forward: Callable[..., Any]) -> bool:
    """Return whether a function takes keyword arguments that it does not name."""
    return any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD
        for parameter in read_signature(forward).parameters.values()
    )


def takes_keywords(kind: type) -> bool:
    """Return whether a class's forward takes keyword arguments that it does not name."""
    return takes_more(forwards_of(kind)[0])


def parameters_of(kind: type) -> tuple[str, ...]:
    """Return the names of the parameters of a class's forward (`forwards_of`), in order, without
    self, *args and **kwargs."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    signatures = [
        list(read_signature(forward).parameters.values())[1:] for forward in forwards_of(kind)
    ]
    named = [
        parameter.name
        for parameters in signatures
        for parameter in parameters
        if parameter.kind not in variadic
    ]
    return tuple(dict.fromkeys(named))


def parameter_in_role(kind: type, variant: Variant, role: str) -> str | None:
    """Return under which name a class's forward takes what has this role in the contract; None
    where it does not."""
    meanings = arguments_of(variant)
    return next(
        (name for name in parameters_of(kind) if name in meanings and meanings[name].role == role),
        None,
    )


def refuse_unknown_parameters(kind: type, variant: Variant) -> None:
    """Refuse a class whose forward names a parameter that the table does not know (ARG-1).

    Raises:
        UnsupportedAttention: names the parameters.
    """
    unknown = [name for name in parameters_of(kind) if name not in arguments_of(variant)]
    if unknown:
        raise UnsupportedAttention(
            f"{kind.__name__}.forward has the parameters {', '.join(map(repr, unknown))}, and what"
            " they mean is not known; clause ARG-1 requires that each is\n  known:"
            f" {', '.join(sorted(arguments_of(variant)))}\n  a newer transformers may have renamed"
            " one: use the versions that the README names, or a newer ropebridge"
        )


def meaning_of(layer: str, argument: str, meanings: Mapping[str, Argument]) -> Argument:
    """Return what an argument of a call means; `layer` is what the message calls the layer.

    Raises:
        ContractError: it is not known, or is refused (ARG-1).
    """
    meaning = meanings.get(argument)
    if meaning is None:
        raise ContractError(
            f"{layer} was called with {argument!r}, and what it means is not known; clause ARG-1"
            " requires that no argument is ignored in silence\n  leave it out of the call of the"
            " model; what is known: print(ropebridge_spec.ARGUMENTS)"
        )
    if meaning.use == "refused":
        raise ContractError(
            f"{layer} was called with {argument!r}, which clause ARG-1 refuses: {meaning.reason}"
        )
    return meaning


def refuse_other_causality(layer: str, variant: Variant, is_causal: object) -> None:
    """Refuse a call that asks a causal layer for attention to later positions, or another for
    none: without a mask it would be as it is all the same (MASK-2)."""
    if variant.causal and is_causal is False:
        raise ContractError(
            f"{layer} was called with is_causal=False, and its layer is causal (MASK-2)\n  pass a"
            " four-axis attention_mask that says what each query may see, or set"
            " model.config.is_causal = False before attach"
        )
    if not variant.causal and is_causal is True:
        raise ContractError(
            f"{layer} was called with is_causal=True, and its layer is not causal (MASK-2)\n  pass"
            " a four-axis attention_mask that says what each query may see, or set"
            " model.config.is_causal = True before attach"
        )


RENAMED = ("position_embeddings", "attention_mask", "cache")
"""The roles that classes have names of their own for, and that every reader of a call knows by
their role."""


def own_names(kind: type, variant: Variant) -> dict[str, str | None]:
    """Return role -> the name that a class's forward has for it, of the roles in `RENAMED`; None
    where it takes no such argument."""
    return {role: parameter_in_role(kind, variant, role) for role in RENAMED}


def by_role(given: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """Return what a layer is called with, with the roles in `RENAMED` in place of the class's own
    names for them.

    Raises:
        ContractError: an argument that is not None and not known, or that is refused (ARG-1), also
            is_causal=False in a causal layer (MASK-2).
    """
    refuse_other_causality("the layer", variant, given.get("is_causal"))
    meanings, renamed = arguments_of(variant), {}
    for name, value in given.items():
        meaning = meanings.get(name) if value is None else meaning_of("the layer", name, meanings)
        role = meaning.role if meaning is not None and meaning.role in RENAMED else name
        if value is not None or role not in renamed:
            renamed[role] = value
    return renamed


def accepted_arguments(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a class's forward takes of these arguments, by its own names; None for what it
    must be given and is not."""
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]  # type: ignore[attr-defined]
    named = {parameter.name for parameter in parameters}
    needed = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind == parameter.POSITIONAL_OR_KEYWORD
    ]
    anything = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
    taken = {name: value for name, value in given.items() if anything or name in named}
    return dict.fromkeys(needed) | taken


def cache_layer(module: Any, named: Any = None, offset: Any = None) -> int:
    """Return which layer of the cache is a call's: the one that it names, or the module's own
    number; further on by an offset where the family has one."""
    number = getattr(module, "layer_idx", None) if named is None else named
    return int(number or 0) + int(offset or 0)


SELECTOR_ARGUMENTS: Mapping[str, str] = {
    "hidden_states": "hidden_states",
    "q_resid": "q_latent",
    "position_embeddings": "tables",
    "attention_mask": "mask",
    "position_ids": "position_ids",
    "past_key_values": "cache",
    "cache": "cache",
}
"""The names that transformers has for what a selector of keys is given (SEL-1), and what each
means."""


def selector_arguments(module: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a selector's forward takes, by its own names.

    Args:
        given: by the meanings in `SELECTOR_ARGUMENTS`.

    Raises:
        ContractError: the forward takes an argument whose meaning is not known (ARG-1).
    """
    wanted = inspect.signature(module.forward).parameters
    unknown = [name for name in wanted if name not in SELECTOR_ARGUMENTS]
    if unknown:
        raise ContractError(
            f"the selector {type(module).__name__} takes {', '.join(unknown)}, and what they mean"
            " is not known (clause ARG-1)"
        )
    return {name: given[SELECTOR_ARGUMENTS[name]] for name in wanted}


def cache_update_keywords(kind: type) -> tuple[str, ...]:
    """Return the names of the keyword arguments with which a class's forward calls `cache.update`,
    read from its source.

    transformers 5.24 passes `kwargs=kwargs`: a dict of the keyword arguments that forward does not
    name.
    """
    return tuple(
        sorted(
            {
                keyword
                for forward in forwards_of(kind)
                for keyword in update_keywords(inspect.unwrap(forward))
            }
        )
    )


@lru_cache(maxsize=512)
def update_keywords(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the keyword arguments of every call of a method `update` in a function;
    none where it has no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(forward)))
    except (OSError, TypeError, SyntaxError):
        return ()
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    updates = [call for call in calls if call.func.attr == "update" and call.args]  # type: ignore[attr-defined]
    return tuple(str(keyword.arg) for call in updates for keyword in call.keywords)
