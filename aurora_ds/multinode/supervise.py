"""The `deepspeed` launcher under supervision: its environment file, signals to the ranks, nothing left behind on any
host, and a failed run started again where its last checkpoint is."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from aurora_ds.errors import AuroraError
from aurora_ds.multinode import launched, ssh, variables
from aurora_ds.multinode.hostfile import read_hostfile

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_WRONG_INPUT = 2
_AFTER_A_HOST = 10.0  # seconds for the ranks on other hosts to notice that one ended, and to say so
_BETWEEN_LAUNCHES = 5.0  # seconds
_MOST_FOR_HOSTS = 900.0  # seconds; a host that is being restarted should not use up every launch
_HOST_ENDED = re.compile(r"^pdsh@.*: ssh exited with")
# what a rank says when it ends: the lines worth repeating, with pdsh's
_REASON = re.compile(r"^pdsh@.*: ssh exited with|aurora-ds( \(rank \d+\))?: |^(\S+: )?\w*(Error|Exception): ")


@dataclass
class Launch:
    """One training command on the hosts of a file. `train`: arguments of `aurora-ds train`, `output` among them.
    `unreachable`: seconds for which the network may be cut, as `train.unreachable_seconds`."""

    hostfile: Path
    train: Sequence[str]
    output: Path
    master_address: str | None = None
    master_port: int = 29500
    unreachable: float = 25.0
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.hosts = [host.name for host in read_hostfile(self.hostfile)]

    def command(self, resume: bool) -> list[str]:
        """The launcher's command line; `resume` puts `--resume auto` in the place of what was asked for."""
        given = list(self.train)
        if resume:
            given = _without(given, "--resume") + ["--resume", "auto"]
        address = ["--master_addr", self.master_address] if self.master_address else []
        return [
            *(sys.executable, "-u", "-m", "deepspeed.launcher.runner", "--hostfile", str(self.hostfile)),
            *("--master_port", str(self.master_port), *address, "--module", "aurora_ds.train", *given),
        ]

    def start(self, resume: bool) -> subprocess.Popen:
        """Start the launcher, with the environment file of this launch in the output folder."""
        path = self.output.absolute() / variables.FILE
        wanted = variables.for_ranks(os.environ, variables.users_own()) | {launched.VARIABLE: self.name}
        variables.write(path, wanted)
        options = " ".join(
            [os.environ.get("PDSH_SSH_ARGS_APPEND", ""), *ssh.lasting(self.unreachable)]
        ).strip()
        # a session of its own: the launcher answers Ctrl-C by ending every DeepSpeed run on every host
        return subprocess.Popen(
            self.command(resume),
            env=os.environ | wanted | {"DS_ENV_FILE": str(path), "PDSH_SSH_ARGS_APPEND": options},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def signal(self, name: str, which: str) -> dict[str, int | str]:
        """host -> to how many processes of this launch the signal went there, or why that is not known."""
        source = Path(launched.__file__).read_text(encoding="utf-8")

        def send(host: str) -> int | str:
            place = None if ssh.is_here(host) else host
            try:
                answer = ssh.run_python(place, source, [self.name, name, which], seconds=60)
            except subprocess.TimeoutExpired:
                return "no answer within 60 s"
            count = answer.output.strip().rpartition("\n")[2]
            return int(count) if answer.status == 0 and count.isdigit() else _last_line(answer.errors)

        return ssh.on_all(self.hosts, send)

    def silent_hosts(self) -> list[str]:
        """The hosts that do not answer on ssh."""

        def answers(host: str) -> bool:
            try:
                asked = subprocess.run(ssh.command(host, ["true"]), capture_output=True, timeout=60)
            except subprocess.TimeoutExpired:
                return False
            return asked.returncode == 0

        there = ssh.on_all(self.hosts, lambda host: ssh.is_here(host) or answers(host))
        return [host for host, answered in there.items() if not answered]

    def progress(self) -> str:
        """The newest checkpoint's name on the first host, which writes them; empty when there is none to be seen."""
        host = None if ssh.is_here(self.hosts[0]) else self.hosts[0]
        asked = ssh.command(host, ["cat", str(self.output.absolute() / "checkpoints" / "latest")])
        try:
            return subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout.strip()
        except subprocess.TimeoutExpired:
            return ""


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
    with Signals() as signals:
        done, before, hopeless = 0, launch.progress() if most_restarts else "", False
        while True:
            began = time.monotonic()
            status, reasons = _run(launch, signals, grace, resume=done > 0)
            if status == 0:
                return 0
            _say(f"launch {done + 1} ended with status {status} after {time.monotonic() - began:.0f} s")
            for reason in reasons:
                _say(f"  {reason}")
            if signals.any is not None:
                _say(f"it was asked to end by {signals.any.name}; --resume auto continues it")
                return 128 + signals.any
            if done == most_restarts:
                return status
            now = launch.progress()
            # status 2 is a mistake in the input, or a rank's word that another one was lost
            again = status == _WRONG_INPUT and now == before
            if again and hopeless:
                _say("two launches ended alike without a new checkpoint: not started again")
                return status
            before, hopeless = now, again
            done += 1
            _say(f"restart {done} of {most_restarts}, from {now or 'its last checkpoint, if any'}")
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
                _say(f"{name} to the ranks: {_counted(launch.signal(name, 'ranks'))}")
                deadline = deadline or time.monotonic() + grace
            # a host that lost its power closes no connection: ranks on the others would wait for it
            if host_ended.is_set() and deadline is None:
                deadline, after = time.monotonic() + _AFTER_A_HOST, _AFTER_A_HOST
            if deadline is not None and time.monotonic() > deadline:
                _say(f"the ranks have not ended within {after:.0f} s: killing them")
                break
            time.sleep(0.2)
    finally:
        left = launch.signal("SIGKILL", "all")
        if any(left.values()):
            _say(f"what was left of the launch, killed: {_counted(left)}")
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
            _say(f"waiting up to {_MOST_FOR_HOSTS / 60:.0f} min for {', '.join(silent)} to answer on ssh")
            told = True
        _pause(_BETWEEN_LAUNCHES, signals)


def _pause(seconds: float, signals: Signals) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and signals.any is None:
        time.sleep(0.1)


def _counted(found: dict[str, int | str]) -> str:
    """`host: N` of each host with a process, or that could not be asked."""
    parts = [f"{host}: {count}" for host, count in found.items() if count]
    return ", ".join(parts) or "none"


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "no reason given"


def _without(given: list[str], option: str) -> list[str]:
    """The arguments without an option and its value, in either spelling."""
    kept, skip = [], False
    for word in given:
        if skip:
            skip = False
        elif word == option:
            skip = True
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept


def _say(text: str) -> None:
    print(f"train_multinode: {text}", file=sys.stderr, flush=True)
