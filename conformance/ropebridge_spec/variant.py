"""Define what one attention layer computes, as data: two families that differ only in data differ
only in their `Variant`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

OptIn = Literal["attn_in", "split_qkv_input", "attn_result"]
OPT_INS: tuple[OptIn, ...] = ("attn_in", "split_qkv_input", "attn_result")


@dataclass(frozen=True)
class Projections:
    """Hold the attribute names, or paths, of the modules that project to query, key and value and
    back.

    q, k, v: the projections to query, key and value, where `fused` is None.
    o: the output projection; None where the layer around projects: the module then returns z, its
        heads side by side.
    fused: the one module that projects to query, key and value; None where each has its own.
    within: the linear map inside each of these modules, where they wrap one; or None.
    beside: the lists of adapters whose outputs are added to the projections', with {} for the role;
        or None. `Calling.layer` says which adapter of a list is meant.
    layout: how the rows of `fused` lie: `blocks` all query heads, all key heads, all value heads;
        `groups` kv head by kv head, each with its queries, its key and its value; `quarters` four
        parts, each with a quarter of the heads: queries, then values, then keys (CodeGen).
    """

    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    o: str | None = "o_proj"
    fused: str | None = None
    within: str | None = None
    beside: str | None = None
    layout: Literal["blocks", "groups", "quarters"] = "blocks"

    @property
    def roles(self) -> dict[str, str]:
        """Return role -> attribute name of every module that projects."""
        inwards = (
            {"q": self.q, "k": self.k, "v": self.v} if self.fused is None else {"qkv": self.fused}
        )
        return inwards if self.o is None else {**inwards, "o": self.o}


@dataclass(frozen=True)
class Norm:
    """Describe how values are normalised (NORM-1): query and key, and in some families value,
    latents or z.

    kind: `rms` divides by the root mean square (arXiv:1910.07467); `layer` subtracts the mean first
        (arXiv:1607.06450).
    over: `head` normalises each head's values; `flat` all (head width) values of a position at
        once.
    eps: added to the mean square, or to the variance, under the root.
    weight: `scale` multiplies by w, `one_plus` by 1 + w, `none` by nothing.
    bias: a learned bias is added at the end.
    per_head: weight and bias are (head, width), one row for each head; else one row for all heads.
    module_per_head: each head has a module of its own, in the list `norms`.
    rounds_before_weight: the normalised value is rounded to the model's dtype before it is
        multiplied by the weight.
    after_rotation: query and key are normalised after they are rotated.
    q, k: attribute names of the modules; one name where there is one module.
    """

    kind: Literal["rms", "layer"]
    over: Literal["head", "flat"]
    eps: float
    weight: Literal["scale", "one_plus", "none"] = "scale"
    bias: bool = False
    per_head: bool = False
    module_per_head: bool = False
    rounds_before_weight: bool = False
    after_rotation: bool = False
    q: str = "q_norm"
    k: str = "k_norm"


@dataclass(frozen=True)
class Rotary:
    """Describe how query and key are rotated by their position (ROT-1; RoFormer, arXiv:2104.09864).

    pairing: `half` turns dimensions (i, i + width/2) together, `interleaved` turns (2i, 2i + 1).
    width: how many dimensions of d_head rotate; the rest pass through.
    end: the dimensions that rotate: `leading` or `trailing`.
    table: how the cos and sin tables lie: `full` is two equal halves, of which interleaved pairs
        read the first; `repeated` has each frequency twice in a row; `half` has each frequency
        once; `complex` has each once, as cos + i sin in one tensor.
    direction: `forward` turns (1, 0) towards (0, 1), `backward` the other way.
    values: values are rotated too, as keys are.
    precision: `input` rotates in the dtype of query and key; `float32` in at least float32, and
        rounds once at the end.
    """

    pairing: Literal["half", "interleaved"]
    width: int
    table: Literal["full", "repeated", "half", "complex"] = "full"
    precision: Literal["input", "float32"] = "input"
    end: Literal["leading", "trailing"] = "leading"
    direction: Literal["forward", "backward"] = "forward"
    values: bool = False

    @property
    def table_width(self) -> int:
        """Return width of the cos and sin tables: the axis `rotary_dim`."""
        return self.width // 2 if self.table in ("half", "complex") else self.width


@dataclass(frozen=True)
class Latent:
    """Describe how query, key and value go through narrow latents (LAT-1; DeepSeek-V2,
    arXiv:2405.04434).

    A head's key is what comes up from the latent, followed by the rotary part that all heads share.

    kv_rank: width of the latent of key and value.
    q_rank: width of the query's latent; None where the query is projected straight from hook_in.
    norm: how the latents are normalised; its `q` and `k` name the modules.
    rotary_norm: how the rotary part that all heads share is normalised, or None.
    q_scale, kv_scale: factors on the normalised latents.
    q_beside: the query comes up from the normalised latent followed by the latent before its norm.
    q_down, q_up, kv_down, kv_up: attribute names of the projections.
    """

    kv_rank: int
    q_rank: int | None
    norm: Norm
    rotary_norm: Norm | None = None
    q_scale: float = 1.0
    kv_scale: float = 1.0
    q_beside: bool = False
    q_down: str = "q_a_proj"
    q_up: str = "q_b_proj"
    kv_down: str = "kv_a_proj_with_mqa"
    kv_up: str = "kv_b_proj"

    @property
    def q_width(self) -> int:
        """Return width of what the query comes up from: the axis `q_rank`."""
        return (self.q_rank or 0) * (2 if self.q_beside else 1)


@dataclass(frozen=True)
class Gate:
    """Describe what each head's mix of values is multiplied by (GATE-1).

    module: attribute name, or path, of the projection of hook_in that makes the gate. Where
        `in_query`, of the query projection: its rows are, head by head, the query's and then the
        gate's. With latents, of the projection that the query comes up by.
    activation: `sigmoid` or `softplus`.
    per: `channel` has one gate for each dimension of a head, `head` one for all of them.
    in_query: the gate's rows lie in the query projection.
    bias: name of a parameter (head,) that is added before the activation, or None.
    """

    module: str
    activation: Literal["sigmoid", "softplus"] = "sigmoid"
    per: Literal["channel", "head"] = "channel"
    in_query: bool = False
    bias: str | None = None


@dataclass(frozen=True)
class Differential:
    """Describe heads in pairs, h and h + heads / 2, of which the second's mix is subtracted
    (DIFF-1).

    Differential Transformer, arXiv:2410.05258.

    init: added to the strength of the subtraction; 1 - init multiplies what comes out.
    q1, k1, q2, k2: names of the parameters (d_head,) that the strength is made of.
    """

    init: float
    q1: str = "lambda_q1"
    k1: str = "lambda_k1"
    q2: str = "lambda_q2"
    k2: str = "lambda_k2"


@dataclass(frozen=True)
class KeyBias:
    """Describe a bias of a key that depends on the values of all heads (SCORE-5; Doge,
    arXiv:2412.11834).

    keep: how many keys a query sees at most: those of the largest bias.
    projection: attribute name of the map from the values of all kv heads to one number per kv head.
    factor: name of the parameter (kv_head,) that multiplies that number before the exponential.
    """

    keep: int
    projection: str = "dt_proj"
    factor: str = "A"


@dataclass(frozen=True)
class Source:
    """Describe another sequence, whose states are projected to keys and values too (KV-2).

    argument: name of the forward argument in which its states arrive.
    place: `before` the layer's own positions, rotated with them by tables that cover both; or
        `after` them, not rotated, and cached separately.
    """

    argument: str
    place: Literal["before", "after"]


@dataclass(frozen=True)
class Selector:
    """Describe what picks the keys that a query may see, beside the mask (SEL-1; arXiv:2512.02556).

    How it picks is its own affair; what it picks is obeyed.

    module: attribute name of the selector.
    picks: what it returns for each query: the numbers of `keys` (batch, query, n); a `mask` of
        booleans (batch, 1, query, key); or the numbers of `blocks` of keys (batch, head or a
        divisor, query, n), where -1 is none.
    block: how many keys a block has.
    picks_argument: the forward argument in which an earlier layer's picks arrive, where the layer
        has no selector of its own; or None.
    """

    module: str
    picks: Literal["keys", "mask", "blocks"]
    block: int = 1
    picks_argument: str | None = None


@dataclass(frozen=True)
class Temperature:
    """Describe a factor on the query that grows with its position (SCORE-4; Llama 4,
    arXiv:2501.19399).

    The factor is 1 + beta log(1 + floor((position + shift) / length)).

    beta: how fast it grows.
    length: how many positions share one factor.
    shift: added to the position.
    counted: positions count on from the cache; else they are those of `position_ids`.
    factor_argument: the forward argument in which the model passes the factor itself, or None.
    """

    beta: float = 0.0
    length: float = 1.0
    shift: int = 0
    counted: bool = False
    factor_argument: str | None = None


@dataclass(frozen=True)
class Calling:
    """Describe how the model around a layer calls it, and what the layer returns.

    tables: `all` layers receive the rotary tables; only those that are `rotating`; or each makes
        its `own` from position ids.
    mask_in: the forward argument in which the mask arrives.
    tables_in: the forward argument in which the tables arrive; one real tensor holds sin, then cos.
    tables_of: whether the tables are those of this call's `positions`, or of all `keys`, where this
        call's are the last.
    position_axes: how many rows of position ids the rotary module receives, where the module does
        not say so itself.
    tables_order: which comes first where the tables arrive as a pair.
    table_buffer: name of a buffer of the module that holds sin and then cos for every position; or
        None.
    returns: what forward returns, in order: `out`, `pattern`, `pattern_own` and `pattern_source`
        (parts of the pattern), `picks` (the selector's), or the name of an attribute of the module.
    extends_cache: the layer leaves its keys and values in the cache; else it only reads the cache.
    layer: the forward argument that says which layer a call is for, where layers share one module,
        whose `layer_dic` counts them; or None.
    cache_offset: the forward argument that is added to layer_idx where the cache is read; or None.
    kept_kv_argument: the forward argument, a mapping from layer type, in which the layer leaves its
        keys and values for later layers; or None.
    """

    tables: Literal["all", "rotating", "own"] = "all"
    mask_in: str = "attention_mask"
    tables_in: str = "position_embeddings"
    tables_of: Literal["positions", "keys"] = "positions"
    position_axes: int = 1
    tables_order: Literal["cos_sin", "sin_cos"] = "cos_sin"
    table_buffer: str | None = None
    returns: tuple[str, ...] = ("out", "pattern")
    extends_cache: bool = True
    layer: str | None = None
    cache_offset: str | None = None
    kept_kv_argument: str | None = None


@dataclass(frozen=True)
class Variant:
    """Describe what the mathematics of one attention layer needs, and nothing else.

    Attributes:
        d_model: width of the residual stream.
        heads: query heads.
        kv_heads: key and value heads; a divisor of `heads` (grouped-query attention,
            arXiv:2305.13245).
        d_head: width of one query or key head.
        d_head_v: width of one value head.
        scale: factor on query . key before softcap and mask.
        norm: how query and key are normalised, or None.
        rotary: how query and key are rotated, or None where the layer does not rotate.
        value_norm: how the value is normalised, or None.
        z_norm: how each head's mix of values is normalised before the gate and the output
            projection, or None.
        value_is_key: the value is the projected key, before its norm and rotation; no projection
            makes it.
        shared_kv_argument: the forward argument, a mapping from layer type, in which an earlier
            layer's keys and values arrive, cached ones included; this layer then makes none. Or
            None.
        k_multiplier, v_multiplier: factors on the projected key and on the projected value.
        clip: query, key and value are clipped to [-clip, clip]; query and key after a norm that
            comes before rotation. None clips nothing.
        latent: the latents that query, key and value go through, or None.
        gate: what each head's mix of values is multiplied by, or None.
        source: another sequence that keys and values are made of too, or None.
        added_value: the forward argument that is added to the projected value, or None.
        exclusive: path of the parameter (head,) whose tanh says how much of the part along its own
            value is subtracted from each head's mix; or None.
        differential: how heads are subtracted from each other, or None.
        key_bias: the bias of a key that depends on the values, or None.
        selector: what picks the keys that a query may see, or None.
        temperature: a factor on the query that grows with its position, or None.
        softcap: cap in cap * tanh(score / cap), applied before the mask; or None (Gemma 2,
            arXiv:2408.00118).
        sinks: name of the parameter (head,) of extra logits: each is a key that has no value. Or
            None.
        causal: a query sees no later position; false in encoders.
        window: a query at position i sees keys at positions above i - window, and below i + window
            where it sees later ones at all. None sees all.
        chunk: a query sees only the keys of its own chunk of so many positions; None sees all.
        dropout: probability of dropping an entry of the pattern in training mode.
        output_dropout: probability of dropping an entry of the output in training mode.
        d_out: width of what the layer returns, where it is not d_model; or None.
        projections: where the projection modules are found.
        calling: how the model around calls the layer.
    """

    d_model: int
    heads: int
    kv_heads: int
    d_head: int
    d_head_v: int
    scale: float
    norm: Norm | None = None
    rotary: Rotary | None = None
    value_norm: Norm | None = None
    z_norm: Norm | None = None
    value_is_key: bool = False
    shared_kv_argument: str | None = None
    k_multiplier: float = 1.0
    v_multiplier: float = 1.0
    clip: float | None = None
    latent: Latent | None = None
    gate: Gate | None = None
    source: Source | None = None
    added_value: str | None = None
    exclusive: str | None = None
    differential: Differential | None = None
    key_bias: KeyBias | None = None
    selector: Selector | None = None
    temperature: Temperature | None = None
    softcap: float | None = None
    sinks: str | None = None
    causal: bool = True
    window: int | None = None
    chunk: int | None = None
    dropout: float = 0.0
    output_dropout: float = 0.0
    d_out: int | None = None
    projections: Projections = field(default_factory=Projections)
    calling: Calling = field(default_factory=Calling)

    def __post_init__(self) -> None:
        for name in ("d_model", "heads", "kv_heads", "d_head", "d_head_v"):
            if getattr(self, name) < 1:
                raise ValueError(f"Variant.{name} is {getattr(self, name)}; it must be at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"Variant.heads is {self.heads}; it must be a multiple of kv_heads, which is"
                f" {self.kv_heads}"
            )
        if self.rotary and (self.rotary.width % 2 or self.rotary.width > self.d_head):
            raise ValueError(
                f"Rotary.width is {self.rotary.width}; it must be even and at most d_head, which is"
                f" {self.d_head}"
            )
        if self.projections.layout == "quarters" and (
            self.heads != self.kv_heads or self.heads % 4
        ):
            raise ValueError(
                f"Projections.layout is 'quarters' with {self.heads} heads and {self.kv_heads}"
                " kv_heads; it must be as many of both, by fours"
            )
        if self.differential and self.kv_heads % 2:
            raise ValueError(
                f"Variant.kv_heads is {self.kv_heads}; differential attention has kv heads in"
                " pairs, and needs an even number"
            )
        if self.window is not None and self.window < 1:
            raise ValueError(
                f"Variant.window is {self.window}; it must be at least 1, or None for no window"
            )

    @property
    def group(self) -> int:
        """Return how many query heads share one key and value head."""
        return self.heads // self.kv_heads

    @property
    def norms_before_rotation(self) -> bool:
        """Return whether query and key are normalised, and that before they are rotated."""
        return self.norm is not None and not self.norm.after_rotation

    @property
    def z_heads(self) -> int:
        """Return how many heads hook_z has: pairs of heads have one between them (DIFF-1)."""
        return self.heads // 2 if self.differential else self.heads

    @property
    def d_z(self) -> int:
        """Return width of a head of hook_z: that of the values of a pair of kv heads (DIFF-1), or
        of one."""
        return 2 * self.d_head_v if self.differential else self.d_head_v

    @property
    def z_multiplier(self) -> float:
        """Return the factor on what was mixed and normed."""
        return 1 - self.differential.init if self.differential else 1.0

    @property
    def splits(self) -> bool:
        """Return whether each head can be given inputs of its own: not where heads share more than
        weights, nor where key or value is another's."""
        shares = self.latent or self.key_bias or self.projections.beside or self.source
        return not shares and not self.shared_kv_argument and not self.value_is_key

    @property
    def rotary_part_norm(self) -> Norm | None:
        """Return the norm of the rotary part of a key, where heads share one through a latent."""
        return self.latent.rotary_norm if self.latent else None

    @property
    def gate_rises(self) -> bool:
        """Return whether the gate comes up from the query's latent, beside the query."""
        return bool(self.gate and self.gate.in_query and self.latent and self.latent.q_rank)

    @property
    def roles(self) -> dict[str, str]:
        """Return role -> attribute name of every module that projects."""
        names, latent = self.projections, self.latent
        gate = {"gate": self.gate.module} if self.gate and not self.gate.in_query else {}
        gate |= {"key_bias": self.key_bias.projection} if self.key_bias else {}
        if latent is None:
            absent = "kv" if self.shared_kv_argument else "v" if self.value_is_key else ""
            return {
                **{role: name for role, name in names.roles.items() if role not in absent},
                **gate,
            }
        query = (
            {"q": names.q}
            if latent.q_rank is None
            else {"q_down": latent.q_down, "q_up": latent.q_up}
        )
        outwards = {} if names.o is None else {"o": names.o}
        return {**query, "kv_down": latent.kv_down, "kv_up": latent.kv_up, **gate, **outwards}

    @property
    def norm_roles(self) -> dict[str, str]:
        """Return role -> attribute name of every module that normalises."""
        names: dict[str, str] = {}
        if self.latent is not None:
            names = {"kv_latent_norm": self.latent.norm.k} | (
                {} if self.latent.q_rank is None else {"q_latent_norm": self.latent.norm.q}
            )
            names |= (
                {}
                if self.latent.rotary_norm is None
                else {"k_rotary_norm": self.latent.rotary_norm.k}
            )
        if self.norm is not None:
            names |= {"q_norm": self.norm.q} | (
                {} if self.shared_kv_argument else {"k_norm": self.norm.k}
            )
        return names | {
            role: norm.q
            for role, norm in (("v_norm", self.value_norm), ("z_norm", self.z_norm))
            if norm
        }

    def norm_in(self, role: str) -> Norm:
        """Return the norm whose module is in a role of `norm_roles`."""
        latent, rotary = (
            (self.latent.norm, self.latent.rotary_norm) if self.latent else (None, None)
        )
        own = {
            "q_norm": self.norm,
            "k_norm": self.norm,
            "v_norm": self.value_norm,
            "z_norm": self.z_norm,
            "k_rotary_norm": rotary,
        }
        found = own.get(role, latent)
        if found is None:
            raise KeyError(
                f"this variant has no norm in the role {role!r}; it has {sorted(self.norm_roles)}"
            )
        return found
