"""Traces of the steps asked for, and only of those; what a disk refuses does not end the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from aurora_ds.errors import AuroraError
from aurora_ds.runtime import trace
from aurora_ds.runtime.timing import StepTimes
from aurora_ds.runtime.trace import Traces


def train(traces: Traces, steps: int) -> None:
    for step in range(1, steps + 1):
        with traces.step(step), traces.times.step(), traces.times.part("forward"):
            torch.ones(8, 8) @ torch.ones(8, 8)


def test_the_steps_asked_for_leave_a_file_each(tmp_path: Path) -> None:
    train(Traces(tmp_path, StepTimes(torch.device("cpu")), [2, 4], [0]), 5)
    wanted = [trace.file_of(tmp_path, 0, step) for step in (2, 4)]
    assert sorted((tmp_path / trace.FOLDER).iterdir()) == wanted
    for path in wanted:
        names = [event["name"] for event in json.loads(path.read_text())["traceEvents"]]
        assert names.count("aurora/forward") == 1 and "aten::matmul" in names


@pytest.mark.parametrize(("steps", "ranks"), [([], [0]), ([1], [])])
def test_without_steps_or_ranks_there_is_no_trace(tmp_path: Path, steps: list[int], ranks: list[int]) -> None:
    train(Traces(tmp_path, StepTimes(torch.device("cpu")), steps, ranks), 2)
    assert not (tmp_path / trace.FOLDER).exists()


def test_a_rank_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuroraError, match="profile_ranks names rank 3, but this run has 1"):
        Traces(tmp_path, StepTimes(torch.device("cpu")), [1], [0, 3])


def test_a_disk_that_refuses_a_trace_makes_a_warning(tmp_path: Path) -> None:
    (tmp_path / trace.FOLDER).write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot be written.*The run goes on"):
        train(Traces(tmp_path, StepTimes(torch.device("cpu")), [1], [0]), 1)
