"""Run by test_language_ranks.py on each rank: trainings and evaluations one after the other, in one process group.

Usage: python language_ranks_worker.py FOLDER  with the usual RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.
FOLDER/jobs.json lists [name, train or evaluate, [arguments]]; rank r writes what it found into FOLDER/found-r.pickle:
for each name the evaluations, and the losses of the steps.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import torch

from aurora_ds import evaluate, train
from aurora_ds.runtime import process_group
from aurora_ds.runtime.monitor import Monitor
from aurora_ds.wiring import WIRINGS


def keep_evaluations(kept: list[Any]) -> None:
    """Every evaluation of a task goes into `kept` as (metrics, facts, files, details)."""
    for wiring in set(WIRINGS.values()):

        def judge(self: Any, *arguments: Any, judged: Any = wiring.evaluate, **keywords: Any) -> Any:
            found = judged(self, *arguments, **keywords)
            kept.append((found.metrics, found.facts, found.files, found.details))
            return found

        wiring.evaluate = judge


def keep_losses(kept: list[float]) -> None:
    """The loss of every step, the mean over ranks, goes into `kept`."""
    scalars = Monitor.scalars

    def log(self: Monitor, figures: dict[str, Any], *arguments: Any) -> None:
        scalars(self, figures, *arguments)
        kept.extend(figures[name] for name in ("train/loss",) if name in figures)

    Monitor.scalars = log


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    evaluations: list[Any] = []
    losses: list[float] = []
    keep_evaluations(evaluations)
    keep_losses(losses)
    process_group.start()
    leave, process_group.stop = process_group.stop, lambda: None  # the next job goes on with the group
    found = {}
    for name, command, arguments in json.loads((folder / "jobs.json").read_text()):
        assert {"train": train, "evaluate": evaluate}[command].main(arguments) == 0, name
        found[name] = list(evaluations), list(losses)
        evaluations.clear()
        losses.clear()
    (folder / f"found-{process_group.rank()}.pickle").write_bytes(pickle.dumps(found))
    leave()


if __name__ == "__main__":
    main()
