"""The processes of one launch on this host, found by the AURORA_DS_LAUNCH that they all inherit: no other run is hit.

Sent to each host as it stands (`python - LAUNCH SIGNAL ranks|all`), so standard library only. Prints how many there
were. `ranks`: the training processes alone, without their data workers and launcher; a signal then asks them to end
in good order.
"""

from __future__ import annotations

import os
import signal
import sys

VARIABLE = "AURORA_DS_LAUNCH"


def processes(launch: str) -> dict[int, dict[str, str]]:
    """Process number -> its environment, for those of the launch that may be signalled from here."""
    found = {}
    for number in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            with open(f"/proc/{number}/environ", "rb") as file:
                pairs = file.read().decode(errors="replace").split("\0")
        except OSError:  # it ended, or belongs to somebody else
            continue
        environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if environment.get(VARIABLE) == launch and number != os.getpid():
            found[number] = environment
    return found


def ranks(found: dict[int, dict[str, str]]) -> list[int]:
    """Those that have a RANK and were not started by one that has it."""
    return [
        number
        for number, environment in found.items()
        if "RANK" in environment and "RANK" not in found.get(_parent(number), {})
    ]


def _parent(number: int) -> int:
    try:
        with open(f"/proc/{number}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:  # it ended
        return 0


def main(launch: str, name: str, which: str) -> int:
    """Send a signal by its name, such as SIGTERM."""
    found = processes(launch)
    chosen = ranks(found) if which == "ranks" else list(found)
    for number in chosen:
        try:
            os.kill(number, signal.Signals[name])
        except ProcessLookupError:
            continue
    print(len(chosen))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
