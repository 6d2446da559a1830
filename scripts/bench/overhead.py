"""What DeepSpeed and our training loop add to a step of BLIP-base, and what a checkpoint after every step costs.

Two copies of one retrieval task in one process (of the frozen weights there is one). `bare` is a plain PyTorch loop:
forward, backward, AdamW, the learning rate set before. `engine` is what training does in a step: the engine over
DeepSpeed, the checks of losses and gradients, the agreement to go on, the clock of parts, the sums for the log. They
take turns step by step on the same batches, first one first and then the other, so that whatever slows the machine
slows both; what counts is the median over pairs of steps. Losses of both must be equal bit for bit. After each pair a
checkpoint is written, as training writes it, with the queues of features (118 MB of 127) and without.

    python scripts/bench/overhead.py [--quick] [--repeat 2] [--steps 6] [--batch 8] [--zero-stage 0] [--folder DIR]

Aim: engine / bare <= 1.05, checkpoint <= 3 % of a step. On a busy machine read the processor time.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measurement import (
    facts_line,
    fresh_process,
    machine_facts,
    markdown_table,
    median,
    processor_seconds,
    sharing_note,
    write_results,
)
from train_step import QUEUE, RANK, aurora_step, batches, task_batch

BARS = {"engine": 1.05, "checkpoint": 0.03}
IMAGE, LR, DECAY = 224, 1e-5, 0.05


class Clock:
    """Seconds and processor seconds of the block inside, appended to `seconds` and `processor`."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.processor: list[float] = []

    def __enter__(self) -> None:
        self._began = time.perf_counter(), processor_seconds()

    def __exit__(self, *error: object) -> None:
        self.seconds.append(time.perf_counter() - self._began[0])
        self.processor.append(processor_seconds() - self._began[1])

    def record(self) -> dict[str, list[float]]:
        """What was measured after the first block, which warms up."""
        return {"seconds": self.seconds[1:], "processor": self.processor[1:]}


def measure(steps: int, rows: int, stage: int, threads: int, small: bool, folder: str) -> dict[str, Any]:
    """`steps` pairs of steps after one that warms up, in this process."""
    import torch

    from aurora_ds.runtime import process_group

    torch.set_num_threads(threads)
    process_group.start()
    sizes = {"image": 64 if small else IMAGE, "depth": 2 if small else 12, "queue": 1024 if small else QUEUE}
    torch.manual_seed(0)
    task, _ = aurora_step(0.1, "aurora", sizes, "auto")
    # the frozen weights are the same memory; what is trained, its momentum and the queues are copies
    same = copy.deepcopy(
        task, {id(frozen): frozen for frozen in task.parameters() if not frozen.requires_grad}
    )
    bare, engine = Bare(task.train()), Loop(same.train(), rows, stage, steps + 1)
    clocks = {name: Clock() for name in ("bare", "engine", "checkpoint", "checkpoint without queue")}
    losses: dict[str, list[float]] = {"bare": [], "engine": []}
    with tempfile.TemporaryDirectory(dir=folder or None) as scratch:
        for number, batch in enumerate(batches(steps + 1, sizes["image"], rows)):
            given = task_batch(batch)
            order = [("bare", bare), ("engine", engine)]
            for name, loop in order[:: -1 if number % 2 else 1]:
                process_group.seed_step(0, number)
                with clocks[name]:
                    losses[name].append(loop.step(given, number))
            for name, queue in (("checkpoint", True), ("checkpoint without queue", False)):
                with clocks[name]:
                    engine.save(Path(scratch) / name.replace(" ", "-"), queue)
        bytes_written = {
            place.name: sum(file.stat().st_size for file in place.glob("checkpoints/step-*/*")) // 2
            for place in Path(scratch).iterdir()
        }
    parts = engine.engine.times.figures()
    process_group.stop()
    return {
        "clocks": {name: clock.record() for name, clock in clocks.items()},
        "losses_equal": losses["bare"] == losses["engine"],
        "losses": losses,
        "parts": parts,
        "checkpoint_bytes": bytes_written,
    }


class Bare:
    """The same step in ten lines of PyTorch."""

    def __init__(self, task: Any) -> None:
        import torch

        self.task = task
        trainables = [parameter for parameter in task.parameters() if parameter.requires_grad]
        self.adam = torch.optim.AdamW(trainables, lr=LR, weight_decay=DECAY)

    def step(self, batch: dict[str, Any], number: int) -> float:
        for group in self.adam.param_groups:
            group["lr"] = LR
        loss = self.task(batch, step=number, alpha=0.4)["loss"]
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        self.adam.step()
        return float(loss.detach())


class Loop:
    """A step as `aurora_ds.train` takes it, from the batch on."""

    def __init__(self, task: Any, rows: int, stage: int, steps: int) -> None:
        from aurora_ds.config import TrainConfig
        from aurora_ds.data.unreadable import Limit
        from aurora_ds.runtime.ahead import Ahead
        from aurora_ds.runtime.engine import build
        from aurora_ds.runtime.guards import Guards
        from aurora_ds.runtime.quarantine import Quarantine
        from aurora_ds.runtime.stop import StopRequest
        from aurora_ds.runtime.window import Window

        config = TrainConfig(
            global_batch_size=rows, lr=LR, weight_decay=DECAY, schedule="constant", zero_stage=stage
        )
        self.engine = build(task, config, None, steps, steps)
        self.guards, self.window = Guards(self.engine, config.moved_after), Window()
        self.ahead = Ahead(iter(()), Quarantine("", Limit(1.0, rows), fresh=False), StopRequest())
        self.engine.train()

    def step(self, batch: dict[str, Any], number: int) -> float:
        engine, times = self.engine, self.engine.times
        with times.step():
            with times.part("forward"):
                losses = engine.forward(batch, what="loss", step=number, alpha=0.4)
            self.guards.check_losses(losses, [], number + 1, self.ahead.agree)
            report = engine.backward_and_step(losses["loss"])
            self.window.add(losses, batch)
            self.guards.after_step(report)
        return float(losses["loss"].detach())

    def save(self, folder: Path, with_queue: bool) -> None:
        from aurora_ds.runtime import checkpoint

        engine = self.engine
        checkpoint.save(
            folder,
            engine.step,
            engine,
            lambda values: (values, {}),
            {},
            engine.task.buffers_to_save(with_queue),
        )


def compare(chosen: argparse.Namespace) -> dict[str, Any]:
    """Fresh processes, each with both contenders."""
    options = ["--measure", "--steps", chosen.steps, "--batch", chosen.batch, "--threads", chosen.threads]
    options += ["--zero-stage", chosen.zero_stage, "--folder", chosen.folder]
    options += ["--quick"] if chosen.quick else []
    runs = []
    for number in range(chosen.repeat):
        runs.append(fresh_process("overhead.py", [str(option) for option in options], chosen.threads))
        print(f"{number + 1}/{chosen.repeat}: {ratios(runs[-1:])}", file=sys.stderr, flush=True)
    return {
        "what": "A training step of BLIP-base under DeepSpeed against a bare PyTorch loop, CPU",
        "setting": {
            name: getattr(chosen, name) for name in ("batch", "steps", "repeat", "threads", "zero_stage")
        }
        | {"image": IMAGE, "queue": QUEUE, "rank": RANK},
        "machine": machine_facts(chosen.threads),
        "summary": summary(runs),
        "ratios": ratios(runs),
        "bars": BARS,
        "runs": runs,
    }


def pooled(runs: list[dict[str, Any]], name: str, kind: str) -> list[float]:
    return [value for run in runs for value in run["clocks"][name][kind]]


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        name: {kind: median(pooled(runs, name, kind)) for kind in ("seconds", "processor")}
        for name in runs[0]["clocks"]
    }


def ratios(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The median over pairs of steps; checkpoints against the median engine step."""
    found: dict[str, dict[str, float]] = {}
    for kind in ("seconds", "processor"):
        pairs = zip(pooled(runs, "engine", kind), pooled(runs, "bare", kind), strict=True)
        found.setdefault("engine", {})[kind] = median([ours / bare for ours, bare in pairs])
        step = median(pooled(runs, "engine", kind))
        for name in ("checkpoint", "checkpoint without queue"):
            found.setdefault(name, {})[kind] = median(pooled(runs, name, kind)) / step
    return found


def report(record: dict[str, Any]) -> str:
    """The record as a Markdown page."""
    setting, runs = record["setting"], record["runs"]
    against = {"bare": "", "engine": "bare", "checkpoint": "engine", "checkpoint without queue": "engine"}
    aims = {"engine": "<= 1.05", "checkpoint": "<= 0.03", "checkpoint without queue": "<= 0.03"}
    rows = [
        [
            name,
            f"{record['summary'][name]['seconds']:.3f}",
            f"{record['summary'][name]['processor']:.3f}",
            f"{record['ratios'][name]['seconds']:.4f}" if other else "",
            f"{record['ratios'][name]['processor']:.4f}" if other else "",
            f"{other}, {aims[name]}" if other else "",
        ]
        for name, other in against.items()
    ]
    head = ["", "s (median)", "processor s", "ratio of s", "ratio of processor s", "to, aim"]
    parts = runs[-1]["parts"]
    shares = ", ".join(
        f"{name.removeprefix('time/')} {100 * parts[name] / parts['time/step']:.2f} %"
        for name in parts
        if name not in ("time/step", "time/own", "time/slowest_step")
    )
    written = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in runs[-1]["checkpoint_bytes"].items())
    equal = "equal bit for bit" if all(run["losses_equal"] for run in runs) else "DIFFERENT"
    bare = record["summary"]["bare"]
    return (
        f"# {record['what']}\n\n"
        f"Batch {setting['batch']}, {IMAGE} px, fp32, rank {RANK}, queue {QUEUE}, ZeRO {setting['zero_stage']}, one "
        f"rank. {setting['repeat']} processes with {setting['steps']} pairs of steps each, in turn; the ratio of "
        f"engine to bare is the median over pairs. Losses of both: {equal}. Files of a checkpoint: {written}.\n\n"
        + markdown_table(head, rows)
        + f"\n\nParts of the engine's step: {shares}.\n\n"
        + sharing_note(bare["seconds"], bare["processor"], setting["threads"])
        + facts_line(record["machine"])
        + "\n"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--zero-stage", type=int, default=0, choices=(0, 1, 2))
    parser.add_argument(
        "--folder", default="", help="where checkpoints are written; default: the temporary folder"
    )
    parser.add_argument("--quick", action="store_true", help="two layers, 64 px, nothing written")
    chosen = parser.parse_args(argv)
    if chosen.measure:
        with contextlib.redirect_stdout(sys.stderr):  # what libraries say
            found = measure(
                chosen.steps, chosen.batch, chosen.zero_stage, chosen.threads, chosen.quick, chosen.folder
            )
        print(json.dumps(found))
        return 0
    if chosen.quick:
        chosen.repeat, chosen.steps, chosen.batch = 1, min(chosen.steps, 3), min(chosen.batch, 2)
    record = compare(chosen)
    write_results("overhead", record, report(record), chosen.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
