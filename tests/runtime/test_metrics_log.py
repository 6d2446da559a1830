"""metrics.jsonl: exact numbers, a torn line and later steps dropped on resuming, a full disk never ends a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from aurora_ds.runtime.metrics_log import FILE, MetricsLog, read
from aurora_ds.runtime.monitor import Monitor


def test_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    values = {"a": 1 / 3, "b": 2.0**-1074, "c": math.inf}
    log = MetricsLog(tmp_path)
    log.write(1, 8, values)
    log.close()
    assert read(tmp_path / FILE) == [{"step": 1, "samples": 8} | values]


def test_resuming_drops_a_torn_line_and_later_steps(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.write(step, None, {"loss": 1 / step})
    log.close()
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 4, "lo')
    again = MetricsLog(tmp_path, resume_step=2)
    again.write(3, None, {"loss": 9.0})
    again.close()
    assert read(tmp_path / FILE) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 9.0},
    ]


def test_a_run_that_begins_anew_begins_an_empty_log(tmp_path: Path) -> None:
    first = MetricsLog(tmp_path)
    first.write(1, None, {"loss": 1.0})
    first.close()
    MetricsLog(tmp_path).close()
    assert read(tmp_path / FILE) == []


def test_a_disk_that_refuses_ends_the_monitoring_with_a_warning_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = Monitor(tmp_path, enabled=False)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(monitor._log, "write", full)
    with pytest.warns(UserWarning, match="no longer written.*No space left"):
        monitor.scalars({"loss": 2.0}, step=1)
    monitor.scalars({"loss": 3.0}, step=2)
    monitor.close()
