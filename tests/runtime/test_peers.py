"""Two ranks that take themselves for hosts of their own: who falls silent is named, and who says goodbye is not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aurora_ds.runtime import heartbeat, peers
from aurora_ds.runtime.process_group import CollectiveTimeout, explaining_lost_ranks

RANK = """
import sys
from aurora_ds.runtime import failure, heartbeat, process_group
from aurora_ds.runtime.stop import StopRequest
heartbeat._alive = lambda pid, born: False  # no other process can be seen from here
process_group.start()
output = sys.argv[1]
report = lambda error: failure.write(output, error)
with heartbeat.Heartbeat(output, StopRequest(), unreachable=6.0, report=report) as beat:
    beat.at("evaluation", 7)
    print("in", flush=True)
    sys.stdin.readline()
process_group.stop()
"""


@pytest.fixture
def ranks(tmp_path: Path, repository: Path):
    """Two ranks inside their heartbeats; a line on their input ends them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    variables |= {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path)],
            env=os.environ | variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [each.stdout.readline() for each in started] == ["in\n", "in\n"]
    yield started
    for each in started:
        each.kill()
        each.communicate()


@pytest.mark.parametrize("silent", [0, 1])
def test_a_silent_host_ends_the_others_which_name_its_rank_and_phase(
    silent: int, ranks: list[subprocess.Popen], tmp_path: Path
) -> None:
    time.sleep(3 * peers.INTERVAL)
    began = time.monotonic()
    ranks[silent].send_signal(signal.SIGSTOP)
    assert ranks[1 - silent].wait(100) == 2
    said = ranks[1 - silent].stderr.read()
    assert time.monotonic() - began > 4, said
    here = socket.gethostname()
    assert f"from rank {silent} on {here}, last in evaluation of step 7" in said, said
    assert "train.unreachable_seconds is 6" in said and "still in evaluation of step 7" in said
    report = (tmp_path / "failures" / f"rank-{1 - silent:05d}.txt").read_text()
    assert "no sign of life for" in report and '"phase": "evaluation"' in report


def test_ranks_that_end_well_are_not_missed(ranks: list[subprocess.Popen]) -> None:
    ranks[1].stdin.write("\n")
    ranks[1].stdin.flush()
    assert ranks[1].wait(100) == 0
    time.sleep(8)  # longer than silence is borne
    assert ranks[0].poll() is None
    _, said = ranks[0].communicate("\n", timeout=100)
    assert ranks[0].returncode == 0 and "sign of life" not in said, said


def test_a_process_that_slept_does_not_blame_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(peers.time, "monotonic", lambda: clock[0])
    alone = peers.Peers({0}, 6.0, lambda: [], "ended")
    monkeypatch.setattr(peers.process_group, "rank", lambda: 1)
    alone._theirs, alone._heard = {0: ""}, {0: clock[0]}
    clock[0] += 60
    assert alone.lost() == ""
    clock[0] += 5
    assert alone.lost() == ""
    clock[0] += 2
    assert "no sign of life for 7 s from the host of rank 0" in alone.lost()


def test_who_did_not_come_to_a_collective_is_who_has_begun_fewer() -> None:
    def beat(rank: int, begun: int) -> dict:
        return {"rank": rank, "host": "node", "phase": "waiting for data", "step": 3, "collectives": begun}

    assert (
        heartbeat.not_there([beat(0, 9), beat(1, 8)], 9)
        == "; not there: rank 1 on node (waiting for data of step 3)"
    )
    assert "wait for this rank" in heartbeat.not_there([beat(0, 9), beat(1, 8)], 8)
    assert heartbeat.not_there([beat(0, 9), beat(1, 9)], 9) == ""


def test_a_collective_that_timed_out_is_told_from_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aurora_ds.runtime.process_group.world_size", lambda: 2)
    with pytest.raises(CollectiveTimeout, match="train.collective_timeout_seconds"), explaining_lost_ranks():
        raise RuntimeError("[unbound_buffer.cc:78] Timed out waiting 5000ms for recv operation to complete")
