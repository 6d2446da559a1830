"""A disk that takes its time over a checkpoint: the other ranks wait; a kill meanwhile costs only that checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_run import wait_for

from aurora_ds.runtime import checkpoint, heartbeat
from aurora_ds.runtime.metrics_log import FILE, read

# The training command on a disk whose every wait (fsync) takes seconds, from the second checkpoint on.
SLOW = """
import os, sys, time
from aurora_ds import train
fsync, saved = os.fsync, [0]

def slow(descriptor):
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    saved[0] += path.endswith("latest")
    if saved[0] >= 1 and "checkpoints" in path:
        time.sleep(float(sys.argv[-1]))
    fsync(descriptor)

os.fsync = slow
sys.exit(train.main(sys.argv[1:-1]))
"""


def start(launch, recipe: Path, tmp_path: Path, seconds: float, *settings: str):
    script, output = tmp_path / "slow.py", tmp_path / "run"
    script.write_text(SLOW)
    return launch([script, recipe, "--output", output, *settings, seconds], ranks=2), output


@pytest.mark.slow
def test_the_ranks_wait_for_it(launch, recipe: Path, tmp_path: Path) -> None:
    run, output = start(launch, recipe, tmp_path, 0.3, "train.max_steps=4")
    assert run.wait(120) == [0, 0], run.output()
    assert checkpoint.find(output, "required").name == "step-00000004"


@pytest.mark.slow
def test_killed_meanwhile_the_one_before_is_whole(
    launch, train_command, recipe: Path, tmp_path: Path
) -> None:
    run, output = start(launch, recipe, tmp_path, 30)
    first = output / "checkpoints" / "step-00000002"
    wait_for(lambda: first.is_dir() and list(first.parent.glob(".writing-step-00000004")), run)
    wait_for(lambda: any(beat["phase"] == "saving" for beat in heartbeat.read(output)), run)
    run.kill()
    assert checkpoint.find(output, "required") == checkpoint.latest(output) == first
    train_command(output, "train.max_steps=6", ranks=2)
    assert [line["step"] for line in read(output / FILE) if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
