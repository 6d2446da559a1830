"""Self-critical training on two ranks is that on one: captions are drawn by sample, tokens are counted over ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1] / "wiring"))
from caption_runs import image_recipe, image_shards


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(launch, tmp_path: Path) -> None:
    recipe = image_recipe(tmp_path, image_shards(tmp_path / "shards"))
    settings = ["caption.objective=self_critical", "data.expand=media", "train.max_steps=3", "train.lr=1e-3"]
    found = []
    for ranks in (1, 2):
        output = tmp_path / f"on-{ranks}"
        run = launch(["-m", "aurora_ds.train", recipe, "--output", output, *settings], ranks)
        assert run.wait() == [0] * ranks, run.output()[-6000:]
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        names = ("train/loss", "train/reward", "train/reward_baseline", "train/gradient_norm")
        figures = [line[name] for line in lines if "train/loss" in line for name in names]
        found.append((figures, load_file(output / "adapter" / "adapter_model.safetensors")))
    (one, first), (two, second) = found
    assert two == pytest.approx(one, rel=1e-4, abs=1e-7) and max(one[1::4]) > 0
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-5, rtol=1e-4, msg=name)
