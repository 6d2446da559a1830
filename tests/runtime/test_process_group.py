"""The process group of one plain process: no launcher, no port, and it can be left and joined again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aurora_ds.errors import AuroraError
from aurora_ds.runtime import process_group


@pytest.fixture(autouse=True)
def stopped() -> None:
    yield
    process_group.stop()


def test_alone_there_is_one_rank_and_nothing_is_collective() -> None:
    process_group.start()
    process_group.start()
    assert (process_group.rank(), process_group.world_size(), process_group.local_rank()) == (0, 1, 0)
    process_group.barrier()
    assert process_group.broadcast_object({"a": 1}) == {"a": 1}
    assert process_group.gather_numbers([2.0, 3.0]) == [[2.0, 3.0]]


def test_before_start_everything_answers_as_if_alone() -> None:
    assert process_group.world_size() == 1 and process_group.first_rank(lambda: 5) == 5


def test_it_can_be_stopped_and_started_again_around_engines() -> None:
    from toy_task import ToyTask, global_batch

    from aurora_ds.config import TrainConfig
    from aurora_ds.runtime.engine import build

    norms = []
    for _ in range(2):
        process_group.start()
        engine = build(ToyTask(), TrainConfig(global_batch_size=8, zero_stage=1), None, 10, 5)
        norms.append(engine.backward_and_step(engine.forward(global_batch(0))["loss"]).grad_norm)
        engine.close()
        process_group.stop()
    assert norms[0] == norms[1]


def test_a_disagreement_alone_is_raised_as_it_is() -> None:
    process_group.agree(True, "unused")
    with pytest.raises(AuroraError, match="^the shard is torn$"):
        process_group.agree(False, "the shard is torn")


def test_work_of_rank_0_raises_its_own_error() -> None:
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        process_group.first_rank(fail)


def test_half_a_launcher_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AuroraError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not"):
        process_group.start()


def test_a_step_draws_the_same_numbers_again_and_other_steps_others() -> None:
    def draw(*keys: int) -> list[float]:
        process_group.seed_step(*keys)
        return torch.rand(3).tolist()

    assert draw(42, 7) == draw(42, 7)
    assert len({tuple(draw(*keys)) for keys in ((42, 7), (42, 8), (42, 7, 1), (43, 7))}) == 4


def test_a_process_that_never_stops_its_group_still_ends_with_status_0(repository: Path) -> None:
    code = "from aurora_ds.runtime import process_group as g; g.start(); g.barrier()"
    environment = os.environ | {"PYTHONPATH": str(repository), "DS_ACCELERATOR": "cpu"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
