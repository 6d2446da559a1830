"""Says at which shard and sample a run waits when its data does not come: a slow store looks like a hang otherwise."""

from __future__ import annotations

import logging
import mmap
import struct
import threading
import time
from collections.abc import Callable

from torch.utils.data import get_worker_info

_LOG = logging.getLogger("aurora_ds.data")
_LINE = struct.Struct("qq")
_NOTHING = _LINE.pack(-1, -1)


class ReadingBoard:
    """Which medium each worker process reads right now, in memory that the processes share. Made before they fork."""

    def __init__(self, workers: int, describe: Callable[[int, int], str]):
        """describe(source, medium): the shard that holds it, and which sample of it it is."""
        self._lines, self._describe = max(1, workers), describe
        self._memory = mmap.mmap(-1, self._lines * _LINE.size)
        self._memory[:] = _NOTHING * self._lines

    def note(self, source: int, medium: int) -> None:
        """This process reads that medium now; -1, -1: none."""
        info = get_worker_info()
        _LINE.pack_into(self._memory, 0 if info is None else info.id * _LINE.size, source, medium)

    def reading(self) -> list[str]:
        """What all of them read, without repetition."""
        places = [place for place in _LINE.iter_unpack(self._memory[:]) if place != (-1, -1)]
        return list(dict.fromkeys(self._describe(*place) for place in places))


class Watch:
    """Inside the block, each wait between `begin` and `end` that takes `seconds` or more is told, again and again."""

    def __init__(self, board: ReadingBoard, seconds: float, say: Callable[[str], None] = _LOG.warning):
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
                reading = self._board.reading()
                where = f"at shard {', '.join(reading)}" if reading else "while no shard is being read"
                self._say(f"waiting for data {waited:.0f} s {where}")
