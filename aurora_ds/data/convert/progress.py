"""Progress of a conversion or a check: a bar on a terminal, else a plain line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 10.0


class Counter:
    """Counts samples done."""

    def __init__(self, title: str, total: int, bar: Progress | None):
        self.title, self.total, self.done = title, total, 0
        self._bar, self._task = bar, bar.add_task(title, total=total) if bar else None
        self._started = self._printed = time.monotonic()

    def advance(self, samples: int) -> None:
        """`samples` more are done."""
        self.done += samples
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done)
            return
        now = time.monotonic()
        if now - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = now
            rate = self.done / (now - self._started)
            print(f"{self.title}: {self.done} of {self.total}, {rate:.0f}/s", file=sys.stderr, flush=True)


@contextmanager
def counter(title: str, total: int) -> Iterator[Counter]:
    """A Counter shown on standard error while the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Counter(title, total, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True
    ) as bar:
        yield Counter(title, total, bar)
