"""Every task of the toy world, from the frozen small backbones: zero-shot, from language alone, with Aurora prompts and
fully fine-tuned.

zero-shot: the backbone as it is. language alone: the same training and evaluation with grey pictures
(data.media=blank), so what words and their order give away. full: the recipe with train.method=full and the learning
rate of FULL_RATES that gives the best figure on the test split itself, which flatters this column. All on the target
domain, which the backbones never saw.

    python scripts/bench/world_tasks.py [--quick] [--seeds 2] [--tasks vqa …] [--ways aurora …] [--rates 3e-4 …]
        [--folder DIR] [--add FILE]

Each run is a process of its own with one thread. A seed decides initial values and the order of samples; data are the
same. What results/world_tasks.json has of tasks and ways that are not asked for stays; `--tasks` with none writes the
table again; of `full`, what another rate gave stays where it is better. FILE: such a record of another checkout, whose
runs are taken first. Columns: the task's headline
metric for each way, seeds, numbers that Aurora trains, optimizer steps, processor seconds of Aurora's whole process
(training and evaluation), which a busy machine does not stretch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from measurement import (
    RESULTS,
    facts_line,
    fresh_process,
    machine_facts,
    markdown_table,
    processor_seconds,
    write_results,
)

WAYS = ("zero-shot", "language alone", "aurora", "full")
FULL_RATES = (3e-4, 1e-3)  # the second is the best of a sweep on BLIP's retrieval (methods.py)


def judge(task: str, way: str, seed: int, folder: Path, quick: bool, rate: float) -> dict[str, Any]:
    """One run, in this process: what results.json says, with the headline metric's name. `rate`: of `full`."""
    from aurora_ds import evaluate, train
    from aurora_ds.quickstart.tasks import TASKS, shards_name
    from aurora_ds.recipe import load_config
    from aurora_ds.wiring import of

    settings = [f"data.shards={folder / shards_name(task)}", f"seed={seed}", "data.workers=0"]
    settings += ["monitor.tensorboard=false", "monitor.gallery_queries=0"]
    settings += ["data.media=blank"] if way == "language alone" else []
    if way == "full":
        settings += ["train.method=full", f"train.lr={rate}"]
        momentum = load_config(TASKS[task].recipe).retrieval.momentum_model == "slot"
        settings += ["retrieval.momentum_model=twin"] if momentum else []
    settings += ["train.max_steps=3"] if quick else []
    config = load_config(TASKS[task].recipe, settings)
    name = f"{way}-{rate:g}" if way == "full" else way.replace(" ", "-")
    output = folder / "runs" / task / f"{name}-{seed}"
    record = evaluate.run(config, None, output) if way == "zero-shot" else train.run(config, output)
    record.pop("adapter", None)  # a path on this machine
    record |= {"headline": of(config).headline, "processor_seconds": round(processor_seconds(), 1)}
    return record | ({"rate": rate} if way == "full" else {})


def prepare(task: str, folder: Path, quick: bool) -> None:
    """Shards of the task's data, unless they are there."""
    from aurora_ds.quickstart.tasks import make_shards, shards_name

    if not (folder / shards_name(task) / "manifest.json").is_file():
        make_shards(task, folder, counts={"train": 32, "test": 6} if quick else None)


def processed(task: str, way: str, seed: int, rate: float, options: list[str]) -> dict[str, Any]:
    """`judge` in a process of its own."""
    one = ["--one", task, way, str(seed), "--rates", str(rate), *options]
    return fresh_process("world_tasks.py", one, threads=1)


def reached(runs: list[dict[str, Any]]) -> float:
    """Mean of the headline metric."""
    return statistics.mean(record["metrics"][record["headline"]] for record in runs)


def figures(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A task's headline metric by way, several seeds: mean ± standard deviation; nothing where nothing was run."""

    def figure(way: str) -> str:
        if way not in runs:
            return ""
        values = [record["metrics"][record["headline"]] for record in runs[way]]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    return [figure(way) for way in WAYS]


def row(task: str, runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A line of the table."""
    from aurora_ds.quickstart.tasks import TASKS

    aurora = runs["aurora"]
    seconds = statistics.median(record["processor_seconds"] for record in aurora)
    return [
        task.removeprefix(f"{TASKS[task].family}_"),
        TASKS[task].family,
        aurora[0]["headline"],
        *figures(runs),
        str(len(aurora)),
        f"{aurora[0]['trainable']:,}",
        str(aurora[0]["step"]),
        f"{seconds:.0f}",
    ]


def report(record: dict[str, Any], quick: bool) -> None:
    """The table of all that was run, and the record's notes."""
    from aurora_ds.quickstart.tasks import TASKS

    table = markdown_table(
        ["task", "backbone", "metric", *WAYS, "seeds", "trained", "steps", "processor s"],
        [row(task, record["runs"][task]) for task in TASKS if "aurora" in record["runs"].get(task, {})],
    )
    text = (
        "# Tasks of the toy world\n\nTarget domain, test split; several seeds: mean ± standard deviation. Full "
        f"fine-tuning with the better of the learning rates {' and '.join(f'{rate:g}' for rate in FULL_RATES)}, chosen "
        f"on the test split itself.\n\n{table}\n\n{facts_line(record['facts'])} "
        "Rows that were not run then keep the figures of an earlier commit.\n"
        + "".join(f"\n{note}\n" for note in record.get("notes", []))
    )
    write_results("world_tasks", record, text, quick)


def main() -> None:
    from aurora_ds.quickstart.tasks import TASKS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rates", nargs="+", type=float, default=list(FULL_RATES))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--add", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("TASK", "WAY", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        task, way, seed = arguments.one
        (rate,) = arguments.rates
        print(json.dumps(judge(task, way, int(seed), arguments.folder, arguments.quick, rate)))
        return
    seeds = 1 if arguments.quick else arguments.seeds
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        record: dict[str, Any] = {"facts": machine_facts(1), "runs": {}}
        if not arguments.quick:
            record = json.loads((RESULTS / "world_tasks.json").read_text(encoding="utf-8"))
            if arguments.add:
                for task, ways in json.loads(arguments.add.read_text(encoding="utf-8"))["runs"].items():
                    record["runs"].setdefault(task, {}).update(ways)
            if arguments.tasks:
                record["facts"] = machine_facts(1)
        for task in arguments.tasks:
            prepare(task, folder, arguments.quick)
            options = ["--folder", str(folder), *(["--quick"] if arguments.quick else [])]
            for way in arguments.ways:
                known = record["runs"].setdefault(task, {})
                for rate in arguments.rates if way == "full" else arguments.rates[:1]:
                    runs = [
                        processed(task, way, seed, rate, options)
                        for seed in range(1 if way == "zero-shot" else seeds)
                    ]
                    if way != "full" or way not in known or reached(runs) > reached(known[way]):
                        known[way] = runs
            if not arguments.quick:
                report(record, quick=False)
    if arguments.quick or not arguments.tasks:
        report(record, arguments.quick)


if __name__ == "__main__":
    main()
