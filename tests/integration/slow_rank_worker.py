"""One rank of a run in which the last rank takes 0.3 s longer over each forward pass, and says 100 s, since on a busy
machine any rank may be slower by seconds. Leaves in a file how many collective calls each line of the log took:
`python slow_rank_worker.py COUNTS_FILE TRAIN_ARGUMENTS…`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from aurora_ds.runtime import process_group
from aurora_ds.runtime.engine import Engine
from aurora_ds.runtime.timing import StepTimes
from aurora_ds.train import Training, main


def calls() -> int:
    return dist.distributed_c10d._get_default_group()._get_sequence_number_for_group()


def is_slow() -> bool:
    return process_group.rank() == process_group.world_size() - 1


def slow(engine: Engine, *arguments: Any, forward: Any = Engine.forward, **keywords: Any) -> Any:
    if is_slow():
        time.sleep(0.3)
    return forward(engine, *arguments, **keywords)


def slow_figures(times: StepTimes, figures: Any = StepTimes.figures) -> dict[str, float]:
    found = figures(times)
    return found | {"time/own": found["time/own"] + 100 * is_slow()}


def counted(training: Training, report: Any, after_step: Any = Training._after_step) -> None:
    before, saved = calls(), training.saved_step
    after_step(training, report)
    if training.saved_step == saved:
        counts[report.step] = calls() - before


if __name__ == "__main__":
    counts: dict[int, int] = {}
    Engine.forward, Training._after_step, StepTimes.figures = slow, counted, slow_figures
    status = main(sys.argv[2:])
    Path(sys.argv[1]).write_text(json.dumps(counts))
    sys.exit(status)
