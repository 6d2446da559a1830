"""Progress of a conversion or a check, with rate and time left: a bar on a terminal, else a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0


class Counter:
    """Counts samples done. `total` None: nobody knows how many there are."""

    def __init__(self, title: str, total: int | None, bar: Progress | None):
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
            print(self._line(now - self._started), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        rate = self.done / seconds
        if self.total is None or not rate:
            return f"{self.title}: {self.done:,}, {rate:,.0f}/s"
        left = timedelta(seconds=round((self.total - self.done) / rate))
        return f"{self.title}: {self.done:,} of {self.total:,}, {rate:,.0f}/s, {left} left"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")


@contextmanager
def counter(title: str, total: int | None = None) -> Iterator[Counter]:
    """A Counter shown on standard error while the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Counter(title, total, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True
    ) as bar:
        yield Counter(title, total, bar)
