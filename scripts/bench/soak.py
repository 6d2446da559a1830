"""Training killed at random moments and started again: does every process end, say why, and go on as if nothing was?

A small retrieval run (two-layer backbone, 60 steps, a checkpoint every 5) on ranks under the `deepspeed` launcher. Each
trial draws from its seed who gets SIGKILL (one rank, the launcher that the user started, the launcher of the machine
that starts the ranks, or everything at once as when a host loses power) and when (while it starts, or a moment after a
drawn step). Then: the seconds until no process of the run is left, what the run said, and, started again with `--resume
auto`, whether all steps are there once and every loss is that of the undisturbed run bit for bit.

    python scripts/bench/soak.py [--quick] [--trials 100] [--seed 1] [--ranks 2]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measurement import REPOSITORY, facts_line, machine_facts, markdown_table, write_results

from aurora_ds.multinode import launched

PAIRS, BATCH, EPOCHS = 48, 8, 10
STEPS = PAIRS // BATCH * EPOCHS
BOUND_SECONDS = 60.0
VICTIMS = ("rank", "launcher", "launcher of the machine", "host")
REASONS = ("lost its connection", "is gone", "exits with return code")


@dataclass
class Trial:
    """What one kill led to. `ended_seconds`: until no process was left. `steps_*`: after the run was started again."""

    seed: int
    victim: str
    after_step: int
    ended_seconds: float
    said_why: bool
    resumed_after: int
    steps_lost: int
    steps_repeated: int
    losses_equal: bool
    left_behind: int

    def survived(self) -> bool:
        return (
            self.ended_seconds <= BOUND_SECONDS
            and self.said_why
            and not (self.steps_lost or self.steps_repeated or self.left_behind)
            and self.losses_equal
        )


def prepare(folder: Path) -> Path:
    """Shards, a backbone with random weights, and the recipe, whose path is returned."""
    import shutil

    import torch
    import yaml
    from safetensors.torch import save_file

    from aurora_ds.backbones.checkpoint import load_backbone
    from aurora_ds.backbones.published import to_published
    from aurora_ds.config import BackboneConfig
    from aurora_ds.data.convert import convert
    from aurora_ds.quickstart import world

    world.write(folder / "raw", counts={"train": PAIRS // 2, "test": 8}, captions=2)
    convert("folder", folder / "raw", folder / "shards")
    shutil.copy(REPOSITORY / "aurora_ds" / "quickstart" / "assets" / "vocab.txt", folder)
    words = len((folder / "vocab.txt").read_text().split())
    tower = {"width": 32, "depth": 2, "heads": 2}
    ids = {"cls_id": 2, "sep_id": 3, "bos_id": words, "enc_id": words + 1}
    text = tower | ids | {"vocab_size": words + 2, "intermediate": 64, "max_positions": 40}
    section: dict[str, Any] = {
        "vision": tower | {"image_size": 32, "patch_size": 8},
        "text": text,
        "embed_dim": 16,
    }
    torch.manual_seed(5)
    model = load_backbone(BackboneConfig.model_validate(section)).model
    save_file(to_published(model), folder / "tiny.safetensors")
    recipe = {
        "backbone": section | {"checkpoint": str(folder / "tiny.safetensors")},
        "prompts": {"rank": 4, "dropout": 0.1},
        "retrieval": {"queue_size": 24, "k_test": 4, "pairs_per_batch": 8, "max_tokens": 20},
        "data": {"shards": str(folder / "shards"), "workers": 1},
        "train": {"epochs": EPOCHS, "global_batch_size": BATCH, "lr": 1e-3, "save_every": 5, "zero_stage": 1},
        "evaluate": {"image_batch_size": 4, "text_batch_size": 8},
        "monitor": {"log_every": 1, "tensorboard": False, "gallery_queries": 0},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


class Run:
    """One launch, all of whose processes carry its name in their environment."""

    def __init__(self, recipe: Path, output: Path, ranks: int) -> None:
        self.name, self.output, self.log = uuid.uuid4().hex, output, output.with_suffix(".txt")
        environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
        environment |= {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
            launched.VARIABLE: self.name,
        }
        launcher = [
            "-m",
            "deepspeed.launcher.runner",
            "--num_gpus",
            str(ranks),
            "--master_port",
            str(free_port()),
        ]
        command = [
            sys.executable,
            *launcher,
            "--module",
            "aurora_ds.train",
            str(recipe),
            "--output",
            str(output),
        ]
        with self.log.open("a") as log:
            self.launcher = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def processes(self) -> dict[int, dict[str, str]]:
        return {n: found for n, found in launched.processes(self.name).items() if not is_zombie(n)}

    def kill(self, victim: str, chosen: random.Random) -> None:
        """SIGKILL to the victim; nothing when it has ended already."""
        there = self.processes()
        ranks = sorted(launched.ranks(there))
        machine = [number for number in there if number != self.launcher.pid and "RANK" not in there[number]]
        targets = {
            "rank": [chosen.choice(ranks)] if ranks else [],
            "launcher": [self.launcher.pid],
            "launcher of the machine": machine[:1],
            "host": [*there],
        }[victim]
        for number in targets:
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def wait(self, seconds: float) -> tuple[float, int]:
        """(seconds until no process was left, how many were left after `seconds`; those are then killed)."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            self.launcher.poll()
            if not self.processes():
                return time.monotonic() - began, 0
            time.sleep(0.1)
        left = self.processes()
        for number in left:
            os.kill(number, signal.SIGKILL)
        self.launcher.wait()
        return time.monotonic() - began, len(left)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_zombie(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:  # it ended
        return True


def losses(output: Path) -> list[tuple[int, float, float]]:
    """(step, loss, gradient norm) of every line of the run, in its order."""
    from aurora_ds.runtime.metrics_log import FILE, read

    return [
        (line["step"], line["train/loss"], line["train/gradient_norm"])
        for line in read(output / FILE)
        if "train/loss" in line
    ]


def one(recipe: Path, folder: Path, seed: int, ranks: int, whole: list[tuple[int, float, float]]) -> Trial:
    """One trial: start, kill, wait, start again."""
    chosen, output = random.Random(seed), folder / f"trial-{seed}"
    victim, after = VICTIMS[seed % len(VICTIMS)], chosen.choice([0, *range(1, STEPS - 5)])
    run = Run(recipe, output, ranks)
    if after:
        wait_for_step(run, after)
        time.sleep(chosen.uniform(0, 0.3))
    else:
        time.sleep(chosen.uniform(0, 15))
    run.kill(victim, chosen)
    ended, left = run.wait(BOUND_SECONDS + 30)
    said = run.log.read_text()
    # power that is gone leaves nobody to say so
    why = victim == "host" or any(reason in said for reason in REASONS)
    resumed = latest(output)
    again = Run(recipe, output, ranks)
    _, stuck = again.wait(600)
    found = losses(output)
    steps = Counter(step for step, *_ in found)
    return Trial(
        seed,
        victim,
        after,
        round(ended, 1),
        why,
        resumed,
        sum(step not in steps for step in range(1, STEPS + 1)),
        sum(count - 1 for count in steps.values()),
        found == whole,
        left + stuck,
    )


def wait_for_step(run: Run, step: int) -> None:
    end = time.monotonic() + 300
    while not any(each >= step for each, *_ in losses(run.output)):
        if run.launcher.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"The run did not come to step {step}:\n{run.log.read_text()[-4000:]}")
        time.sleep(0.01)


def latest(output: Path) -> int:
    """The step that the newest checkpoint is of; 0 without one."""
    named = output / "checkpoints" / "latest"
    return int(named.read_text().strip().removeprefix("step-")) if named.is_file() else 0


def trials(folder: Path, count: int, first_seed: int, ranks: int) -> list[Trial]:
    """An undisturbed run, then that many killed ones."""
    recipe = prepare(folder)
    undisturbed = Run(recipe, folder / "whole", ranks)
    undisturbed.wait(600)
    whole = losses(folder / "whole")
    if [step for step, *_ in whole] != list(range(1, STEPS + 1)):
        raise SystemExit(f"The undisturbed run failed:\n{undisturbed.log.read_text()[-4000:]}")
    done = []
    for seed in range(first_seed, first_seed + count):
        done.append(one(recipe, folder, seed, ranks, whole))
        print(json.dumps(asdict(done[-1])), flush=True)
        if not done[-1].survived():
            print((folder / f"trial-{seed}.txt").read_text()[-6000:], file=sys.stderr)
    return done


def table(done: list[Trial], ranks: int, seed: int) -> str:
    rows = []
    for victim in [*VICTIMS, "all"]:
        mine = [trial for trial in done if victim in (trial.victim, "all")]
        if mine:
            rows.append(
                [
                    victim,
                    str(len(mine)),
                    str(sum(trial.survived() for trial in mine)),
                    f"{max(trial.ended_seconds for trial in mine):.1f}",
                    str(sum(trial.said_why for trial in mine)),
                    str(sum(trial.losses_equal for trial in mine)),
                    str(BATCH * sum(trial.steps_lost for trial in mine)),
                    str(BATCH * sum(trial.steps_repeated for trial in mine)),
                    str(sum(trial.left_behind for trial in mine)),
                ]
            )
    head = ["killed", "trials", "survived", "slowest end (s)", "said why", "losses equal", "samples lost"]
    head += ["samples repeated", "processes left"]
    facts = facts_line(machine_facts(1))
    return (
        "# Runs killed at random moments\n\n"
        + markdown_table(head, rows)
        + f"\n\n{ranks} ranks under the deepspeed launcher, {STEPS} steps, ZeRO 1, seeds {seed} to "
        f"{seed + len(done) - 1}. Survived: all processes ended within {BOUND_SECONDS:.0f} s and said why (but for the "
        "host, which is all of them at once), and the run started again has every step once, with the losses and "
        f"gradient norms of the undisturbed run bit for bit.\n\n{facts}\n"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="of the first trial; the others count on")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="3 trials, nothing written")
    chosen = parser.parse_args(argv)
    count = 3 if chosen.quick else chosen.trials
    with tempfile.TemporaryDirectory() as scratch:
        done = trials(Path(scratch), count, chosen.seed, chosen.ranks)
    record = {"ranks": chosen.ranks, "steps": STEPS, "trials": [asdict(trial) for trial in done]}
    write_results("soak", record, table(done, chosen.ranks, chosen.seed), chosen.quick)
    return 0 if all(trial.survived() for trial in done) else 1


if __name__ == "__main__":
    sys.exit(main())
