"""The clock of a step: every moment belongs to one part, and parts that are opened inside others are taken out."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist

from aurora_ds.runtime.timing import PARTS, StepTimes


@pytest.fixture
def times() -> StepTimes:
    return StepTimes(torch.device("cpu"))


def test_the_innermost_open_part_has_the_time(times: StepTimes) -> None:
    with times.step():
        time.sleep(0.03)
        with times.part("forward"):
            time.sleep(0.03)
            with times.part("communication"):
                time.sleep(0.06)
            time.sleep(0.03)
    figures = times.figures()
    slept = {"forward": 0.06, "communication": 0.06, "other": 0.03}
    for part, least in slept.items():
        assert figures[f"time/{part}"] >= least, part
    parts = sum(figures[f"time/{part}"] for part in PARTS)
    assert parts == pytest.approx(figures["time/step"], rel=0.01)
    assert figures["time/own"] == pytest.approx(parts - figures["time/communication"], rel=0.01)
    assert figures["time/data"] == figures["time/backward"] == 0.0


def test_figures_are_means_of_the_steps_since_the_last_ones(times: StepTimes) -> None:
    for seconds in (0.01, 0.05):
        with times.step(), times.part("data"):
            time.sleep(seconds)
    figures = times.figures()
    assert 0.03 <= figures["time/data"] < figures["time/slowest_step"]
    assert times.figures() == {}


def test_a_wait_for_a_collective_is_communication_wherever_it_is(
    times: StepTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(work: object) -> str:
        time.sleep(0.03)
        return "waited"

    monkeypatch.setattr(dist.Work, "wait", wait)
    monkeypatch.setattr(dist.ProcessGroup, "allreduce", wait)
    with times.step(), times.part("backward"):
        assert dist.Work.wait(object()) == "waited"
        assert dist.ProcessGroup.allreduce(object()) == "waited"
    assert dist.Work.wait is wait and dist.ProcessGroup.allreduce is wait, (
        "outside of steps they are as they were"
    )
    figures = times.figures()
    assert figures["time/communication"] >= 0.06
    assert figures["time/backward"] < 0.06


def test_a_step_that_fails_or_is_given_up_counts_for_nothing(times: StepTimes) -> None:
    wait = dist.Work.wait
    with pytest.raises(KeyError), times.step(), times.part("forward"):
        raise KeyError("loss")
    assert dist.Work.wait is wait
    with times.step():
        times.forget()
    assert times.figures() == {}
    with times.step(), times.part("forward"):
        time.sleep(0.01)
    assert times.figures()["time/forward"] >= 0.01


def test_parts_outside_of_steps_are_nothing(times: StepTimes) -> None:
    with times.part("forward"):
        time.sleep(0.01)
    assert times.figures() == {}


@pytest.mark.gpu
def test_on_a_gpu_only_steps_asked_for_are_measured_and_their_parts_add_up() -> None:
    times, matrix = StepTimes(torch.device("cuda")), torch.randn(4096, 4096, device="cuda")
    with times.step(measure=False), times.part("forward"):
        matrix @ matrix
    assert times.figures() == {}
    with times.step(measure=True):
        with times.part("data"):
            time.sleep(0.02)
        with times.part("forward"):
            for _ in range(20):
                matrix @ matrix
    figures = times.figures()
    assert figures["time/data"] >= 0.02
    assert figures["time/forward"] > 0.001
    assert sum(figures[f"time/{part}"] for part in PARTS) == pytest.approx(figures["time/step"], rel=0.05)
