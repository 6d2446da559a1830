"""Says at which shard a run waits when its data does not come: a slow store looks like a hang otherwise."""

from __future__ import annotations

import logging
import mmap
import threading
import time
from collections.abc import Callable

from torch.utils.data import get_worker_info

_LINE = 256  # bytes of a worker's note
_LOG = logging.getLogger("aurora_ds.data")


class ShardBoard:
    """The shard that each worker process reads right now, in memory that the processes share. Made before they fork."""

    def __init__(self, workers: int):
        self._lines = max(1, workers)
        self._memory = mmap.mmap(-1, self._lines * _LINE)

    def note(self, shard: str) -> None:
        """This process reads `shard` now; "": none."""
        info = get_worker_info()
        first = 0 if info is None else info.id * _LINE
        self._memory[first : first + _LINE] = shard.encode()[: _LINE - 1].ljust(_LINE, b"\0")

    def shards(self) -> list[str]:
        """What all of them read, without repetition."""
        lines = (bytes(self._memory[n * _LINE : (n + 1) * _LINE]).rstrip(b"\0") for n in range(self._lines))
        return list(dict.fromkeys(line.decode(errors="replace") for line in lines if line))


class Watch:
    """Inside the block, each wait between `begin` and `end` that takes `seconds` or more is told, again and again."""

    def __init__(self, board: ShardBoard, seconds: float, say: Callable[[str], None] = _LOG.warning):
        self._board, self._seconds, self._say = board, seconds, say
        self._since: float | None = None
        self._told = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="data watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def begin(self) -> None:
        self._told, self._since = 0, time.monotonic()

    def end(self) -> None:
        self._since = None

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._seconds / 4)):
            since = self._since
            if since is None:
                continue
            waited = time.monotonic() - since
            if waited >= self._seconds * (self._told + 1):
                self._told += 1
                shards = self._board.shards()
                where = f"at shard {', '.join(shards)}" if shards else "while no shard is being read"
                self._say(f"waiting for data {waited:.0f} s {where}")
