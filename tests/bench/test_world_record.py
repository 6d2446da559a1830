"""The record of the toy world's tasks, as it lies in the results: every task is learned, from what is seen."""

from __future__ import annotations

import json
from typing import Any

import pytest
from measurement import RESULTS

from aurora_ds.quickstart.tasks import TASKS

ABOVE = 5  # points of the headline metric over the frozen backbone and over grey pictures
SECONDS = 240  # of processor time: two minutes of two cores


@pytest.fixture(scope="module")
def runs() -> dict[str, dict[str, list[dict[str, Any]]]]:
    return json.loads((RESULTS / "world_tasks.json").read_text(encoding="utf-8"))["runs"]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_above_its_baselines(runs: dict[str, Any], task: str) -> None:
    reached = {
        way: [record["metrics"][record["headline"]] for record in records]
        for way, records in runs[task].items()
    }
    assert set(reached) == {"zero-shot", "language alone", "aurora", "full"}
    for baseline in ("zero-shot", "language alone"):
        assert min(reached["aurora"]) >= max(reached[baseline]) + ABOVE, (baseline, reached)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_takes_under_two_minutes_of_two_cores(runs: dict[str, Any], task: str) -> None:
    assert all(record["processor_seconds"] < SECONDS for record in runs[task]["aurora"])


def test_the_readme_shows_the_record() -> None:
    """README's table of the toy world's tasks."""
    from world_tasks import figures

    text = (RESULTS.parents[2] / "README.md").read_text(encoding="utf-8")
    record = json.loads((RESULTS / "world_tasks.json").read_text(encoding="utf-8"))["runs"]
    for task in TASKS:
        assert f"| {' | '.join(figures(record[task]))} |" in text, task
