"""What a run on two ranks shows of itself: where a step's time goes, who is slow, traces; and curves after resuming."""

from __future__ import annotations

import json
import socket
from collections import Counter
from pathlib import Path

import pytest
from small_run import BATCH, STEPS_PER_EPOCH

from aurora_ds.runtime import metrics_log, trace
from aurora_ds.runtime.timing import PARTS

STEPS, TRACED = 4, 3


@pytest.fixture(scope="module")
def run(launch, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps on two ranks, rank 1 slower than rank 0, a line of the log after every other step."""
    output = tmp_path_factory.mktemp("slow") / "run"
    worker = Path(__file__).with_name("slow_rank_worker.py")
    settings = [f"train.max_steps={STEPS}", "train.save_every=100", "monitor.log_every=2"]
    settings += [f"monitor.profile_steps=[{TRACED}]", "train.zero_stage=2"]
    ranks = launch([worker, output.parent / "counts.json", recipe, "--output", output, *settings], ranks=2)
    assert ranks.wait(900) == [0, 0], ranks.output()[-6000:]
    return output


def figures(output: Path) -> list[dict]:
    return [line for line in metrics_log.read(output / metrics_log.FILE) if "train/loss" in line]


def test_the_parts_of_a_step_add_up_to_it(run: Path) -> None:
    lines = figures(run)
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        parts = {part: line[f"train/time/{part}"] for part in PARTS}
        assert 0.95 <= sum(parts.values()) / line["train/time/step"] <= 1.05
        assert all(parts[part] > 0 for part in PARTS), parts
        assert line["train/time/forward"] >= 0.15, "the mean over both ranks, one of which sleeps 0.3 s"
        assert line["train/time/communication_max"] >= line["train/time/communication"]
        # what two steps and their line took, seen from outside
        assert 2 * line["train/time/step"] <= 2 * BATCH / line["train/samples_per_second"] * 1.05


def test_the_slow_rank_is_named_with_its_host(run: Path) -> None:
    for line in figures(run):
        assert line["train/ranks/straggler"] == 1.0
        assert line["train/ranks/straggler_host"] == socket.gethostname()
        assert line["train/ranks/spread"] > 0.1 and line["train/time/own_max"] > 100
        assert line["train/memory/process_peak_mb_max"] >= line["train/memory/process_peak_mb"] > 20


def test_a_line_of_the_log_takes_one_collective_and_a_step_without_none(run: Path) -> None:
    # at step 2 the second one is the size of the update, whose parts lie on both ranks at ZeRO 2
    assert json.loads((run.parent / "counts.json").read_text()) == {"1": 0, "2": 1, "3": 0}


def test_the_trace_of_a_step_has_its_parts_as_ranges(run: Path) -> None:
    assert [path.name for path in (run / trace.FOLDER).iterdir()] == [
        "rank-00000.step-00000003.pt.trace.json"
    ]
    events = json.loads(trace.file_of(run, 0, TRACED).read_text())["traceEvents"]
    ranges = Counter(event["name"] for event in events if event.get("cat") == "user_annotation")
    for part in ("data", "forward", "backward", "optimizer"):
        assert ranges[f"aurora/{part}"] == 1, ranges
    assert ranges["aurora/communication"] >= 3
    assert any(event["name"].startswith("aten::") for event in events)


def test_curves_of_a_resumed_run_have_every_step_once(train, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "run"
    settings = ["train.evaluate_every=1", "train.keep_last=10", "monitor.tensorboard=true"]
    train(output, *settings, "train.epochs=2")
    train(output, *settings, "--resume", str(output / "checkpoints" / f"step-{STEPS_PER_EPOCH:08d}"))
    last = 2 * STEPS_PER_EPOCH
    for axis, unit in (("by_step", 1), ("by_samples", BATCH)):
        curves = EventAccumulator(str(output / "tensorboard" / axis))
        curves.Reload()
        assert not (output / trace.FOLDER).exists()
        for tag in curves.Tags()["scalars"]:
            steps = [event.step for event in curves.Scalars(tag)]
            if tag.startswith("train/"):
                assert steps == [unit * step for step in range(1, last + 1)], tag
            elif tag.startswith("eval/"):
                assert steps == [unit * STEPS_PER_EPOCH, unit * last], tag
    lines = Counter(
        (line["step"], "train/loss" in line) for line in metrics_log.read(output / metrics_log.FILE)
    )
    assert set(lines.values()) == {1} and len(lines) == last + 2
