"""`Watch`: what part of a hook point a hook is given, or what is made of that part."""

from __future__ import annotations

from dataclasses import dataclass

from ropebridge import reductions
from ropebridge_spec import ContractError
from ropebridge_spec import Watch as Part


@dataclass(frozen=True)
class Watch(Part):
    """Ask for a part of what a hook point holds, in place of its name (PART-1), or for a reduction
    of the pattern.

    name: the hook point's name, or a predicate of names; None for all hook points.
    heads: along the axis of heads, whichever it is: head, kv_head, or pair.
    query: along the axis of this call's positions, query or pos. key: along the axis key.
    reduce: what is made of those rows of the pattern, after all hooks that edit it; a hook is given
        that, to look at alone.

    Raises:
        ContractError: something that is no numbers; a reduction of some keys.
    """

    reduce: reductions.Reduction | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        how = self.reduce
        if how is not None and not isinstance(how, reductions.Reduction):
            raise ContractError(
                f"reduce={how!r} is no reduction; it is one of ropebridge's TopK(k), Entropy(),"
                " Largest(), MeanOverQueries(), WeightOn(keys)"
            )
        if how is not None and self.key is not None:
            raise ContractError(
                f"reduce={how!r} and key={self.key!r} are given together; a reduction is over all"
                " keys, or WeightOn(keys) over some"
            )

    @property
    def whole(self) -> bool:
        """Return whether nothing is narrowed, and nothing reduced."""
        return super().whole and self.reduce is None

    def refuse_other_axes(self, axes: str, name: str) -> None:
        """Refuse to narrow a hook point along an axis that it does not have, and to reduce another
        than the pattern.

        Raises:
            ContractError: so it was asked.
        """
        super().refuse_other_axes(axes, name)
        if self.reduce is not None and name.rsplit(".", 1)[-1] != "hook_pattern":
            raise ContractError(
                f"hook {name!r} cannot be reduced by {self.reduce!r}: reductions are of"
                " hook_pattern"
            )
