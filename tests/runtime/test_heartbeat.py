"""Heartbeats: what each rank does is on disk every second, and a process that waits for the dead ends by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aurora_ds.runtime import heartbeat
from aurora_ds.runtime.heartbeat import Heartbeat
from aurora_ds.runtime.stop import StopRequest


def test_the_phase_and_the_time_are_written_while_the_main_thread_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.02)
    with Heartbeat(tmp_path, StopRequest()) as beat:
        beat.at("forward", 7)
        first = heartbeat.read(tmp_path)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            (seen,) = heartbeat.read(tmp_path)
            if seen["step"] == 7 and seen["time"] > first[0]["time"] + 0.1:
                break
        assert (seen["phase"], seen["step"], seen["pid"]) == ("forward", 7, os.getpid())
        assert seen["time"] > seen["since"]
    (last,) = heartbeat.read(tmp_path)
    assert last["phase"] == "ended"


def test_a_failure_keeps_the_phase_it_came_in(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Heartbeat(tmp_path, StopRequest()) as beat:
        beat.at("backward and update", 3)
        raise ZeroDivisionError
    assert heartbeat.read(tmp_path)[0]["phase"] == "failed in backward and update"


def test_words_name_the_silent_rank(tmp_path: Path) -> None:
    now = time.time()
    for rank, age in ((0, 0.5), (1, 70.0)):
        path = heartbeat.file_of(tmp_path, rank)
        path.parent.mkdir(exist_ok=True)
        record = {"rank": rank, "host": "node", "phase": "forward", "step": 5, "time": now - age}
        path.write_text(json.dumps(record | {"since": now - age - 2}))
    said = heartbeat.in_words(tmp_path, now)
    assert said == (
        "rank 0 on node: forward of step 5 since 2 s; rank 1 on node: forward of step 5 since 2 s, silent for 70 s"
    )


def test_an_output_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / heartbeat.FOLDER).write_text("")
    with pytest.warns(UserWarning, match="Heartbeats are not written"), Heartbeat(tmp_path, StopRequest()):
        pass


LEFT_ALONE = """
import sys, time
from aurora_ds.runtime import heartbeat
from aurora_ds.runtime.stop import StopRequest
heartbeat.SECONDS, heartbeat.GRACE_FOR_RANK, heartbeat.GRACE_FOR_LAUNCHER = 0.05, 0.3, 0.3
beat = heartbeat.Heartbeat(sys.argv[1], StopRequest())
other = (int(sys.argv[2]), int(sys.argv[3]))
(beat._others if sys.argv[4] == "rank" else beat._launchers)[1 if sys.argv[4] == "rank" else "deepspeed"] = other
with beat:
    beat.at("forward", 4)
    print("waiting", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("who", ["rank", "launcher"])
def test_a_rank_that_waits_for_a_dead_one_ends_with_the_reason_and_its_stacks(
    who: str, tmp_path: Path, repository: Path
) -> None:
    """As in a collective of NCCL, which does not notice."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        created = heartbeat._born(other.pid)
        command = [sys.executable, "-c", LEFT_ALONE, str(tmp_path), str(other.pid), str(created), who]
        rank = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(repository)},
        )
        assert rank.stdout.readline() == "waiting\n"
        other.kill()  # not waited for: a zombie is dead too
        _, said = rank.communicate(timeout=200)
    finally:
        other.kill()
        other.wait()
    assert rank.returncode == 2 and "time.sleep" not in said and 'File "<string>"' in said
    gone = (
        f"rank 1 (process {other.pid}) is gone"
        if who == "rank"
        else f"(deepspeed, process {other.pid}) is gone"
    )
    assert gone in said and "still in forward of step 4" in said and "--resume auto" in said
    assert heartbeat.read(tmp_path)[0]["phase"] == "ended by force in forward"


class Above:
    """A process above this one, as psutil shows it."""

    def __init__(self, pid: int, name: str) -> None:
        self.pid, self._name = pid, name

    def name(self) -> str:
        return self._name


def test_what_is_above_the_launchers_is_watched_only_where_it_must_live(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = {"deepspeed.launcher.launch": (os.getpid(), 1)}
    both = mine | {"deepspeed.launcher.runner": (os.getppid(), 1)}
    gone = {"that it began under": (0, 0)}
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("CROSS_RANK", "0")
    # a shell, a job script, or a container's first process, which started the user's launcher
    for parents in ([Above(os.getppid(), "bash")], [Above(1, "systemd")]):
        assert heartbeat._above(parents, both) == {}
    # the launcher of this machine under ssh: its session
    ssh = [Above(70, "bash"), Above(os.getpid(), "sshd-session"), Above(60, "sshd")]
    assert heartbeat._above(ssh, mine) == {"its ssh session": (os.getpid(), heartbeat._born(os.getpid()))}
    assert heartbeat._above(ssh, both) == {}
    # adopted by the first process: the launcher above is gone if the leader of its group is, too
    monkeypatch.setattr(os, "getpgid", lambda pid: os.getpid())
    assert heartbeat._above([Above(1, "init")], mine) == {}
    monkeypatch.setattr(os, "getpgid", lambda pid: 2**30)
    assert heartbeat._above([Above(1, "init")], mine) == gone
    assert heartbeat._above([Above(1, "init")], {}) == gone
    monkeypatch.delenv("CROSS_RANK")
    assert heartbeat._above([Above(1, "init")], {}) == {}
