"""EVE fine-tuned on two ranks with its experts spread: bit for bit again after a kill, with the noise of its gates, and
the experts' figures in TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_run import wait_for
from test_export_tasks import WORDS, listed_shards
from tiny_runs import recipe

from aurora_ds.runtime import checkpoint
from aurora_ds.runtime.metrics_log import FILE, read

SETTINGS = {
    "vqa": {"vqa": {"inference": "rank", "distillation": 0.0, "max_words": 12}},
}
SPREAD = ["train.expert_parallel=2", "train.zero_stage=2"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Task -> recipe and overrides of a few steps of full fine-tuning."""
    folder, made = tmp_path_factory.mktemp("eve"), {}
    for task, settings in SETTINGS.items():
        shards = listed_shards(folder / task, "questions" if task == "vqa" else "folder")
        path = recipe(folder / task, task, shards, name="eve", **settings)
        answers = folder / task / "answers.json"
        answers.write_text(json.dumps(sorted(WORDS)))
        own = [
            f"vqa.answer_list={answers}",
            f"backbone.eve.answers={len(WORDS)}",
            f"backbone.tokenizer={folder / task / f'backbone-{task}'}",
            "backbone.checkpoint=null",
        ]
        made[task] = [
            str(path),
            "train.method=full",
            "train.lr=1e-3",
            "train.eps=1e-6",
            *(own if task == "vqa" else []),
        ]
    return made


def test_killed_and_resumed_it_is_the_same_run(
    launch, commands: dict[str, list[str]], tmp_path: Path
) -> None:
    steps = ["train.epochs=3", "train.max_steps=6", "train.save_every=1", "train.keep_last=9"]
    command = ["-m", "aurora_ds.train", *commands["vqa"], *steps]
    monitored = ["monitor.tensorboard=true", "backbone.eve.moe.capacity_factor=0.25"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = launch([*command, *SPREAD, *monitored, "--output", whole], 2)
    assert run.wait(1500) == [0, 0], run.output()[-6000:]
    run = launch([*command, *SPREAD, *monitored, "--output", parts], 2)
    wait_for(lambda: any(line["step"] >= 2 for line in read(parts / FILE)), run)
    run.kill()
    assert checkpoint.find(parts, "auto") is None or len(checkpoint.complete(parts)) < 6
    run = launch([*command, *SPREAD, *monitored, "--output", parts], 2)
    assert run.wait(1500) == [0, 0], run.output()[-6000:]
    names = ("train/loss", "train/gradient_norm", "train/experts/layer01/text/entropy")
    figures = [
        {line["step"]: [line[name] for name in names] for line in read(each / FILE) if "train/loss" in line}
        for each in (parts, whole)
    ]
    assert figures[0] == figures[1] and list(figures[1]) == [1, 2, 3, 4, 5, 6]
    files = [checkpoint.verify(checkpoint.find(each, "required"))["files"] for each in (parts, whole)]
    assert files[0] == files[1]
    assert_shown(whole)


def assert_shown(run: Path) -> None:
    """TensorBoard has the experts' figures of every step."""
    from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, SCALARS, EventAccumulator

    events = EventAccumulator(str(run / "tensorboard" / "by_step"), {HISTOGRAMS: 0, SCALARS: 0}).Reload()
    for modality in ("vision", "text"):
        tag = f"train/experts/layer01/{modality}"
        for figure in ("load_max", "load_min", "entropy", "dropped"):
            values = [event.value for event in events.Scalars(f"{tag}/{figure}")]
            assert len(values) == 6 and all(0 <= value <= 4 for value in values), figure
        bars = [event.histogram_value for event in events.Histograms(f"{tag}/load")]
        assert len(bars) == 6 and all(len(each.bucket) == 4 and sum(each.bucket) > 0 for each in bars)
