"""Run on each rank by test_live_tensors_ranks.py: what a rank holds after two steps of a bf16 run, at ZeRO 1, 2, 3.

Argument: the file for this rank's figures, a list of one dictionary for each stage.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from test_live_tensors import in_fp32, living, run_of, sizes

from aurora_ds.runtime import process_group


def held(stage: int) -> dict[str, int]:
    """Numbers of parameters and of the optimizer's state, bytes of living tensors."""
    before = set(living())
    engine, batch = run_of(128, stage)
    for _ in range(2):
        engine.backward_and_step(engine.forward(batch)["loss"])
    frozen, trained = sizes(engine)
    states = engine.partitions.adam.state.values()
    figures = {
        "stage": stage,
        "frozen": frozen,
        "trained": trained,
        "padding": 8 * len(engine.trainables) + 16,
        "masters": sum(master.numel() for master in engine.partitions.local_masters()),
        "moments": sum(state[name].numel() for state in states for name in ("exp_avg", "exp_avg_sq")),
        "fp32": in_fp32(before),
        "all": sum(size for key, (_, size) in living().items() if key not in before),
        "batch": batch["image"].nbytes,
    }
    engine.close()
    return figures


def main() -> None:
    process_group.start()
    figures = [held(stage) for stage in (1, 2, 3)]
    Path(sys.argv[1]).write_text(json.dumps(figures), encoding="utf-8")
    process_group.stop()


if __name__ == "__main__":
    main()
