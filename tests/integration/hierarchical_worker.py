"""Run on each of four ranks by test_hierarchical.py: the toy task under ZeRO 1, and under ds_configs/zero3_hpz.json
with groups of two, as on two hosts of two GPUs.

Arguments: the ds_configs folder, the file for this rank's figures: by setting, [loss, gradient's norm] of each step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from toy_task import ToyTask, rank_batch

from aurora_ds.config import TrainConfig
from aurora_ds.runtime import process_group
from aurora_ds.runtime.engine import build


def trained(settings: dict) -> list[list[float]]:
    """Four steps."""
    config = TrainConfig(global_batch_size=8, lr=1e-2, clip_norm=1.0)
    engine = build(ToyTask(), config, settings, total_steps=20, steps_per_epoch=5)
    figures = []
    for step in range(4):
        batch = rank_batch(step, process_group.rank(), process_group.world_size())
        loss = engine.forward(batch)["loss"]
        number = float(loss.detach())
        figures.append([number, engine.backward_and_step(loss).grad_norm])
    engine.close()
    return figures


def main() -> None:
    folder, output = (Path(text) for text in sys.argv[1:])
    process_group.start()
    hierarchical = json.loads((folder / "zero3_hpz.json").read_text())
    hierarchical["zero_optimization"]["zero_hpz_partition_size"] = 2
    plain = json.loads((folder / "zero1.json").read_text())
    output.write_text(json.dumps({"zero1": trained(plain), "zero3_hpz": trained(hierarchical)}))
    process_group.stop()


if __name__ == "__main__":
    main()
