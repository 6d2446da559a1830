"""TensorBoard files: what was written can be read back, on both axes, and a resumed run hides what came after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aurora_ds.runtime import metrics_log
from aurora_ds.runtime.monitor import Monitor, memory, memory_mb


@pytest.fixture(autouse=True)
def file_names_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read by name: second, host, process and a counter without leading zeros. Runs that are resumed do not
    begin in the same second and process, as they do here."""
    from tensorboard.summary.writer import event_file_writer

    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def read(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in read(folder).Scalars(tag)]


def test_scalars_are_written_over_steps_and_over_samples(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    monitor.scalars({"loss": 2.0}, step=1, samples=8)
    monitor.scalars({"loss": 1.0, "straggler": "a word, which is no point of a curve"}, step=2, samples=16)
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
    # what `tensorboard --load_fast=false` reads with
    from tensorboard.backend.event_processing import plugin_event_accumulator

    page = plugin_event_accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "by_step"))
    page.Reload()
    assert [event.step for event in page.Tensors("loss")] == [1, 2, 3]


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


@pytest.mark.parametrize("again", [False, True])
def test_an_evaluation_at_the_checkpoint_is_there_once(tmp_path: Path, again: bool) -> None:
    first = Monitor(tmp_path)
    for step in (1, 2):
        first.scalars({"train/loss": float(step)}, step, 8 * step)
    first.scalars({"eval/recall": 50.0}, 2, 16)
    first.scalars({"train/loss": 3.0}, 3, 24)
    first.close()
    second = Monitor(tmp_path, resume_step=2, resume_samples=16, evaluates_again=again)
    if again:
        second.scalars({"eval/recall": 50.0}, 2, 16)
    second.scalars({"train/loss": 30.0}, 3, 24)
    second.close()
    for axis, unit in (("by_step", 1), ("by_samples", 8)):
        folder = tmp_path / "tensorboard" / axis
        assert points(folder, "train/loss") == [(unit, 1.0), (2 * unit, 2.0), (3 * unit, 30.0)]
        assert points(folder, "eval/recall") == [(2 * unit, 50.0)]
    assert [
        (line["step"], "eval/recall" in line) for line in metrics_log.read(tmp_path / metrics_log.FILE)
    ] == [
        (1, False),
        (2, False),
        (2, True),
        (3, False),
    ]


def test_a_disabled_monitor_writes_exact_numbers_only(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, enabled=False)
    monitor.scalars({"loss": 0.1}, step=1)
    monitor.text("config", "x")
    monitor.close()
    assert not (tmp_path / "tensorboard").exists()
    assert metrics_log.read(tmp_path / metrics_log.FILE) == [{"step": 1, "loss": 0.1}]


def test_memory_is_in_mebibytes() -> None:
    assert 20 < memory_mb() < 1_000_000
    assert 20 < memory()["memory/process_mb"] <= memory()["memory/process_peak_mb"] * 1.01
