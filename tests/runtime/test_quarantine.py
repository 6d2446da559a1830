"""bad_samples.jsonl: of all ranks, each sample once, also after a resume; counts; the limit of all ranks together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aurora_ds.data.unreadable import Limit, TooManyUnreadable
from aurora_ds.errors import AuroraError
from aurora_ds.runtime.ahead import Ahead
from aurora_ds.runtime.metrics_log import read
from aurora_ds.runtime.monitor import Monitor
from aurora_ds.runtime.quarantine import FILE, Quarantine
from aurora_ds.runtime.stop import StopRequest
from aurora_ds.verify.ranks import on_two_ranks


def entry(medium: int, reason: str = "decode", epoch: int = 0) -> dict[str, Any]:
    place = {
        "dataset": "coco/train",
        "shard": f"train-{medium // 10:06d}.tar",
        "key": f"k{medium}",
        "medium": medium,
    }
    return {**place, "reason": reason, "message": "it is torn", "epoch": epoch, "substitute": False}


def batches(*bad: list[dict[str, Any]]):
    return iter([{"bad": entries} for entries in bad])


def listed(folder: Path) -> list[int]:
    return [json.loads(line)["medium"] for line in (folder / FILE).read_text().splitlines()]


def next_batch(quarantine: Quarantine, source: Iterator) -> dict[str, Any]:
    """As the loop does it, with the agreement alone."""
    ahead = Ahead(source, quarantine, StopRequest())
    ahead.read()
    ahead.agree()
    return ahead.take()


def test_a_sample_is_listed_once_and_counted_each_time(tmp_path: Path) -> None:
    quarantine, monitor = Quarantine(tmp_path, Limit(1.0, 10)), Monitor(tmp_path, enabled=False)
    source = batches([entry(3), entry(12, "checksum")], [entry(3)])
    next_batch(quarantine, source)
    next_batch(quarantine, source)
    assert not (tmp_path / FILE).exists(), "written at the next line of the log"
    quarantine.collect(monitor, 5, 40)
    assert listed(tmp_path) == [3, 12]
    line = json.loads((tmp_path / FILE).read_text().splitlines()[0])
    assert line["reason"] == "decode" and line["shard"] == "train-000000.tar" and "substitute" not in line
    figures = read(tmp_path / "metrics.jsonl")[-1]
    assert figures == {"step": 5, "samples": 40, "bad_samples/decode": 2, "bad_samples/checksum": 1}
    assert quarantine.shards["coco/train, train-000000.tar", "decode"] == 2
    monitor.close()


def test_a_resumed_run_goes_on_with_the_list_and_a_new_one_begins_anew(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(entry(3)) + "\n" + '{"torn')
    resumed = Quarantine(tmp_path, Limit(1.0, 10), fresh=False)
    next_batch(resumed, batches([entry(3), entry(4)]))
    resumed.collect(Monitor(tmp_path, enabled=False), 1, 8)
    assert listed(tmp_path) == [3, 4]
    Quarantine(tmp_path, Limit(1.0, 10))
    assert not (tmp_path / FILE).exists()


def test_what_stops_the_run_is_in_the_list(tmp_path: Path) -> None:
    def failing():
        raise TooManyUnreadable("100 in a row", [entry(7)])
        yield

    with pytest.raises(AuroraError, match="100 in a row"):
        next_batch(Quarantine(tmp_path, Limit(1.0, 10)), failing())
    assert listed(tmp_path) == [7]


def _two_ranks(rank: int, folder: str) -> dict[str, torch.Tensor]:
    quarantine = Quarantine(folder, Limit(0.3, 10))
    monitor = Monitor(folder, enabled=False)
    source = batches([entry(rank)], [entry(10 + rank)], [])
    next_batch(quarantine, source)
    quarantine.collect(monitor, 1, 8)
    next_batch(quarantine, source)
    try:
        quarantine.collect(monitor, 2, 16)
    except TooManyUnreadable as error:
        stopped = "epoch's 10 samples 4 could not be read" in str(error)

    def failing():
        if rank == 1:
            raise TooManyUnreadable("rank 1 reads nothing", [entry(5)])
        yield {"bad": [entry(6)]}

    try:
        next_batch(quarantine, failing())
    except AuroraError as error:
        told = "rank 1 reads nothing" in str(error)
    return {f"stopped {rank}": torch.tensor(stopped), f"told {rank}": torch.tensor(told)}


@pytest.mark.slow
def test_ranks_are_gathered_limited_and_stopped_together(tmp_path: Path) -> None:
    """Two of each rank are four of ten: neither alone is above 0.3. Then rank 1 cannot go on."""
    found = on_two_ranks(_two_ranks, str(tmp_path))
    assert len(found) == 4 and all(found.values())
    assert sorted(listed(tmp_path)) == [0, 1, 5, 6, 10, 11]
