"""TensorBoard files: what was written can be read back, on both axes, and a resumed run hides what came after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aurora_ds.runtime.monitor import Monitor, memory_mb


def read(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in read(folder).Scalars(tag)]


def test_scalars_are_written_over_steps_and_over_samples(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    assert monitor.scalars({"loss": 2.0}, step=1, samples=8) == {"loss": 2.0}
    monitor.scalars({"loss": 1.0, "memory": 5.0}, step=2, samples=16, reduce={"memory": "max"})
    monitor.close()
    assert points(tmp_path / "tensorboard" / "by_step", "loss") == [(1, 2.0), (2, 1.0)]
    assert points(tmp_path / "tensorboard" / "by_samples", "loss") == [(8, 2.0), (16, 1.0)]


def test_a_resumed_run_hides_what_the_killed_one_wrote_after_its_checkpoint(tmp_path: Path) -> None:
    first = Monitor(tmp_path)
    for step in (1, 2, 3, 4):
        first.scalars({"loss": float(step)}, step=step, samples=8 * step)
    first.close()
    second = Monitor(tmp_path, resume_step=2, resume_samples=16)
    second.scalars({"loss": 30.0}, step=3, samples=24)
    second.close()
    assert points(tmp_path / "tensorboard" / "by_step", "loss") == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert points(tmp_path / "tensorboard" / "by_samples", "loss") == [(8, 1.0), (16, 2.0), (24, 30.0)]


def test_text_pictures_and_hyperparameters_are_there(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    monitor.text("config", "seed: 42\ntrain:\n  lr: 1e-5")
    monitor.image("gallery", np.zeros((3, 8, 12), np.uint8), 1)
    monitor.hyperparameters({"train": {"lr": 1e-5, "betas": [0.9, 0.999]}, "seed": 42}, {"r_mean": 71.5})
    monitor.close()
    events = read(tmp_path / "tensorboard" / "by_step")
    assert events.Images("gallery")[0].width == 12
    assert events.Scalars("hparam/r_mean")[0].value == pytest.approx(71.5)
    assert "config/text_summary" in events.Tags()["tensors"]
    assert "_hparams_/session_start_info" in events.summary_metadata or events.PluginTagToContent("hparams")


def test_a_disabled_monitor_writes_nothing_and_still_reduces(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, enabled=False)
    assert monitor.scalars({"loss": 2.0}, step=1) == {"loss": 2.0}
    monitor.text("config", "x")
    monitor.close()
    assert not (tmp_path / "tensorboard").exists()


def test_memory_is_in_mebibytes() -> None:
    assert 20 < memory_mb() < 1_000_000
