"""The lines that a conversion prints where there is no terminal."""

from __future__ import annotations

import pytest

from aurora_ds.data.convert import progress
from aurora_ds.data.convert.progress import Counter


@pytest.mark.parametrize(
    ("total", "line"),
    [(10_000, "Converting x: 2,500 of 10,000, 50/s, 0:02:30 left\n"), (None, "Converting x: 2,500, 50/s\n")],
)
def test_lines_have_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, total: int | None, line: str
) -> None:
    clock = iter([100.0, 101.0, 150.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    counter = Counter("Converting x", total, None)
    counter.advance(1000)
    assert capsys.readouterr().err == "", "too early for a line"
    counter.advance(1500)
    assert capsys.readouterr().err == line
