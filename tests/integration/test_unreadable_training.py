"""Whole runs over damaged shards, over clips, and on from a checkpoint of other data."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from aurora_ds.data.manifest import Manifest
from aurora_ds.runtime import checkpoint
from aurora_ds.runtime.metrics_log import read

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from written_shards import clip_sample, frames_sample, write_shards


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    """One of the 24 training pictures destroyed: two of 48 pairs."""
    folder = shutil.copytree(shards, tmp_path / "damaged")
    address = Manifest.load(folder).address("train", 5)
    with open(folder / address.shard, "r+b") as file:
        file.seek(address.end - 1024)
        file.write(bytes(300))
    return folder


def test_a_run_goes_on_over_a_damaged_sample_and_says_so(damaged: Path, train, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(output, f"data.shards={damaged}", "data.max_bad_share=0.05", "data.workers=2")
    (line,) = [json.loads(line) for line in (output / "bad_samples.jsonl").read_text().splitlines()]
    assert (line["medium"], line["reason"], line["shard"]) == (5, "checksum", "train-000000.tar")
    figures = read(output / "metrics.jsonl")
    # two pairs in each of two epochs; a substitute may have been the other one
    assert sum(row.get("train/skipped_samples", 0) for row in figures) == 4
    assert [row["bad_samples/checksum"] for row in figures if "bad_samples/checksum" in row][-1] >= 4
    assert (output / "results.json").is_file()


def test_more_damage_than_allowed_stops_the_run(damaged: Path, recipe: Path, tmp_path: Path, capfd) -> None:
    from aurora_ds.train import main

    output = tmp_path / "run"
    assert main([str(recipe), "--output", str(output), f"data.shards={damaged}"]) == 2
    said = capfd.readouterr().err
    assert "Of an epoch's 48 samples 1 could not be read, more than data.max_bad_share (0.01)" in said
    assert "(checksum)" in said and len((output / "bad_samples.jsonl").read_text().splitlines()) == 1


def test_a_checkpoint_of_another_order_is_refused(recipe: Path, train, tmp_path: Path, capfd) -> None:
    from aurora_ds.train import main

    train(tmp_path / "first", "train.max_steps=2")
    place = checkpoint.find(tmp_path / "first", "required")
    command = [str(recipe), "--output", str(tmp_path / "other"), "--resume", str(place), "data.window=8"]
    assert main(command) == 2
    assert "was trained on another order of samples" in capfd.readouterr().err


def test_clips_are_trained_on_and_evaluated(train, tmp_path: Path) -> None:
    clips = [[clip_sample(n) for n in range(5)], [frames_sample(n) for n in range(5, 9)]]
    write_shards(tmp_path / "clips", {"train": clips, "test": [[clip_sample(n) for n in range(20, 24)]]})
    output = tmp_path / "run"
    train(output, f"data.shards={tmp_path / 'clips'}", "data.video.frames=2", "monitor.gallery_queries=2",
          "monitor.tensorboard=true", "retrieval.k_test=2", "train.epochs=1")  # fmt: skip
    results = json.loads((output / "results.json").read_text())
    assert results["clips"] == 4 and 0 <= results["metrics"]["r_mean"] <= 100
