"""Run on the real model: logits, layers, generation, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from ropebridge_conformance.judging.findings import Finding, verdict_of
from ropebridge_conformance.judging.verdicts import BAD, Verdict
from ropebridge_conformance.real import checkpoint
from ropebridge_conformance.real.greedy import continuation, judge_tokens
from ropebridge_conformance.real.heads import choose
from ropebridge_conformance.real.layers import judge_layer
from ropebridge_conformance.real.logits import (
    Distance,
    distance,
    exact_logits,
    judge_logits,
    judge_restored,
    logits_of,
)
from ropebridge_conformance.real.picture import draw
from ropebridge_conformance.real.recording import BridgedModelLike, record_model
from ropebridge_conformance.real.report import logits_table, stage_table
from ropebridge_conformance.results.files import write_results
from ropebridge_conformance.results.tables import summary

WAYS = ("eager", "sdpa")
POS, NEW_TOKENS = 640, 20
SENTENCE = (
    "Alice followed the White Rabbit. The Dormouse followed the Hatter. Alice followed the White"
    " Rabbit."
)
console, errors = Console(), Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass
class Run:
    """Hold one model under one `attach`, and the verdicts so far."""

    model: Any
    attach: Callable[[Any], BridgedModelLike]
    subject: str
    verdicts: list[Verdict] = field(default_factory=list)

    def note(self, clause: str, check: str, case: str, finding: Finding) -> None:
        """Keep a verdict on the model as a whole."""
        dtype, device, family = (
            str(self.model.dtype).removeprefix("torch."),
            self.model.device.type,
            self.model.config.model_type,
        )
        self.verdicts.append(
            verdict_of(
                finding,
                subject=self.subject,
                clause=clause,
                check=check,
                hook=None,
                family=family,
                case=case,
                scenario="",
                dtype=dtype,
                device=device,
            )
        )

    @contextmanager
    def bridging(self, way: str = "sdpa") -> Iterator[BridgedModelLike]:
        """Give the model with hooks in it, loaded as for Hugging Face's `way` of attending;
        afterwards it has none."""
        self.model.set_attn_implementation(way)
        bridged = self.attach(self.model)
        try:
            yield bridged
        finally:
            bridged.detach()


def judge_model(run: Run, ids: Tensor) -> dict[str, Distance]:
    """Judge logits without hooks, with hooks that nobody watches, and with all of them watched
    (PAR-1, LOOK-1)."""
    exact = exact_logits(run.model, ids)
    alone = {way: hugging_face_logits(run.model, ids, way) for way in WAYS}
    distances = {f"Hugging Face, {way}": distance(logits, exact) for way, logits in alone.items()}
    theirs = list(distances.values())
    for way in WAYS:
        with run.bridging(way) as bridged:
            unwatched, (_, watched) = (
                logits_of(run.model, ids),
                record_model(bridged, run.model, ids, way),
            )
        for state, logits in (("unwatched", unwatched), ("watched", watched[0])):
            who = f"{run.subject}, {way}, {state}"
            distances[who] = distance(logits, exact)
            run.note(
                "PAR-1",
                "logits_agree_with_hugging_face",
                f"{way}-{state}",
                judge_logits(distances[who], theirs),
            )
        run.note(
            "BACK-1",
            "detach_gives_the_model_back",
            way,
            judge_restored(hugging_face_logits(run.model, ids, way), alone[way]),
        )
    return distances


def hugging_face_logits(model: Any, ids: Tensor, way: str) -> Tensor:
    """Return the logits of the model alone, attending in one of Hugging Face's ways."""
    model.set_attn_implementation(way)
    return logits_of(model, ids)


def judge_layers(run: Run, ids: Tensor, progress: Callable[[str], None]) -> None:
    """Judge every layer, stage by stage, under the masks of both of Hugging Face's ways."""
    for way in WAYS:
        with run.bridging(way) as bridged:
            recorded, _ = record_model(bridged, run.model, ids, way)
        for layer in recorded:
            progress(f"{layer.specimen.dtype} {layer.scenario.id}")
            run.verdicts += judge_layer(layer, run.subject)


def judge_generation(run: Run, ids: Tensor) -> list[int]:
    """Judge greedy tokens with and without hooks, on either side of the window; those of the short
    prompt are given back."""
    prompts = {"short": ids[:, :24], "longer_than_the_window": ids}
    theirs = {name: continuation(run.model, prompt, NEW_TOKENS) for name, prompt in prompts.items()}
    for name, prompt in prompts.items():
        with run.bridging():
            ours = continuation(run.model, prompt, NEW_TOKENS)
        run.note(
            "PAR-1",
            "greedy_tokens_are_those_of_the_model_alone",
            name,
            judge_tokens(ours, theirs[name]),
        )
    return theirs["short"]


def draw_patterns(run: Run, tokenizer: Any, path: Path) -> str:
    """Draw the picture, and return in words which heads are in it."""
    ids = tokenizer(SENTENCE, return_tensors="pt").input_ids
    with run.bridging() as bridged:
        recorded, _ = record_model(bridged, run.model, ids, "picture")
    chosen = choose(
        {layer.number: layer.trace.values["hook_pattern"][0] for layer in recorded}, ids[0].tolist()
    )
    draw(
        chosen,
        [
            token.replace("▁", " ").strip() or "␣"
            for token in tokenizer.convert_ids_to_tokens(ids[0])
        ],
        path,
        "Gemma 3 270M",
    )
    return "; ".join(f"layer {c.layer} head {c.head} {c.does} ({c.weight:.2f})" for c in chosen)


def prose(tokenizer: Any, window: int) -> Tensor:
    """Return (1, pos) token ids of real text, longer than the window.

    Raises:
        ValueError: the text is too short for the window.
    """
    text = files("ropebridge_conformance.real").joinpath("alice.txt").read_text(encoding="utf-8")
    ids: Tensor = tokenizer(text, return_tensors="pt").input_ids[:, :POS]
    if ids.shape[1] <= window:
        raise ValueError(
            f"the text has {ids.shape[1]} tokens; it must be longer than the window of {window}"
        )
    return ids


def load_attach(path: str) -> Callable[[Any], BridgedModelLike]:
    """Return the function at `package.module:attach`; a bad path ends the run with exit code 2."""
    module, _, name = path.partition(":")
    try:
        attach: Callable[[Any], BridgedModelLike] = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        errors.print(
            f"cannot load {path!r}: {type(error).__name__}: {error}\n  --attach takes"
            " package.module:function",
            markup=False,
        )
        raise typer.Exit(2) from error
    return attach


@app.command()
def main(
    attach: Annotated[
        str, typer.Option(help="what puts hooks into a model: package.module:function")
    ] = "ropebridge:attach",
    results: Annotated[
        Path, typer.Option(help="folder for verdicts.jsonl and patterns.png")
    ] = Path("results/real"),
    cache: Annotated[
        Path | None,
        typer.Option(
            help=(
                "folder for the assembled model (default: $ROPEBRIDGE_CACHE, or"
                " ~/.cache/ropebridge)"
            )
        ),
    ] = None,
) -> None:
    """Attach to Gemma 3 270M and judge it on real text. Exit code 1 if any verdict is bad, 2 if the
    call is."""
    run_on = partial(Run, attach=load_attach(attach), subject=attach.partition(":")[0])
    with console.status("assembling Gemma 3 270M (first run only)"):
        folder = checkpoint.prepare(cache or checkpoint.default_cache())
    model, tokenizer = checkpoint.load(folder)
    ids = prose(tokenizer, model.config.sliding_window)
    console.print(
        f"{ids.shape[1]} tokens of Alice's Adventures in Wonderland; window"
        f" {model.config.sliding_window}, {len(model.model.layers)} layers"
    )
    run = run_on(model)
    with console.status("logits") as status:
        distances = judge_model(run, ids)
        console.print(logits_table(distances))
        status.update("generating")
        tokens = judge_generation(run, ids)
        console.print(
            f"{NEW_TOKENS} greedy tokens after the first 24: {tokenizer.decode(tokens)!r}"
        )
        console.print(
            f"picture: {results / 'patterns.png'}:"
            f" {draw_patterns(run, tokenizer, results / 'patterns.png')}"
        )
        layers = run_on(model)
        judge_layers(layers, ids, status.update)
        half = run_on(checkpoint.load(folder, torch.bfloat16)[0])
        judge_layers(half, ids, status.update)
    report(
        [*run.verdicts, *layers.verdicts, *half.verdicts],
        layers.verdicts + half.verdicts,
        results,
        attach,
    )


def report(verdicts: list[Verdict], of_layers: list[Verdict], results: Path, subject: str) -> None:
    """Print tables, what is bad and counts, and write the file; the exit code is 1 if anything is
    bad."""
    write_results(results / "verdicts.jsonl", verdicts, [subject], ["cpu"])
    console.print(stage_table(of_layers))
    bad = [v for v in verdicts if v.outcome in BAD]
    for v in bad[:20]:
        console.print(
            f"{v.outcome} {v.clause} {v.check} [{v.hook or 'model'}-{v.case}-{v.dtype}]:"
            f" {v.reason}",
            markup=False,
        )
    console.print(summary(verdicts))
    console.print(f"results: {results / 'verdicts.jsonl'}")
    if bad:
        raise typer.Exit(1)
