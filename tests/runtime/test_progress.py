"""Progress: plain rate-limited lines in a pipe, a bar on a terminal."""

from __future__ import annotations

import io

from aurora_ds.runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_few_plain_lines_and_always_the_last() -> None:
    stream = io.StringIO()
    with Progress(100, seconds_between_lines=3600, stream=stream) as progress:
        for step in range(1, 101):
            progress.update(step, loss=1 / step, lr=1e-5)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("train 1/100 (1%)  loss 1  lr 1e-05  left ")
    assert lines[1].startswith("train 100/100 (100%)  loss 0.01") and lines[1].endswith("left 0:00:00")


def test_messages_are_never_held_back() -> None:
    stream = io.StringIO()
    with Progress(10, stream=stream) as progress:
        progress.message("saved step 5")
    assert stream.getvalue() == "saved step 5\n"


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with Progress(4, start=2, title="evaluate", stream=stream) as progress:
        progress.update(4, loss=0.5)
        progress.message("[done]")
    shown = stream.getvalue()
    assert "evaluate" in shown and "4/4" in shown and "loss 0.5" in shown and "[done]" in shown
