"""Tensor parallelism: each rank has its own share of the heads, which its hooks show, and the model
gives what it gave without a bridge. Two processes on this machine, talking by gloo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
pytestmark = [pytest.mark.slow, pytest.mark.every, pytest.mark.timeout(300)]

FAMILIES = ("llama", "qwen3", "gemma2", "glm", "glm4", "phi", "gpt_oss", "olmo2")
"""Cohere with q/k norms fails under tensor parallelism in transformers itself: the norms' weights,
one for each head, are not shared out."""
RANK = """
import json, os, sys, tempfile
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.utils import logging
from ropebridge import attach
from ropebridge_spec import RopebridgeError

logging.disable_progress_bar()
torch.set_num_threads(1)
dist.init_process_group("gloo")
for line in sys.stdin:
    name, path = json.loads(line)
    model = AutoModelForCausalLM.from_pretrained(path, tp_plan="auto", dtype=torch.float32)
    ids = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    found = {"family": name, "rank": dist.get_rank()}
    with torch.no_grad():
        alone = model(ids).logits
        with attach(model) as bridged:
            watched, cache = bridged.run_with_cache(ids)
            found["unwatched"] = float((bridged(ids).logits - alone).abs().max())
            found["watched"] = float((watched.logits - alone).abs().max())
            found["z"] = list(cache["blocks.0.attn.hook_z"].shape)
        try:
            attach(model, use_attn_result=True)
        except RopebridgeError as error:
            found["refusal"] = str(error)
    print(json.dumps(found), flush=True)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(build: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Family -> what both ranks found."""
    lines = []
    for name in FAMILIES:
        folder: Path = tmp_path_factory.mktemp(name)
        build(name).save_pretrained(folder)
        lines.append(json.dumps([name, str(folder)]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [start(rank, port) for rank in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n".join(lines))
        process.stdin.close()
        process.stdin = None
    found: dict[str, list[Any]] = {name: [] for name in FAMILIES}
    for process in processes:
        said, _ = process.communicate()
        for one in map(json.loads, said.splitlines()):
            found[one["family"]].append(one)
    return found


def start(rank: int, port: str) -> subprocess.Popen[str]:
    """One of two processes."""
    world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return subprocess.Popen(
        [sys.executable, "-c", RANK],
        env={**os.environ, **world, **address},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rank_computes_its_share_of_the_heads(ranks: dict[str, list[Any]], family: str) -> None:
    assert [one["rank"] for one in ranks[family]] == [0, 1]
    for one in ranks[family]:
        assert one["unwatched"] < 1e-5
        assert one["watched"] < 1e-5


def test_a_hook_shows_the_heads_of_its_rank(ranks: dict[str, list[Any]]) -> None:
    assert [one["z"] for one in ranks["llama"]] == [[2, 12, 3, 20]] * 2


def test_weights_by_head_are_refused_by_name(ranks: dict[str, list[Any]]) -> None:
    assert ranks["llama"][0]["refusal"] == (
        "'blocks.0.attn': use_attn_result needs the weight of 'o_proj', of which each rank of a"
        " tensor-parallel model holds a part\n  load the model without tp_plan, or leave the"
        " opt-in off"
    )
