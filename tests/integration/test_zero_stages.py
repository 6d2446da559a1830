"""Two ranks under the real launcher: every file of ds_configs trains the same numbers, saves, and continues anywhere.

One launch runs all of them (about 40 s on two cores); a second, shorter one shows that torchrun works too.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

os.environ.setdefault("DS_ACCELERATOR", "cpu")

HERE = Path(__file__).parent
SETTINGS = ["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "zero3_cut_all"]
BF16 = ["zero0", "zero1", "zero2", "zero3", "zero1_bf16"]


def toy_engine(stage: int = 0):
    """A 1-rank engine over the toy task; the caller has a process group."""
    sys.path.insert(0, str(HERE.parent / "runtime"))
    from toy_task import ToyTask

    from aurora_ds.config import TrainConfig
    from aurora_ds.runtime.engine import build

    config = TrainConfig(global_batch_size=8, lr=1e-2, clip_norm=1.0, zero_stage=stage)
    return build(ToyTask(), config, None, total_steps=20, steps_per_epoch=5)


def train(engine, first: int, last: int) -> None:
    from toy_task import global_batch

    for step in range(first, last):
        engine.backward_and_step(engine.forward(global_batch(step))["loss"])


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory, repository: Path):
    """Folder with a 1-rank run (checkpoint at step 2, state after step 6) and what two launched ranks made of it."""
    from aurora_ds.runtime import checkpoint, process_group

    folder = tmp_path_factory.mktemp("zero")
    process_group.start()
    engine = toy_engine()
    train(engine, 0, 2)
    saved = checkpoint.save(folder / "alone", 2, engine, lambda values: (values, {}), {})
    saved.rename(folder / "start")
    train(engine, 2, 6)
    reference = engine.optimizer_state()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [str(HERE / "zero_stages_run.py"), str(folder), str(repository / "ds_configs")]
    launcher = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--num_gpus",
        "2",
        "--master_port",
        str(port),
    ]
    environment = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    environment |= {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*launcher, *arguments], env=environment, capture_output=True, text=True, timeout=280
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    yield folder, reference
    process_group.stop()


def reports(folder: Path) -> list[dict]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def assert_close(found: dict, wanted: dict, tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close({name: found[name]}, {name: wanted[name]}, atol=tolerance, rtol=0)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_1_rank_checkpoint_continues_on_2_ranks_to_the_same_numbers(exchange, setting: str) -> None:
    folder, reference = exchange
    assert_close(load_file(folder / f"{setting}-fp32" / "after6.safetensors"), reference, 1e-6)


@pytest.mark.parametrize("setting", SETTINGS)
def test_and_from_there_on_1_rank_again(exchange, setting: str) -> None:
    from aurora_ds.runtime import checkpoint

    folder, reference = exchange
    engine = toy_engine()
    loaded = checkpoint.load(checkpoint.find(folder / f"{setting}-fp32", "required"), engine)
    assert loaded.step == 4 and loaded.state == {"epoch": 0}
    train(engine, 4, 6)
    assert_close(engine.optimizer_state(), reference, 1e-6)
    engine.close()


@pytest.mark.parametrize("name", [f"{each}-fp32" for each in SETTINGS] + [f"{each}-bf16" for each in BF16])
def test_resuming_on_the_same_ranks_repeats_bit_for_bit(exchange, name: str) -> None:
    assert all(report["repeats"][name] for report in reports(exchange[0]))


@pytest.mark.parametrize("setting", BF16[1:])
def test_bf16_gives_the_same_masters_at_every_stage(exchange, setting: str) -> None:
    folder, _ = exchange
    first, other = (load_file(folder / f"{name}-bf16" / "after6.safetensors") for name in ("zero0", setting))
    # Gradients travel as bf16 between the stages' reductions; Adam's 4 steps of 1e-2 enlarge their rounding.
    assert_close(other, first, 2e-4)


def test_one_rank_that_fails_stops_all_with_its_reason(exchange) -> None:
    for report in reports(exchange[0]):
        together = report["together"]
        assert together["agree"] == "(rank 1) the tar of rank 1 is torn"
        assert "sample-of-rank-1" in together["loss"] and "sample-of-rank-0" not in together["loss"]
        assert "could not be written" in together["save"]
        assert "not a complete checkpoint" in together["load"]
        assert "is a file" in together["claim"]


def test_rank_0_looks_for_all_and_numbers_are_gathered(exchange) -> None:
    for report in reports(exchange[0]):
        together = report["together"]
        assert together["found"] == "step-00000004" and together["object"] == {"from": 0}
        assert together["tensor"] == [1.5, 2.5]
        assert together["numbers"] == [[0.0, 0.1], [1.0, 1.1]]


def test_torchrun_and_a_plain_process_start_and_stop_cleanly(repository: Path) -> None:
    # One write per rank: print() writes a line in pieces, and the ranks share the pipe.
    code = (
        "import os; from aurora_ds.runtime import process_group as g; g.start(); g.barrier();"
        "os.write(1, f'world {g.world_size()} rank {g.rank()}\\n'.encode())"
    )
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(repository)}
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--no-python",
    ]
    for launcher, world in ((torchrun, 2), ([], 1)):
        command = [*launcher, sys.executable, "-c", code]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr[-3000:]
        assert sorted(run.stdout.splitlines()) == [f"world {world} rank {rank}" for rank in range(world)]
