"""How far a run is: a bar on a terminal, otherwise plain lines, at most one every few seconds. Rank 0 alone speaks.

Launchers prefix the lines of each rank and host, which turns a bar into garbage; hence plain lines when piped.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

from aurora_ds.runtime import process_group


class Progress:
    """Progress over `total` steps, starting at `start` (a resumed run). Use as a context manager."""

    def __init__(
        self,
        total: int,
        start: int = 0,
        title: str = "train",
        seconds_between_lines: float = 10.0,
        stream: TextIO | None = None,
    ) -> None:
        self.total = total
        self.title = title
        self.speaks = process_group.rank() == 0
        self._stream = stream or sys.stdout
        self._start, self._begun = start, time.monotonic()
        self._interval, self._last_line = seconds_between_lines, float("-inf")
        self._bar: Any = None
        if self.speaks and self._stream.isatty():
            self._bar, self._task = _rich_bar(self._stream, title, total, start)

    def update(self, step: int, **figures: float | str) -> None:
        """Report that `step` steps are done, with a few named figures. Numbers are shown with four digits."""
        if not self.speaks:
            return
        shown = "  ".join(f"{name} {_short(value)}" for name, value in figures.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=shown)
            return
        now = time.monotonic()
        if now - self._last_line < self._interval and step < self.total:
            return
        self._last_line = now
        share = 100 * step // max(self.total, 1)
        self._line(f"{self.title} {step}/{self.total} ({share}%)  {shown}  left {self._time_left(step, now)}")

    def message(self, text: str) -> None:
        """A line of its own: a checkpoint, an evaluation result."""
        if not self.speaks:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            self._line(text)

    def close(self) -> None:
        """End the bar. Safe to call twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _time_left(self, step: int, now: float) -> str:
        done = step - self._start
        if done <= 0:
            return "?"
        seconds = int((now - self._begun) / done * (self.total - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _rich_bar(stream: TextIO, title: str, total: int, start: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=Console(file=stream),
    )
    task = bar.add_task(title, total=total, completed=start, figures="")
    bar.start()
    return bar, task


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
