"""The process beside the supervisor: it ends the launch when the supervisor was killed, and only then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from aurora_ds.multinode import guard, launched

# two ranks under a launcher; one of them does not end when it is asked to
RANK = "import signal, sys, time\nif {deaf}: signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\n"


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[tuple[Path, str, list[subprocess.Popen]]]:
    """(host file, the launch's name, two ranks, the second deaf to SIGTERM, and a launcher)."""
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    name, started = uuid.uuid4().hex, []
    for number, more in ((0, {"RANK": "0"}), (1, {"RANK": "1"}), (2, {})):
        program = RANK.format(deaf=number == 1) + "time.sleep(600)"
        environment = os.environ | {launched.VARIABLE: name} | more
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
            )
        )
    assert [each.stdout.readline() for each in started] == ["up\n"] * 3
    yield tmp_path / "hosts", name, started
    for each in started:
        each.kill()
        each.communicate()


def guarding(launch: tuple, said: str, grace: float = 1.0) -> subprocess.CompletedProcess:
    """The guard, from the moment at which the supervisor that told it `said` is no more."""
    command = [sys.executable, "-m", "aurora_ds.multinode.guard", str(launch[0]), launch[1], str(grace)]
    return subprocess.run(command, input=said, capture_output=True, text=True, timeout=120)


def test_a_supervisor_that_was_killed_leaves_no_process(launch: tuple) -> None:
    began = time.monotonic()
    ended = guarding(launch, "")
    assert ended.returncode == 1 and time.monotonic() - began < 60
    assert "the supervisor was killed; SIGTERM to the ranks: localhost: 2" in ended.stderr
    assert "what was left of the launch, killed: localhost: 2" in ended.stderr  # the deaf rank, the launcher
    statuses = [each.wait(10) for each in launch[2]]
    assert statuses == [-signal.SIGTERM, -signal.SIGKILL, -signal.SIGKILL]


def test_a_supervisor_that_ended_well_is_not_followed_by_anything(launch: tuple) -> None:
    ended = guarding(launch, guard.DONE)
    assert ended.returncode == 0 and ended.stderr == ""
    assert [each.poll() for each in launch[2]] == [None] * 3
