"""Python programs on other hosts through ssh, all hosts at once. The program's text goes over the connection: nothing
of ours must be there, only the interpreter."""

from __future__ import annotations

import json
import math
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

_ALIVE_SECONDS, _ALIVE_COUNT = 10, 3
# no question is asked, and a host that went away is noticed within half a minute
OPTIONS = (
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", f"ServerAliveInterval={_ALIVE_SECONDS}", "-o", f"ServerAliveCountMax={_ALIVE_COUNT}"),
)
NOT_CONNECTED = 255  # ssh's own exit status
NO_PROGRAM = (126, 127)  # the shell's, when the interpreter is not there
Result = TypeVar("Result")


@dataclass(frozen=True)
class Answer:
    """How a program ended on a host."""

    status: int
    output: str
    errors: str


def command(host: str | None, program: Sequence[str]) -> list[str]:
    """The command line that runs `program` on a host; None is this machine."""
    return list(program) if host is None else ["ssh", *OPTIONS, host, shlex.join(program)]


def lasting(seconds: float) -> list[str]:
    """OPTIONS for connections that outlast a network that is cut for so long."""
    count = max(_ALIVE_COUNT, math.ceil(seconds / _ALIVE_SECONDS) + 1)
    return [
        "-o",
        f"ServerAliveCountMax={count}",
        *OPTIONS,
    ]  # of an option that is given twice ssh takes the first


def run_python(host: str | None, source: str, arguments: Sequence[str], seconds: float) -> Answer:
    """Run a program's text under the interpreter of this process's path. Raises subprocess.TimeoutExpired."""
    ended = subprocess.run(
        command(host, [sys.executable, "-", *arguments]),
        input=source,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    return Answer(ended.returncode, ended.stdout, ended.stderr)


def on_all(hosts: Sequence[str], work: Callable[[str], Result]) -> dict[str, Result]:
    """host -> what `work(host)` returned; 64 hosts at a time."""
    with ThreadPoolExecutor(min(64, len(hosts))) as pool:
        return dict(zip(hosts, pool.map(work, hosts), strict=True))


def is_here(host: str) -> bool:
    """Whether a name of the host file is this machine's own."""
    return host in ("localhost", "127.0.0.1", socket.gethostname())


def last_json(text: str) -> dict | None:
    """The last line that is a JSON object: what login scripts print before it does not matter."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None
