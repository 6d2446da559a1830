"""A failure leaves what is known: the error, all heartbeats, the last collective calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aurora_ds.errors import AuroraError
from aurora_ds.runtime import failure, heartbeat
from aurora_ds.runtime.process_group import LostRank


def beat(output: Path, rank: int, phase: str) -> None:
    path = heartbeat.file_of(output, rank)
    path.parent.mkdir(exist_ok=True)
    now = time.time()
    path.write_text(
        json.dumps({"rank": rank, "host": "node", "phase": phase, "step": 3, "since": now, "time": now})
    )


def test_a_lost_rank_is_told_with_what_every_rank_did_last(tmp_path: Path) -> None:
    beat(tmp_path, 0, "failed in backward and update")
    beat(tmp_path, 1, "waiting for data")
    with (
        pytest.raises(
            AuroraError, match="lost.*Last signs of life: .*rank 1 on node: waiting for data of step 3"
        ),
        failure.reporting(tmp_path),
    ):
        raise LostRank("Rank 0 lost its connection.")
    report = (tmp_path / "failures" / "rank-00000.txt").read_text()
    assert "LostRank: Rank 0 lost" in report and '"phase": "waiting for data"' in report


def test_a_defect_keeps_its_trace_and_the_place_of_the_report_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ZeroDivisionError), failure.reporting(tmp_path):
        raise ZeroDivisionError("ours")
    path = tmp_path / "failures" / "rank-00000.txt"
    assert "ZeroDivisionError: ours" in path.read_text() and str(path) in capsys.readouterr().out


def test_wrong_input_is_a_paragraph_and_no_report(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match="^a wrong value$"), failure.reporting(tmp_path):
        raise AuroraError("a wrong value")
    assert not (tmp_path / "failures").exists()


RECORDED = """
import sys
import torch.distributed
from aurora_ds.runtime import failure, process_group
failure.record_collectives(sys.argv[1])
process_group.start()
torch.distributed.all_reduce(torch.ones(3))
print(failure._line(failure.last_collectives()[-1]))
process_group.stop()
"""


def test_the_last_collective_calls_are_known_by_default(tmp_path: Path, repository: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(repository), "DS_ACCELERATOR": "cpu"}
    environment = {name: value for name, value in environment.items() if not name.startswith("TORCH_FR")}
    run = subprocess.run(
        [sys.executable, "-c", RECORDED, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "gloo:all_reduce [[3]] ['Float']" in run.stdout, run.stdout + run.stderr
