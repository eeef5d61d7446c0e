"""A-priori rounding bounds: how far a right implementation may be from the exact value of one
stage.

u is the unit roundoff of the dtype a stage gives its result in, a that of its accumulation (float32
for the half precisions), g(n) = n a / (1 - n a) the growth over n accumulated terms (Higham,
Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1). The functions use only
operators and `abs`, so floats, numpy arrays and torch tensors all serve. A *magnitude* is the stage
recomputed with absolute values: |A| |B| for a product A B.
"""

from __future__ import annotations

import math
from typing import Any

UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Unit roundoff: the largest relative error of one rounding."""

ACCUMULATION = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-24, "float16": 2.0**-24}
"""Unit roundoff of the accumulation inside one product or sum."""

UNDERFLOW = {
    "float64": 2.0**-1022,
    "float32": 2.0**-126,
    "bfloat16": 2.0**-126,
    "float16": 2.0**-24,
}
"""Absolute error that any result may have where numbers become too small to hold."""

ORACLE = 2.0**-52
"""Relative slack for the float64 oracle itself, which rounds too."""


def growth(terms: float, dtype: str) -> float:
    """Return g(n): the relative error that n accumulated roundings can reach."""
    return terms * ACCUMULATION[dtype] / (1 - terms * ACCUMULATION[dtype])


def linear(value: Any, magnitude: Any, *, terms: int, dtype: str, product: Any = 0.0) -> Any:
    """Bound the error of clauses PROJ-1, MIX-1, RES-1, OUT-1: a sum of `terms` products, then
    perhaps one addition, rounded to dtype.

    `product` is the sum before that addition, where there is one: it may be rounded to dtype on its
    own.
    """
    u = UNIT[dtype]
    accumulated = (1 + u) * growth(terms + 2, dtype) * magnitude + oracle(magnitude, terms)
    return u * abs(value) + u * (1 + u) * abs(product) + accumulated + UNDERFLOW[dtype]


def rounded(value: Any, *, times: int, dtype: str) -> Any:
    """Return `times` further roundings of a value to dtype."""
    return ((1 + UNIT[dtype]) ** times - 1) * abs(value)


def norm(value: Any, centring: Any, *, terms: int, roundings: int, dtype: str) -> Any:
    """Bound the error of clause NORM-1: a mean of squares over `terms` values, a root, two
    products, `roundings` roundings to dtype.

    `centring` is the error magnitude of subtracting a mean, already scaled like the value; 0 for an
    rms norm.
    """
    inside = growth(terms / 2 + 8, dtype)
    return (
        inside * abs(value)
        + centring * growth(terms + 4, dtype)
        + rounded(value, times=roundings, dtype=dtype)
        + UNDERFLOW[dtype]
    )


def rotate(value: Any, magnitude: Any, *, precision: str, dtype: str) -> Any:
    """Bound the error of clause ROT-1: two products and a sum; magnitude is |x cos| + |rot(x)
    sin|."""
    u = UNIT[dtype]
    if precision == "input":
        return (2 * u + u * u + ORACLE) * magnitude + UNDERFLOW[dtype]
    return growth(3, dtype) * magnitude + rounded(value, times=1, dtype=dtype) + UNDERFLOW[dtype]


def scores(value: Any, magnitude: Any, *, terms: int, softcap: float | None, dtype: str) -> Any:
    """Bound the error of clause SCORE-1: scale (q . k), capped, biased; magnitude is scale (|q| .
    |k|).

    The scale may be folded into an operand, which rounds each factor once more; tanh has slope at
    most 1, so what came before the cap is not amplified by it.
    """
    u = UNIT[dtype]
    steps = 3 if softcap is None else 5
    before = (growth(terms + 2, dtype) + u * (1 + u)) * magnitude
    return (
        before
        + rounded(value, times=steps, dtype=dtype)
        + oracle(magnitude, terms)
        + UNDERFLOW[dtype]
    )


def softmax(pattern: Any, below_max: Any, *, keys: int, dtype: str) -> Any:
    """Bound the error of clause PAT-1: exp and a sum over `keys` entries in at least float32,
    rounded once; below_max is max - score.

    What subtracts the largest score in half precision, as GPT-OSS does in transformers, is off by a
    relative u (max - score) more, up to sixteen times this: the clause asks for float32 inside, so
    there the class itself is outside it, and a bridge of it need not be.
    """
    a = ACCUMULATION[dtype]
    inside = a * (below_max + math.log(keys) + keys + 9)
    return pattern * (inside + UNIT[dtype] * (1 + inside)) + UNDERFLOW[dtype]


def activation(value: Any, logits: Any, *, dtype: str) -> Any:
    """Bound the error of clause GATE-1: a sigmoid or softplus in at least float32, rounded once;
    its exponential is off by a relative a |x|."""
    a = ACCUMULATION[dtype]
    inside = a * (abs(logits) + 12)
    return abs(value) * (inside + UNIT[dtype] * (1 + inside)) + UNDERFLOW[dtype]


def fused(value: Any, magnitude: Any, score_error: Any, *, keys: int, dtype: str) -> Any:
    """Bound the error of clause MIX-1 where no pattern is made: the score error runs through
    softmax, relative e^(2 delta) - 1.

    magnitude is pattern . |v|; score_error the largest score error of the query's row. The pattern
    may be rounded to dtype before the product, and so may the value after it.
    """
    exponential = expm1(2 * score_error)
    inside = exponential + growth(2 * keys + 20, dtype) + 2 * UNIT[dtype]
    return (
        magnitude * inside * (1 + UNIT[dtype]) + UNIT[dtype] * abs(value) + keys * UNDERFLOW[dtype]
    )


def expm1(x: Any) -> Any:
    """Return e^x - 1 of a float, or of anything that has `expm1` itself."""
    return x.expm1() if hasattr(x, "expm1") else math.expm1(x)


def oracle(magnitude: Any, terms: float) -> Any:
    """Return what the float64 oracle may itself be off by, over `terms` accumulated terms."""
    return (terms + 4) * ORACLE * magnitude
