"""What one attention layer computes, as data: two families that differ only in data differ only in their `Variant`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

OptIn = Literal["attn_in", "split_qkv_input", "attn_result"]
OPT_INS: tuple[OptIn, ...] = ("attn_in", "split_qkv_input", "attn_result")


@dataclass(frozen=True)
class Projections:
    """Attribute names of the modules that project to query, key, value and back.

    fused: the one module that projects to query, key and value, where q, k and v are not modules of their own; or None.
    layout: how they lie in it: `blocks` all query heads, all key heads, all value heads; `heads` head by head, each
        with its query, key and value.
    """

    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    o: str = "o_proj"
    fused: str | None = None
    layout: Literal["blocks", "heads"] = "blocks"

    @property
    def roles(self) -> dict[str, str]:
        """Role -> attribute name of every module that projects."""
        return {"q": self.q, "k": self.k, "v": self.v, "o": self.o} if self.fused is None else {"qkv": self.fused, "o": self.o}


@dataclass(frozen=True)
class Norm:
    """How query and key are normalised between projection and rotation (clause NORM-1).

    kind: `rms` divides by the root mean square (arXiv:1910.07467), `layer` subtracts the mean first (arXiv:1607.06450).
    over: `head` normalises each head's d_head values, `flat` all (head d_head) values of a position at once.
    eps: added to the mean square, or to the variance, under the root.
    weight: `scale` multiplies by w, `one_plus` by 1 + w.
    per_head: the weight is (head, d_head), a row for each head, instead of one shared row.
    rounds_before_weight: the normalised value is rounded to the model's dtype before the weight multiplies it.
    """

    kind: Literal["rms", "layer"]
    over: Literal["head", "flat"]
    eps: float
    weight: Literal["scale", "one_plus"] = "scale"
    per_head: bool = False
    rounds_before_weight: bool = False
    q: str = "q_norm"
    k: str = "k_norm"


@dataclass(frozen=True)
class Rotary:
    """How query and key are rotated by position (clause ROT-1; RoFormer, arXiv:2104.09864).

    pairing: `half` turns dimensions (i, i + width/2) together, `interleaved` turns (2i, 2i + 1).
    width: how many leading dimensions of d_head rotate; the rest pass through.
    table: how the cos and sin tables lie: `full` is two equal halves, `repeated` each frequency twice in a row,
        `half` each frequency once.
    precision: `input` rotates in the dtype of query and key, `float32` in at least float32, rounding once at the end.
    """

    pairing: Literal["half", "interleaved"]
    width: int
    table: Literal["full", "repeated", "half"] = "full"
    precision: Literal["input", "float32"] = "input"

    @property
    def table_width(self) -> int:
        """Width of the cos and sin tables: the axis `rotary_dim`."""
        return self.width // 2 if self.table == "half" else self.width


@dataclass(frozen=True)
class Variant:
    """Everything the mathematics of one attention layer needs, and nothing else.

    Attributes:
        d_model: width of the residual stream.
        heads: query heads.
        kv_heads: key and value heads; a divisor of `heads` (grouped-query attention, arXiv:2305.13245).
        d_head: width of one query or key head.
        d_head_v: width of one value head.
        scale: factor on query . key before softcap and mask.
        norm: how query and key are normalised, or None.
        rotary: how query and key are rotated, or None where the layer does not rotate.
        softcap: cap * tanh(score / cap) before the mask, or None (Gemma 2, arXiv:2408.00118).
        sinks: name of the parameter that holds one extra logit a head, a key that has no value; or None.
        window: a query at position i sees keys at positions above i - window; None sees all the past.
        dropout: probability of dropping a pattern entry in training mode.
        output_dropout: probability of dropping an entry of the output in training mode.
        projections: where the projection modules are found.
    """

    d_model: int
    heads: int
    kv_heads: int
    d_head: int
    d_head_v: int
    scale: float
    norm: Norm | None = None
    rotary: Rotary | None = None
    softcap: float | None = None
    sinks: str | None = None
    window: int | None = None
    dropout: float = 0.0
    output_dropout: float = 0.0
    projections: Projections = field(default_factory=Projections)

    def __post_init__(self) -> None:
        for name in ("d_model", "heads", "kv_heads", "d_head", "d_head_v"):
            if getattr(self, name) < 1:
                raise ValueError(f"Variant.{name} is {getattr(self, name)}; it must be at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"Variant.heads is {self.heads}; it must be a multiple of kv_heads, which is {self.kv_heads}")
        if self.rotary and (self.rotary.width % 2 or self.rotary.width > self.d_head):
            raise ValueError(f"Rotary.width is {self.rotary.width}; it must be even and at most d_head, which is {self.d_head}")
        if self.projections.layout == "heads" and self.heads != self.kv_heads:
            raise ValueError(f"Projections.layout is 'heads' with {self.heads} heads and {self.kv_heads} kv_heads; it must be as many of both")
        if self.window is not None and self.window < 1:
            raise ValueError(f"Variant.window is {self.window}; it must be at least 1, or None for no window")

    @property
    def group(self) -> int:
        """How many query heads share one key and value head."""
        return self.heads // self.kv_heads
