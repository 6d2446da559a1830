"""Run on each rank by test_nvme.py: a task whose Adam is large enough for DeepSpeed to put it on a disk (a megabyte a
rank) under ZeRO 1, and under ds_configs/zero3_nvme.json from the start and from ZeRO 1's state after two steps.

Arguments: the ds_configs folder, a folder in the place of a local disk, the file for this rank's figures.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import one_compilation
from torch import Tensor, nn
from toy_task import ToyTask, rank_batch

from aurora_ds.config import TrainConfig
from aurora_ds.runtime import process_group
from aurora_ds.runtime.engine import Engine, build

STEPS, SAVED = 4, 2


class WideTask(ToyTask):
    """1.4 million trained numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(64, 16384), nn.Tanh(), nn.Linear(16384, 5))


def engine_of(settings: dict[str, Any], precision: str) -> Engine:
    config = TrainConfig(global_batch_size=8, lr=1e-4, clip_norm=1.0, precision=precision)
    return build(WideTask(), config, settings, total_steps=20, steps_per_epoch=5)


def trained(engine: Engine, steps: range) -> list[list[float]]:
    """[loss, gradient's norm] of each step."""
    figures = []
    for step in steps:
        batch = rank_batch(step, process_group.rank(), process_group.world_size())
        loss = engine.forward(batch)["loss"]
        number = float(loss.detach())
        figures.append([number, engine.backward_and_step(loss).grad_norm])
    return figures


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference between two states, of the largest value in each tensor."""
    assert one.keys() == other.keys()
    return max(
        float((one[name] - other[name]).abs().max() / one[name].abs().max().clamp_min(1e-12)) for name in one
    )


def compared(precision: str, plain: dict[str, Any], nvme: dict[str, Any], disk: Path) -> dict[str, Any]:
    """The figures of ZeRO 1 (`plain`), of `nvme`, and of `nvme` from the state that ZeRO 1 had after two steps."""
    engine = engine_of(plain, precision)
    record: dict[str, Any] = {"zero1": trained(engine, range(SAVED))}
    saved = engine.optimizer_state()
    record["zero1"] += trained(engine, range(SAVED, STEPS))
    last = engine.optimizer_state()
    engine.close()

    engine = engine_of(nvme, precision)
    record["nvme"] = trained(engine, range(STEPS))
    record["state"] = furthest(last, engine.optimizer_state())
    engine.load_optimizer_state(saved)  # into an engine that has trained
    record["again"] = trained(engine, range(SAVED, STEPS))
    engine.close()

    engine = engine_of(nvme, precision)
    engine.load_optimizer_state(saved)
    record["loaded"] = furthest(saved, engine.optimizer_state())
    record["resumed"] = trained(engine, range(SAVED, STEPS))
    files = [file for file in disk.rglob("*.swp") if file.stat().st_size]
    record["files"] = sorted(str(file.relative_to(disk)) for file in files)
    engine.close()
    return record


def main() -> None:
    folder, disk, output = (Path(text) for text in sys.argv[1:])
    process_group.start()
    one_compilation.load_async_io()
    plain, both = (json.loads((folder / name).read_text()) for name in ("zero1.json", "zero3_nvme.json"))
    for offload in ("offload_optimizer", "offload_param"):
        both["zero_optimization"][offload]["nvme_path"] = str(disk)
    adam = copy.deepcopy(both)
    adam["zero_optimization"]["offload_param"] = {"device": "cpu"}
    record = {
        "bf16": compared("bf16", plain, both, disk),
        # weights in fp32 stay in memory: without fp16 instructions DeepSpeed would round those on the disk
        "fp32": compared("fp32", plain, adam, disk),
    }
    output.write_text(json.dumps(record))
    process_group.stop()


if __name__ == "__main__":
    main()
