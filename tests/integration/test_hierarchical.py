"""ZeRO++ hpZ on four processes in groups of two trains as ZeRO 1 does; the rest of ZeRO++ needs a GPU, and says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import environment, free_port

pytestmark = pytest.mark.slow
RANKS = 4


def ranks(
    repository: Path, count: int, command: list[str], folder: Path, timeout: float
) -> list[tuple[int, str]]:
    """(exit status, what it said) of `count` ranks; `{rank}` in the command is its number."""
    shared = environment(repository) | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(count),
        "PYTHONPATH": f"{repository}:{repository / 'tests' / 'runtime'}",
    }
    logs = [folder / f"{rank}.log" for rank in range(count)]
    started = [
        subprocess.Popen(
            [sys.executable, *(each.replace("{rank}", str(rank)) for each in command)],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=logs[rank].open("w"),
        )
        for rank in range(count)
    ]
    return [(each.wait(timeout), log.read_text()[-3000:]) for each, log in zip(started, logs, strict=True)]


@pytest.mark.timeout(900)
def test_hierarchical_partitions_train_as_zero_1_does(repository: Path, tmp_path: Path) -> None:
    worker = Path(__file__).with_name("hierarchical_worker.py")
    command = [str(worker), str(repository / "ds_configs"), str(tmp_path / "{rank}.json")]
    ended = ranks(repository, RANKS, command, tmp_path, 800)
    assert [status for status, _ in ended] == [0] * RANKS, ended
    for rank in range(RANKS):
        figures = json.loads((tmp_path / f"{rank}.json").read_text())
        for plain, other in zip(figures["zero1"], figures["zero3_hpz"], strict=True):
            assert other == pytest.approx(plain, rel=1e-5), (rank, figures)


@pytest.mark.timeout(600)
def test_quantized_weights_need_a_gpu_and_deepspeed_says_so(repository: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from toy_task import ToyTask; from aurora_ds.config import TrainConfig\n"
        "from aurora_ds.runtime import process_group; from aurora_ds.runtime.engine import build\n"
        "process_group.start()\n"
        "build(ToyTask(), TrainConfig(global_batch_size=2), sys.argv[1], 2, 2)\n"
    )
    command = ["-c", code, str(repository / "ds_configs" / "zero3_zeropp.json")]
    (status, said), *_ = ranks(repository, 2, command, tmp_path, 500)
    assert status == 1 and "not been implemented on CPU backend" in said, said
