"""Real training processes for the tests here: the sizes of the small run, and ranks that can be killed whole."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

TRAIN_PAIRS, TEST_MEDIA, BATCH = 48, 13, 8
STEPS_PER_EPOCH = TRAIN_PAIRS // BATCH
STILL = [  # nothing in training is drawn by rank
    "prompts.dropout=0",
    "backbone.text.dropout=0",
    "backbone.text.attention_dropout=0",
    "data.augment=none",
]
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Found(NamedTuple):
    """What a rank found in a job: (metrics, facts, files, details) of each evaluation, and the loss of each step."""

    evaluations: list[tuple[dict, dict, dict, Any]]
    losses: list[float]


@dataclass
class Ranks:
    """Processes of one run, which can be killed whole."""

    processes: list[subprocess.Popen]
    logs: list[Path]
    ended: list[int] = field(default_factory=list)

    def wait(self, timeout: float = 600) -> list[int]:
        """Exit statuses, when all have ended."""
        self.ended = [process.wait(timeout) for process in self.processes]
        return self.ended

    def running(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def kill(self) -> None:
        """SIGKILL to every rank, its data workers and its launcher at once, as a power cut does."""
        everyone = []
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # it had ended
                parent = psutil.Process(process.pid)
                # the deepspeed launcher puts the ranks into sessions of their own
                everyone += [*parent.children(recursive=True), parent]
        for each in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        for process in self.processes:
            process.wait(30)
        psutil.wait_procs(everyone, 30)

    def output(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)


def environment(repository: Path) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}
    return own | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}


def wait_for(condition, run: Ranks, seconds: float = 240) -> None:
    """Until `condition()` is true; the run may not end before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        running = run.running()  # asked first: this process may sleep while the run does its last steps
        if condition():
            return
        if not running:
            break
        time.sleep(0.002)
    raise AssertionError(f"waited in vain for {seconds} s, or the run ended:\n{run.output()[-4000:]}")
