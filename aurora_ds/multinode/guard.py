"""`python -m aurora_ds.multinode.guard HOSTFILE LAUNCH GRACE`: a process beside the supervisor, which ends the launch
on every host when the supervisor was killed: nobody else would. It reads its input to the end; DONE on it means that
the supervisor has ended in good order, and there is nothing to do."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aurora_ds.multinode.launch import Launch, counted, say

DONE = "done"
# Of the minute within which everything ends the ranks have so much to finish their step and to save.
_MOST_GRACE = 30.0
_BETWEEN_LOOKS = 2.0


@contextmanager
def guarded(launch: Launch, grace: float) -> Iterator[None]:
    """Inside, the launch ends even if this process is killed. `grace`: seconds for the ranks to end in good order."""
    command = [
        sys.executable,
        "-m",
        "aurora_ds.multinode.guard",
        str(launch.hostfile),
        launch.name,
        str(grace),
    ]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        guard.communicate(DONE.encode())


def main(arguments: Sequence[str]) -> int:
    """Wait for the supervisor's end. Returns 0 where it was a good one."""
    hostfile, name, grace = arguments
    if sys.stdin.read() == DONE:
        return 0
    launch = Launch(Path(hostfile), [], Path(), name=name)
    asked = launch.signal("SIGTERM", "ranks")
    say(f"the supervisor was killed; SIGTERM to the ranks: {counted(asked)}")
    end = time.monotonic() + min(float(grace), _MOST_GRACE)
    # SIGCONT does nothing to a process that runs, and counts them
    while time.monotonic() < end and any(launch.signal("SIGCONT", "ranks").values()):
        time.sleep(_BETWEEN_LOOKS)
    left = launch.signal("SIGKILL", "all")
    if any(left.values()):
        say(f"what was left of the launch, killed: {counted(left)}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
