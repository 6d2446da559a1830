"""A loss or gradient that is not finite on one rank: all stop together, and what it was made of can be looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from aurora_ds.runtime import checkpoint, inspection

# Runs the training command with a fault on rank 1 in step 4.
FAULTY = """
import os, sys
import torch
from aurora_ds import train
from aurora_ds.runtime.engine import Engine
forward, seen = Engine.forward, [0]

def faulty(self, batch, what="loss", **keywords):
    losses = forward(self, batch, what=what, **keywords)
    if what == "loss" and self.deepspeed.training:
        seen[0] += 1
        if os.environ["RANK"] == "1" and seen[0] == 4:
            if sys.argv[-1] == "loss":
                losses["loss"] = losses["loss"] * float("nan")
            else:
                losses["loss"].register_hook(lambda gradient: gradient * float("inf"))
    return losses

Engine.forward = faulty
sys.exit(train.main(sys.argv[1:-1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_one_rank_is_not_finite(fault: str, launch, recipe: Path, tmp_path: Path) -> None:
    script, output = tmp_path / "faulty.py", tmp_path / "run"
    script.write_text(FAULTY)
    run = launch([script, recipe, "--output", output, "train.zero_stage=1", fault], ranks=2)
    assert run.wait(100) == [2, 2], run.output()
    for log in run.logs:
        said = next(line for line in log.read_text().splitlines() if line.startswith("aurora-ds"))
        assert "not finite in step 4" in said and "Traceback" not in log.read_text()
        assert "batches of all ranks and the state are in" in said
    folder = output / inspection.FOLDER / "step-00000004"
    records = [json.loads((folder / f"rank-0000{rank}.json").read_text()) for rank in (0, 1)]
    keys = [record["keys"] for record in records]
    only = [
        set(keys[rank]) - set(keys[1 - rank]) for rank in (0, 1)
    ]  # two captions of a picture share its key
    assert len(keys[0]) == len(keys[1]) == 4 and all(only)
    if fault == "loss":
        assert records[1]["losses"]["loss"] == "nan" and records[0]["losses"]["loss"] != "nan"
        named = records[0]["error"]
        assert all(key in named for key in keys[1]) and not any(key in named for key in only[0])
    batch = load_file(folder / "rank-00001.safetensors")
    assert batch["image"].shape == (4, 3, 32, 32) and batch["image"].isfinite().all()
    state = load_file(folder / "state.safetensors")
    assert all(value.isfinite().all() for value in state.values())
    assert checkpoint.find(output, "required").name == "step-00000002"
