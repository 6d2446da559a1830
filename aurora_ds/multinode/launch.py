"""One launch of the `deepspeed` launcher: its command line, its environment file, and its processes on every host."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aurora_ds.multinode import launched, ssh, variables
from aurora_ds.multinode.hostfile import read_hostfile


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


def counted(found: dict[str, int | str]) -> str:
    """`host: N` of each host with a process, or that could not be asked."""
    parts = [f"{host}: {count}" for host, count in found.items() if count]
    return ", ".join(parts) or "none"


def say(text: str) -> None:
    print(f"train_multinode: {text}", file=sys.stderr, flush=True)


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
