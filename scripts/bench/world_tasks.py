"""Every task of the toy world, from the frozen small backbone: zero-shot, from language alone, and with Aurora prompts.

zero-shot: the backbone as it is. language alone: the same training and evaluation with grey pictures
(data.media=blank), so what words and their order give away. All on the target domain, which the backbone never saw.

    python scripts/bench/world_tasks.py [--quick] [--seeds 2] [--tasks vqa …] [--folder DIR]

Each run is a process of its own with one thread. A seed decides initial values and the order of samples; data are the
same. Columns: the task's headline metric for each, trained numbers, optimizer steps,
processor seconds of the whole process (training and evaluation), which a busy machine does not stretch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from measurement import (
    facts_line,
    fresh_process,
    machine_facts,
    markdown_table,
    processor_seconds,
    write_results,
)

WAYS = ("zero-shot", "language alone", "aurora")


def judge(task: str, way: str, seed: int, folder: Path, quick: bool) -> dict[str, Any]:
    """One run, in this process: what results.json says, with the headline metric's name."""
    from aurora_ds import evaluate, train
    from aurora_ds.quickstart.tasks import TASKS
    from aurora_ds.recipe import load_config
    from aurora_ds.wiring import of

    settings = [f"data.shards={folder / task}", f"seed={seed}", "data.workers=0"]
    settings += ["monitor.tensorboard=false", "monitor.gallery_queries=0"]
    settings += ["data.media=blank"] if way == "language alone" else []
    settings += ["train.max_steps=3"] if quick else []
    config = load_config(TASKS[task].recipe, settings)
    output = folder / "runs" / task / f"{way.replace(' ', '-')}-{seed}"
    record = evaluate.run(config, None, output) if way == "zero-shot" else train.run(config, output)
    del record["adapter"]  # a path on this machine
    return record | {"headline": of(config).headline, "processor_seconds": round(processor_seconds(), 1)}


def prepare(task: str, folder: Path, quick: bool) -> None:
    """Shards of the task's data, unless they are there."""
    from aurora_ds.quickstart.tasks import make_shards

    if not (folder / task / "manifest.json").is_file():
        make_shards(task, folder, counts={"train": 32, "test": 6} if quick else None)


def row(task: str, runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A line of the table; several seeds: mean ± standard deviation."""
    metric = runs["aurora"][0]["headline"]

    def figure(way: str) -> str:
        values = [record["metrics"][metric] for record in runs[way]]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    aurora = runs["aurora"]
    seconds = statistics.median(record["processor_seconds"] for record in aurora)
    figures = [figure(way) for way in WAYS]
    return [task, metric, *figures, f"{aurora[0]['trainable']:,}", str(aurora[0]["step"]), f"{seconds:.0f}"]


def main() -> None:
    from aurora_ds.quickstart.tasks import TASKS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("TASK", "WAY", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        task, way, seed = arguments.one
        print(json.dumps(judge(task, way, int(seed), arguments.folder, arguments.quick)))
        return
    seeds = 1 if arguments.quick else arguments.seeds
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        record: dict[str, Any] = {"facts": machine_facts(1), "seeds": seeds, "runs": {}}
        for task in arguments.tasks:
            prepare(task, folder, arguments.quick)
            options = ["--folder", str(folder), *(["--quick"] if arguments.quick else [])]
            record["runs"][task] = {
                way: [
                    fresh_process("world_tasks.py", ["--one", task, way, str(seed), *options], threads=1)
                    for seed in range(1 if way == "zero-shot" else seeds)
                ]
                for way in WAYS
            }
    table = markdown_table(
        ["task", "metric", *WAYS, "trained", "steps", "processor s"],
        [row(task, runs) for task, runs in record["runs"].items()],
    )
    text = (
        "# Tasks of the toy world\n\nTarget domain, test split; "
        f"{f'{seeds} seeds, mean ± standard deviation' if seeds > 1 else '1 seed'}.\n\n{table}\n\n"
        f"{facts_line(record['facts'])}\n"
    )
    write_results("world_tasks", record, text, arguments.quick)


if __name__ == "__main__":
    main()
