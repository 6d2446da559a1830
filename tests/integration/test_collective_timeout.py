"""A rank that does not come to a collective call, though it is alive: the others end within
train.collective_timeout_seconds and say which rank it is and what it does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_resume import losses

# The training command, in which rank 1 never leaves one phase of its third step.
STUCK = """
import os, sys, time
from aurora_ds import train
from aurora_ds.runtime.heartbeat import Heartbeat
at = Heartbeat.at

def stuck(self, phase, step=None):
    at(self, phase, step)
    if os.environ["RANK"] == "1" and self._step == 3 and phase == {phase!r}:
        time.sleep(3600)

Heartbeat.at = stuck
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("phase", ["waiting for data", "backward and update"])
def test_a_rank_that_does_not_come_is_named_with_its_phase(
    phase: str, launch, train_command, recipe: Path, tmp_path: Path
) -> None:
    script, output = tmp_path / "stuck.py", tmp_path / "run"
    script.write_text(STUCK.format(phase=phase))
    settings = ["train.save_every=1", "train.max_steps=6"]
    run = launch(
        [script, recipe, "--output", output, *settings, "train.collective_timeout_seconds=15"], ranks=2
    )
    # the one that is stuck ends when the other is gone, or when it has kept the others waiting for too long
    assert run.wait(400) == [2, 2], run.output()[-6000:]
    waited, stuck = (log.read_text() for log in run.logs)
    assert "for as long as train.collective_timeout_seconds allows" in waited
    assert re.search(rf"Not there: rank 1 on \S+ \({phase} of step 3\)", waited), waited[-4000:]
    assert re.search(r"rank 0 \(process \d+\) is gone|the others are there, and wait for this rank", stuck), (
        stuck[-4000:]
    )
    assert "--resume auto" in stuck
    report = (output / "failures" / "rank-00000.txt").read_text()
    assert "CollectiveTimeout" in report and f'"phase": "{phase}"' in report and "gloo:all_reduce" in report
    train_command(output, *settings, ranks=2)
    assert list(losses(output)) == [1, 2, 3, 4, 5, 6]
