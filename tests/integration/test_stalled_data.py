"""A rank that waits for its data says at which sample, while the others only wait for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_run import wait_for

from aurora_ds.runtime import heartbeat

# The training command, in which the shards are very slow for rank 1 in the third batch.
STALLED = """
import os, sys, time
from aurora_ds import train
from aurora_ds.data.reader import ShardReader
read, seen = ShardReader.read, [0]

def slow(self, split, medium):
    seen[0] += 1
    if os.environ["RANK"] == "1" and seen[0] == 10:
        time.sleep(16)
    return read(self, split, medium)

ShardReader.read = slow
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_rank_that_stalls_names_the_sample(launch, recipe: Path, tmp_path: Path) -> None:
    script, output = tmp_path / "stalled.py", tmp_path / "run"
    script.write_text(STALLED)
    settings = ["data.slow_seconds=5", "data.decoded_mb=0", "train.max_steps=4"]
    run = launch([script, recipe, "--output", output, *settings], ranks=2)
    wait_for(lambda: "waiting for data" in run.output(), run)
    beats = {beat["rank"]: beat for beat in heartbeat.read(output)}
    # it reads one batch ahead, and the other waits for it in the step before
    assert beats[1]["phase"] == "waiting for data" and beats[1]["step"] == beats[0]["step"] + 1
    assert run.wait(120) == [0, 0], run.output()
    said = [
        re.findall(r"waiting for data \d+ s at shard train-\d+\.tar \(sample \d+ in it\)", log.read_text())
        for log in run.logs
    ]
    assert len(said[1]) >= 2 and not said[0], run.output()
