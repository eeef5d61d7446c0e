"""What a query may see: every form of mask, none at all, and rows that see nothing (clauses MASK-1
to MASK-7, CACHE-1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers import DynamicCache, StaticCache

from ropebridge.subject import Factory
from ropebridge_conformance.checks import CHECK_BY_NAME
from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.verdicts import Outcome
from ropebridge_conformance.zoo.specimens import CASE_BY_ID
from ropebridge_spec import MaskError

pytestmark = pytest.mark.slow

POS, LEFT_PADDING = 9, 3
LOWEST = torch.finfo(torch.float32).min

every_path = pytest.mark.parametrize("path", ["unwatched", "watched"])
every_layer = pytest.mark.parametrize("layer", [0, 1], ids=["first_layer", "second_layer"])


@pytest.fixture
def layer() -> int:
    return 0


@pytest.fixture
def bridge(bridge_layer: Any, family: str, layer: int) -> Any:
    return bridge_layer(family, layer)


@pytest.fixture
def inputs(bridge: Any) -> dict[str, Any]:
    """The last row of the batch is padded, so its first queries see nothing; the mask is
    additive."""
    return bridge.get_random_inputs(2, POS, seed=0, left_padding=LEFT_PADDING)


@pytest.fixture
def visible(inputs: dict[str, Any]) -> Tensor:
    """(batch, 1, query, key) booleans: the truth of these inputs."""
    return inputs["attention_mask"] == 0


def output(bridge: Any, inputs: dict[str, Any], path: str = "unwatched") -> Tensor:
    """One call on the path that makes the pattern, or on the one that does not."""
    if path == "unwatched":
        return bridge(**inputs)[0]
    with bridge.hook_points["hook_pattern"].add_hook(lambda tensor, hook: None):
        return bridge(**inputs)[0]


def hugging_face(bridge: Any, inputs: dict[str, Any]) -> Tensor:
    """The wrapped module's own eager forward."""
    module = bridge.original_component
    return type(module).forward(module, **inputs)[0]


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


# ---- forms ----

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "additive": lambda visible: torch.zeros(visible.shape).masked_fill(~visible, LOWEST),
    "additive_minus_infinity": (
        lambda visible: torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
    ),
    "additive_bfloat16": (
        lambda visible: torch.zeros(visible.shape, dtype=torch.bfloat16).masked_fill(
            ~visible, torch.finfo(torch.bfloat16).min
        )
    ),
    "additive_float16": (
        lambda visible: torch.zeros(visible.shape, dtype=torch.float16).masked_fill(
            ~visible, torch.finfo(torch.float16).min
        )
    ),
    "boolean": lambda visible: visible,
    "boolean_expanded": lambda visible: visible.expand(-1, 6, -1, -1),
    "boolean_every_head": lambda visible: visible.repeat(1, 6, 1, 1),
}


@every_path
@pytest.mark.parametrize("form", FORMS)
@every_layer
@torch.no_grad()
def test_every_form_of_a_four_axis_mask_says_the_same(
    bridge: Any, inputs: Any, visible: Tensor, form: str, path: str
) -> None:
    live = visible.any(-1).squeeze(1)
    wanted = hugging_face(bridge, inputs)[live]
    close(output(bridge, {**inputs, "attention_mask": FORMS[form](visible)}, path)[live], wanted)


@every_path
@torch.no_grad()
def test_a_float64_mask_beside_float32_values_is_added(
    bridge: Any, inputs: Any, visible: Tensor, path: str
) -> None:
    mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(
        ~visible, torch.finfo(torch.float64).min
    )
    given = output(bridge, {**inputs, "attention_mask": mask}, path)
    assert given.dtype == torch.float32
    close(given, output(bridge, inputs, path))


@every_path
@torch.no_grad()
def test_a_float32_mask_beside_bfloat16_values_is_added(
    bridge_layer: Any, family: str, path: str
) -> None:
    bridge = bridge_layer(family)
    bridge.original_component.bfloat16()
    inputs = bridge.get_random_inputs(2, POS, seed=0, left_padding=LEFT_PADDING)
    visible = inputs["attention_mask"] == 0
    given = output(bridge, {**inputs, "attention_mask": FORMS["additive"](visible)}, path)
    assert given.dtype == torch.bfloat16
    assert torch.equal(given, output(bridge, inputs, path))


@every_path
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int64, torch.float32], ids=["bool", "int64", "float32"]
)
@every_layer
@torch.no_grad()
def test_a_two_axis_mask_is_padding_beside_causality_and_window(
    bridge: Any, inputs: Any, dtype: torch.dtype, path: str
) -> None:
    real = torch.arange(POS)[None] >= torch.tensor([0, LEFT_PADDING])[:, None]
    close(
        output(bridge, {**inputs, "attention_mask": real.to(dtype)}, path),
        output(bridge, inputs, path),
    )


@pytest.mark.parametrize("shape", [(1, POS), (2, POS)], ids=["one_row", "a_row_each"])
@torch.no_grad()
def test_a_two_axis_mask_of_ones_is_no_mask(
    bridge: Any, inputs: Any, shape: tuple[int, int]
) -> None:
    close(
        output(bridge, {**inputs, "attention_mask": torch.ones(shape)}),
        output(bridge, {**inputs, "attention_mask": None}),
    )


@every_path
@every_layer
@torch.no_grad()
def test_without_a_mask_causality_and_window_hold(
    bridge_layer: Any, family: str, layer: int, path: str
) -> None:
    """MASK-2."""
    bridge = bridge_layer(family, layer)
    inputs = bridge.get_random_inputs(2, POS, seed=0)
    close(output(bridge, {**inputs, "attention_mask": None}, path), hugging_face(bridge, inputs))


@every_path
@torch.no_grad()
def test_without_a_mask_causality_and_window_hold_over_several_blocks_of_rows(
    bridge_layer: Any, family: str, path: str
) -> None:
    bridge = bridge_layer(family)
    inputs = bridge.get_random_inputs(1, 256, seed=0)
    close(output(bridge, {**inputs, "attention_mask": None}, path), hugging_face(bridge, inputs))


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "gpt_oss"])
@torch.no_grad()
def test_a_window_limits_how_far_back_a_query_sees(bridge: Any, inputs: Any) -> None:
    """MASK-2. hook_pattern itself: a band of the window's width."""
    kept: list[Tensor] = []
    with bridge.hook_points["hook_pattern"].add_hook(
        lambda tensor, hook: kept.append(tensor.clone())
    ):
        bridge(**{**inputs, "attention_mask": None})
    distance = torch.arange(POS)[:, None] - torch.arange(POS)[None]
    band = (distance >= 0) & (distance < 5)
    assert torch.equal(kept[0] > 0, band.expand_as(kept[0]))


@every_path
@torch.no_grad()
def test_a_four_axis_mask_is_the_whole_truth(bridge: Any, inputs: Any, path: str) -> None:
    """One that lets every query see every key undoes causality and window."""
    everything = torch.zeros(2, 1, POS, POS)
    close(
        output(bridge, {**inputs, "attention_mask": everything}, path),
        hugging_face(bridge, {**inputs, "attention_mask": everything}),
    )


# ---- biases ----


@every_path
@pytest.mark.parametrize(
    "shape",
    [(2, 6, POS, POS), (1, 6, POS, POS), (2, 1, 1, POS), (1, 1, POS, POS)],
    ids=["whole", "heads", "keys", "pairs"],
)
@torch.no_grad()
def test_genuine_biases_are_added(
    bridge: Any, inputs: Any, path: str, shape: tuple[int, ...]
) -> None:
    bias = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(4))
    mask = bias.masked_fill(
        torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.2, LOWEST
    )
    given = {**inputs, "attention_mask": mask}
    live = (mask > LOWEST / 2).any(-1).all(1).expand(2, POS)
    close(output(bridge, given, path)[live], hugging_face(bridge, given)[live])


@every_path
def test_a_learned_bias_gets_its_gradient(bridge_layer: Any, family: str, path: str) -> None:
    bridge = bridge_layer(family)
    inputs = bridge.get_random_inputs(2, POS, seed=0)

    def gradient(forward: Callable[..., Tensor]) -> Tensor:
        bias = torch.randn(
            1, 6, POS, POS, generator=torch.Generator().manual_seed(4)
        ).requires_grad_()
        forward(
            {**inputs, "attention_mask": bias + inputs["attention_mask"]}
        ).square().sum().backward()
        assert bias.grad is not None
        return bias.grad

    torch.testing.assert_close(
        gradient(lambda given: output(bridge, given, path)),
        gradient(lambda given: hugging_face(bridge, given)),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("entry", "forbids"),
    [
        (LOWEST, True),
        (LOWEST / 2, True),
        (-torch.inf, True),
        (LOWEST / 4, False),
        (-1e9, False),
        (-20.0, False),
    ],
)
@torch.no_grad()
def test_only_the_lowest_numbers_forbid(bridge_layer: Any, entry: float, forbids: bool) -> None:
    bridge = bridge_layer("llama")
    inputs = bridge.get_random_inputs(1, 4, seed=0)
    inputs["attention_mask"][0, 0, 3, 0] = entry
    kept: list[Tensor] = []
    with bridge.hook_points["hook_attn_scores"].add_hook(
        lambda tensor, hook: kept.append(tensor.clone())
    ):
        bridge(**inputs)
    assert bool(kept[0][0, :, 3, 0].eq(-torch.inf).all()) is forbids


# ---- rows that see nothing ----


@every_path
@pytest.mark.parametrize("form", ["additive", "additive_minus_infinity", "boolean", "two_axes"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
@torch.no_grad()
def test_a_row_that_sees_nothing_gives_exactly_nothing(
    bridge_layer: Any, family: str, form: str, dtype: torch.dtype, path: str
) -> None:
    bridge = bridge_layer(family)
    bridge.original_component.to(dtype)
    inputs = bridge.get_random_inputs(2, POS, seed=0, left_padding=LEFT_PADDING)
    visible = inputs["attention_mask"] == 0
    two_axes = torch.arange(POS)[None] >= torch.tensor([0, LEFT_PADDING])[:, None]
    inputs["attention_mask"] = two_axes if form == "two_axes" else FORMS[form](visible)
    kept: dict[str, Tensor] = {}
    watched = ["hook_pattern", "hook_z"] if path == "watched" else ["hook_z"]
    for name in watched:
        bridge.hook_points[name].add_hook(
            lambda tensor, hook: kept.__setitem__(hook.spec.name, tensor.clone())
        )
    bridge(**inputs)
    assert not kept["hook_z"][1, :LEFT_PADDING].any()
    assert kept["hook_z"][1, LEFT_PADDING:].any()
    assert not any(
        kept[name][1, :, :LEFT_PADDING].any() for name in watched if name == "hook_pattern"
    )


@every_path
@pytest.mark.parametrize("form", ["additive", "additive_minus_infinity", "boolean"])
def test_a_row_that_sees_nothing_has_finite_gradients(
    bridge: Any, inputs: Any, visible: Tensor, form: str, path: str
) -> None:
    x = inputs["hidden_states"].requires_grad_()
    output(
        bridge, {**inputs, "attention_mask": FORMS[form](visible)}, path
    ).square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(
        weight.grad.isfinite().all()
        for weight in bridge.original_component.parameters()
        if weight.grad is not None
    )


@every_path
@torch.no_grad()
def test_a_key_that_may_not_be_seen_changes_nothing(bridge: Any, inputs: Any, path: str) -> None:
    """Poison at the padded positions: large, finite, and not a bit of it elsewhere."""
    plain = output(bridge, inputs, path)
    poisoned = inputs["hidden_states"].clone()
    poisoned[1, :LEFT_PADDING] = 1e4
    assert torch.equal(
        output(bridge, {**inputs, "hidden_states": poisoned}, path)[1, LEFT_PADDING:],
        plain[1, LEFT_PADDING:],
    )


# ---- caches ----


def chunk(inputs: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Some positions of a call without a mask, with their own tables."""
    cos, sin = inputs["position_embeddings"]
    return {
        "hidden_states": inputs["hidden_states"][:, start:stop],
        "position_embeddings": (cos[:, start:stop], sin[:, start:stop]),
        "attention_mask": None,
    }


CACHES: dict[str, Callable[[Any], Any]] = {
    "dynamic": lambda config: DynamicCache(),
    "dynamic_by_layer_type": lambda config: DynamicCache(config=config),
    "static": lambda config: StaticCache(config=config, max_cache_len=20),
}


@every_path
@pytest.mark.parametrize(
    "steps",
    [(4, 9), (1, 2, 3, 4, 5, 6, 7, 8, 9), (2, 9), (7, 8, 9)],
    ids=["4+5", "one_by_one", "2+7", "7+1+1"],
)
@pytest.mark.parametrize("kind", CACHES)
@every_layer
@torch.no_grad()
def test_chunks_after_a_cache_and_without_a_mask_give_the_rows_of_a_prefill(
    bridge: Any, inputs: Any, kind: str, steps: tuple[int, ...], path: str
) -> None:
    """Several queries at a time, past the window, where a sliding cache has dropped what no query
    sees."""
    wanted = output(bridge, {**inputs, "attention_mask": None}, path)
    cache = CACHES[kind](bridge.config)
    starts = (0, *steps[:-1])
    rows = [
        output(bridge, {**chunk(inputs, *span), "past_key_values": cache}, path)
        for span in zip(starts, steps, strict=True)
    ]
    close(torch.cat(rows, dim=1), wanted)


@pytest.mark.parametrize("mask", ["none", "two_axes", "four_axes"])
@torch.no_grad()
def test_tables_that_the_bridge_makes_go_on_where_the_cache_ends(
    bridge_layer: Any, family: str, mask: str
) -> None:
    """A decode step without position_embeddings, whatever mask comes with it."""
    bridge = bridge_layer(family, requires_position_embeddings=False)
    inputs = bridge.get_random_inputs(2, 6, seed=0)
    wanted = bridge(**inputs)[0][:, 4:]
    cache = DynamicCache()
    bridge(**chunk(inputs, 0, 4), past_key_values=cache)
    masks = {
        "none": None,
        "two_axes": torch.ones(2, 6),
        "four_axes": inputs["attention_mask"][:, :, 4:],
    }
    close(
        bridge(inputs["hidden_states"][:, 4:], attention_mask=masks[mask], past_key_values=cache)[
            0
        ],
        wanted,
    )


@every_path
def test_a_mask_of_three_axes_is_one_without_heads(
    bridge: Any, inputs: dict[str, Any], visible: Tensor, path: str
) -> None:
    """MASK-1."""
    wanted = output(bridge, {**inputs, "attention_mask": visible}, path)
    assert torch.equal(output(bridge, {**inputs, "attention_mask": visible[:, 0]}, path), wanted)
    additive = torch.zeros(visible.shape).masked_fill(~visible, LOWEST)
    torch.testing.assert_close(
        output(bridge, {**inputs, "attention_mask": additive[:, 0]}, path), wanted
    )


@every_path
def test_a_flex_mask_says_what_its_function_says(
    bridge: Any, inputs: dict[str, Any], visible: Tensor, path: str
) -> None:
    """MASK-1; the function reads a padding mask, as those of transformers do."""
    seen = visible.clone()
    mask = create_block_mask(
        lambda batch, head, query, key: seen[batch, 0, query, key], 2, None, POS, POS, device="cpu"
    )
    wanted = output(bridge, {**inputs, "attention_mask": visible}, path)
    torch.testing.assert_close(output(bridge, {**inputs, "attention_mask": mask}, path), wanted)


def test_a_flex_mask_of_the_wrong_shape_is_refused(bridge: Any, inputs: dict[str, Any]) -> None:
    """MASK-4."""
    mask = create_block_mask(
        lambda batch, head, query, key: query >= key, 2, None, POS, POS + 1, device="cpu"
    )
    with pytest.raises(
        MaskError, match=r"attention_mask has shape \(2, 1, 9, 10\); clause MASK-4 requires"
    ):
        bridge(**{**inputs, "attention_mask": mask})


def test_a_long_flex_mask_is_made_block_by_block(bridge: Any) -> None:
    """More queries than one block of rows holds: each block asks the function for its own rows and
    keys."""
    long = bridge.get_random_inputs(1, 300, seed=0)
    mask = create_block_mask(
        lambda batch, head, query, key: (query >= key) & (query - key < 7),
        1,
        None,
        300,
        300,
        device="cpu",
    )
    distance = torch.arange(300)[:, None] - torch.arange(300)[None]
    wanted = output(
        bridge, {**long, "attention_mask": ((distance >= 0) & (distance < 7))[None, None]}
    )
    torch.testing.assert_close(output(bridge, {**long, "attention_mask": mask}), wanted)


@pytest.mark.slow
def test_room_that_a_static_cache_has_is_hidden_beside_a_bias_of_keys() -> None:
    """SCORE-5, CACHE-1: which keys have the largest bias is asked of all of them, also where no row
    sees the last; watched or not."""
    check = CHECK_BY_NAME["steps_of_any_kind_give_what_the_whole_gives"]
    questions = check.questions(CASE_BY_ID["doge_0"], "float32", "cpu")
    found = {q.scenario: check(Bench(Factory()), q).outcome for q in questions}
    assert found.pop("decode_static_mask") == Outcome.PASS
    assert set(found.values()) == {Outcome.PASS}
