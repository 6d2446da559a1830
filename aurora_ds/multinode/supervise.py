"""The `deepspeed` launcher under supervision: its environment file, signals to the ranks, nothing left behind on any
host, and a failed run started again where its last checkpoint is."""

from __future__ import annotations

import re
import shutil
import signal
import sys
import threading
import time
from collections import deque
from typing import BinaryIO

from aurora_ds.errors import AuroraError
from aurora_ds.multinode.guard import guarded
from aurora_ds.multinode.launch import Launch, counted, say

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_WRONG_INPUT = 2
_AFTER_A_HOST = 10.0  # seconds for the ranks on other hosts to notice that one ended, and to say so
_BETWEEN_LAUNCHES = 5.0  # seconds
_MOST_FOR_HOSTS = 900.0  # seconds; a host that is being restarted should not use up every launch
_HOST_ENDED = re.compile(r"^pdsh@.*: ssh exited with")
# what a rank says when it ends: the lines worth repeating, with pdsh's
_REASON = re.compile(r"^pdsh@.*: ssh exited with|aurora-ds( \(rank \d+\))?: |^(\S+: )?\w*(Error|Exception): ")


class Signals:
    """The signals that came, until the block ends; each wakes who waits."""

    def __init__(self) -> None:
        self.came: deque[signal.Signals] = deque()
        self.any: signal.Signals | None = None

    def __enter__(self) -> Signals:
        self._before = {number: signal.signal(number, self._note) for number in _PASSED_ON}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.any = signal.Signals(number)
        self.came.append(self.any)


def supervise(launch: Launch, most_restarts: int, grace: float) -> int:
    """Run the launch to its end, again after a failure. Returns its last exit status; after a signal that did not end
    in 0, 128 and the signal's number. Raises AuroraError for a wrong number of restarts, and without pdsh."""
    if most_restarts < 0:
        raise AuroraError(f"--max-restarts is {most_restarts}; it must be at least 0.")
    if len(launch.hosts) > 1 and shutil.which("pdsh") is None:
        raise AuroraError(
            "DeepSpeed starts the hosts with pdsh, which is not installed here: apt-get install pdsh. torchrun on each "
            "host, or scripts/slurm.sbatch on a SLURM cluster, start the same run without it."
        )
    with guarded(launch, grace), Signals() as signals:
        done, before, hopeless = 0, launch.progress() if most_restarts else "", False
        while True:
            began = time.monotonic()
            status, reasons = _run(launch, signals, grace, resume=done > 0)
            if status == 0:
                return 0
            say(f"launch {done + 1} ended with status {status} after {time.monotonic() - began:.0f} s")
            for reason in reasons:
                say(f"  {reason}")
            if signals.any is not None:
                say(f"it was asked to end by {signals.any.name}; --resume auto continues it")
                return 128 + signals.any
            if done == most_restarts:
                return status
            now = launch.progress()
            # status 2 is a mistake in the input, or a rank's word that another one was lost
            again = status == _WRONG_INPUT and now == before
            if again and hopeless:
                say("two launches ended alike without a new checkpoint: not started again")
                return status
            before, hopeless = now, again
            done += 1
            say(f"restart {done} of {most_restarts}, from {now or 'its last checkpoint, if any'}")
            _pause(_BETWEEN_LAUNCHES, signals)
            _wait_for_hosts(launch, signals)
            if signals.any is not None:
                return 128 + signals.any


def _run(launch: Launch, signals: Signals, grace: float, resume: bool) -> tuple[int, list[str]]:
    """One launch: (exit status, lines that say why it failed). Nothing of it is left on any host that answers."""
    launcher = launch.start(resume)
    reasons: deque[str] = deque(maxlen=20)
    host_ended = threading.Event()
    reader = threading.Thread(target=_pass_on, args=(launcher.stdout, reasons, host_ended), daemon=True)
    reader.start()
    deadline, after = None, grace
    try:
        while launcher.poll() is None:
            if signals.came:
                name = signals.came.popleft().name
                say(f"{name} to the ranks: {counted(launch.signal(name, 'ranks'))}")
                deadline = deadline or time.monotonic() + grace
            # a host that lost its power closes no connection: ranks on the others would wait for it
            if host_ended.is_set() and deadline is None:
                deadline, after = time.monotonic() + _AFTER_A_HOST, _AFTER_A_HOST
            if deadline is not None and time.monotonic() > deadline:
                say(f"the ranks have not ended within {after:.0f} s: killing them")
                break
            time.sleep(0.2)
    finally:
        left = launch.signal("SIGKILL", "all")
        if any(left.values()):
            say(f"what was left of the launch, killed: {counted(left)}")
        launcher.kill()  # it is not among those found above when it runs on a machine that has no rank
        launcher.wait()
    reader.join(10)
    return launcher.returncode if launcher.returncode >= 0 else 128 - launcher.returncode, list(reasons)


def _pass_on(stream: BinaryIO, reasons: deque[str], host_ended: threading.Event) -> None:
    """Copy the launcher's output to ours, and keep the lines that say why it ended."""
    for line in stream:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        text = line.decode(errors="replace").strip()
        if _REASON.search(text) and text not in reasons:
            reasons.append(text)
        if _HOST_ENDED.search(text):
            host_ended.set()


def _wait_for_hosts(launch: Launch, signals: Signals) -> None:
    """Until every host answers, a quarter of an hour at most; the launch then says what is wrong."""
    end, told = time.monotonic() + _MOST_FOR_HOSTS, False
    while signals.any is None and time.monotonic() < end and (silent := launch.silent_hosts()):
        if not told:
            say(f"waiting up to {_MOST_FOR_HOSTS / 60:.0f} min for {', '.join(silent)} to answer on ssh")
            told = True
        _pause(_BETWEEN_LAUNCHES, signals)


def _pause(seconds: float, signals: Signals) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and signals.any is None:
        time.sleep(0.1)
