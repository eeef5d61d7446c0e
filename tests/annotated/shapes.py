"""Wrong shapes and dtypes, which the reference's annotations refuse where they are checked.

`tests/test_annotations.py` runs this file, in a process in which they are.
"""

import pytest
import torch
from jaxtyping import TypeCheckError

from ropebridge_reference import mix_values, project_heads, score_keys
from ropebridge_spec import Variant

NO_BIAS = torch.zeros(1, 1, 3, 3)


@pytest.mark.parametrize(
    ("call", "axis"),
    [
        (lambda: project_heads(torch.ones(2, 3, 4), torch.ones(1, 4, 2), None), "an axis too few"),
        (lambda: project_heads(torch.ones(2, 3, 1, 4), torch.ones(1, 5, 2), None), "d_model"),
        (
            lambda: project_heads(torch.ones(2, 3, 1, 4), torch.ones(1, 4, 2), torch.ones(2, 2)),
            "head",
        ),
        (
            lambda: score_keys(
                torch.ones(1, 3, 2, 4), torch.ones(1, 3, 1, 5), NO_BIAS, Variant(4, 2, 1, 4, 4, 1.0)
            ),
            "d_head",
        ),
        (lambda: mix_values(torch.ones(1, 2, 3, 3), torch.ones(1, 4, 1, 4)), "key"),
        (
            lambda: mix_values(torch.ones(1, 2, 3, 3, dtype=torch.long), torch.ones(1, 3, 1, 4)),
            "dtype",
        ),
    ],
    ids=["rank", "d_model", "head", "d_head", "key", "dtype"],
)
def test_shapes_are_enforced(call, axis):
    """The annotations are the documentation; in tests they are checked."""
    with pytest.raises(TypeCheckError):
        call()
