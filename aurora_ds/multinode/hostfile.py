"""The host file of `deepspeed --hostfile`: a line `NAME slots=N` per host, N ranks on it. Read here without DeepSpeed,
so that a mistake is named with its line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from aurora_ds.errors import AuroraError

_LINE = re.compile(r"^(\S+)\s+slots=(\d+)$")


class Slots(NamedTuple):
    """A host, by the name or address that ssh takes, and its number of ranks."""

    name: str
    count: int


def read_hostfile(path: str | Path) -> list[Slots]:
    """The hosts in order; the first one has rank 0. Raises AuroraError for a missing file or a wrong line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AuroraError(
            f"The host file {path} cannot be read ({getattr(error, 'strerror', None) or error}). Write one line for "
            "each host, for example `worker-1 slots=8`: its name for ssh, and its number of GPUs."
        ) from error
    hosts: list[Slots] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        found = _LINE.match(line)
        if found is None or int(found[2]) < 1:
            raise AuroraError(
                f"Line {number} of the host file {path} is {line!r}. It must be a host's name and its number of "
                "ranks, at least 1: `worker-1 slots=8`."
            )
        if any(host.name == found[1] for host in hosts):
            raise AuroraError(
                f"Line {number} of the host file {path} names {found[1]} a second time. Give each host one line, "
                "with all of its slots."
            )
        hosts.append(Slots(found[1], int(found[2])))
    if not hosts:
        raise AuroraError(
            f"The host file {path} names no host. Write one line for each, such as `worker-1 slots=8`."
        )
    return hosts
