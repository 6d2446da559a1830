"""Unreadable samples: replaced by others of the plan, listed with reason and shard, limited; long waits are told."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from written_shards import image_sample, write_shards

from aurora_ds.config import RunConfig
from aurora_ds.data import loader
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.data.unreadable import MOST_IN_A_ROW, Limit, TooManyUnreadable
from aurora_ds.data.waiting import ReadingBoard, Watch

Configs = Callable[..., RunConfig]


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    """The small dataset with one image of train destroyed and its second shard missing."""
    folder = shutil.copytree(shards, tmp_path / "damaged")
    manifest = Manifest.load(folder)
    address = manifest.address("train", 40)
    with open(folder / address.shard, "r+b") as file:
        file.seek(address.end - 1500)
        file.write(bytes(200))
    (folder / manifest.address("train", 7).shard).unlink()
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_each_is_listed_with_its_reason_and_shard(
    run_config: Configs, tokenizer, damaged: Path, workers: int
) -> None:
    config = run_config(shards=str(damaged), max_bad_share=1.0, workers=workers, global_batch_size=10)
    batches = list(loader.train_loader(config, tokenizer, 1, 0, 0))
    bad = [entry for batch in batches for entry in batch["bad"]]
    assert {entry["reason"] for entry in bad if entry["medium"] == 40} == {"checksum"}
    assert {entry["key"] for entry in bad if entry["medium"] == 40} == {"train-0000040-040"}
    missing = [entry for entry in bad if entry["shard"] == "train-000001.tar"]
    assert {entry["medium"] for entry in missing} == set(range(7, 14)), "a shard counts as its samples"
    assert {entry["reason"] for entry in missing} == {"shard_missing"} and missing[0]["key"] is None
    assert "train-000001.tar" in missing[0]["message"]
    replaced = sum(not entry["substitute"] for entry in bad)
    assert sum(batch["skipped"] for batch in batches) == replaced == 14 + 2, "pairs of 7 to 13, and of 40"
    assert all(len(batch["keys"]) == 10 for batch in batches)


def test_above_the_share_the_run_stops_with_the_list(run_config: Configs, tokenizer, damaged: Path) -> None:
    config = run_config(shards=str(damaged), max_bad_share=0.1, global_batch_size=10)
    with pytest.raises(TooManyUnreadable) as caught:
        list(loader.train_loader(config, tokenizer, 1, 0, 0))
    message = str(caught.value)
    assert "could not be read, more than data.max_bad_share (0.1) allows" in message
    assert "train-000001.tar (shard_missing)" in message and caught.value.bad


def test_the_limit_counts_per_epoch_and_not_substitutes() -> None:
    def entries(epoch: int, many: int, substitute: bool = False) -> list[dict]:
        place = {"dataset": "d", "shard": "s", "key": "k", "medium": 0, "reason": "decode"}
        return [{**place, "epoch": epoch, "substitute": substitute}] * many

    limit = Limit(0.05, 100)
    limit.add([])
    limit.add(entries(0, 5) + entries(0, 50, substitute=True))
    limit.add(entries(0, 0))
    limit.add(entries(1, 5))
    with pytest.raises(TooManyUnreadable, match="an epoch's 100 samples 6 could not be read"):
        limit.add(entries(1, 1))


def test_many_in_a_row_stop_the_run_whatever_the_share(
    run_config: Configs, tokenizer, tmp_path: Path
) -> None:
    manifest = write_shards(tmp_path, {"train": [[image_sample(n) for n in range(60)]]})
    (tmp_path / manifest.address("train", 0).shard).unlink()
    config = run_config(shards=str(tmp_path), max_bad_share=1.0)
    with pytest.raises(TooManyUnreadable, match="^100 samples in a row cannot be read") as caught:
        next(iter(loader.train_loader(config, tokenizer, 1, 0, 0)))
    assert len(caught.value.bad) == MOST_IN_A_ROW == 100


def test_a_slow_shard_is_named(
    run_config: Configs, tokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = ShardReader.read

    def slow(self: ShardReader, split: str, medium: int) -> object:
        if medium == 30:
            time.sleep(1.2)
        return plain(self, split, medium)

    monkeypatch.setattr(ShardReader, "read", slow)
    config = run_config(workers=2, slow_seconds=0.4, decoded_mb=0)
    with caplog.at_level(logging.WARNING):
        batches = list(loader.train_loader(config, tokenizer, 1, 0, 0))
    assert len(batches) == 5
    where = "s at shard train-000004.tar (sample 2 in it)"
    assert any("waiting for data" in line and where in line for line in caplog.messages)


def test_a_wait_that_is_short_or_over_is_not_told() -> None:
    told: list[str] = []
    board = ReadingBoard(1, lambda source, medium: f"shard {source} {medium}")
    with Watch(board, 1.0, told.append) as watch:
        for _ in range(4):
            watch.begin()
            time.sleep(0.3)
            watch.end()
        time.sleep(0.6)
    assert told == []
    board.note(2, 5)
    with Watch(board, 0.05, told.append) as watch:
        watch.begin()
        deadline = time.monotonic() + 60
        while len(told) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(told) >= 2 and told[0].endswith("s at shard shard 2 5")
