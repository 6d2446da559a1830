"""Training killed at random moments and started again: does every process end, say why, and go on as if nothing was?

A small retrieval run (two-layer backbone, a checkpoint every 5 steps) on two hosts of one rank each, as
scripts/train_multinode.sh starts it: the hosts are those of tests/integration/separate_hosts.py, with network,
processes, name and sshd of their own. Each trial draws from its seed who gets SIGKILL and when (while it starts, or a
moment after a drawn step): a rank, the `deepspeed` launcher, its launcher on one host, the supervisor that the user
started, or a host, which loses network and processes at once, as without power. Then: the seconds until no process of
the run is left, what was said, and, started again with `--resume auto`, whether every step is there once and every loss
is that of the undisturbed run bit for bit. A run is killed again and again before it may end. What is done so far is
written after every trial, each with the commit that it was of.

    python scripts/bench/soak.py [--quick] [--trials 100] [--seed 1] [--one-machine] [--add]

`--add` keeps the trials of results/soak.json and goes on after their last seed, until there are `--trials` of them.

`--one-machine`: two ranks under the `deepspeed` launcher on this machine, where there is no root to make hosts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measurement import REPOSITORY, RESULTS, machine_facts, write_results
from soak_trials import BOUND_SECONDS, VICTIMS, Trial, earlier, table

from aurora_ds.multinode import launched, variables

sys.path.append(str(REPOSITORY / "tests" / "integration"))
import separate_hosts

PAIRS, BATCH, EPOCHS = 48, 8, 40
STEPS = PAIRS // BATCH * EPOCHS
MOST_STEPS_BETWEEN = 20
LAST_KILLED = STEPS - 4 * MOST_STEPS_BETWEEN
# A start on a machine that has other work; the rest of a run.
PATIENCE_SECONDS = 1200.0
# what `python -m` runs there
MODULES = {
    "launcher": "deepspeed.launcher.runner",
    "launcher of a host": "deepspeed.launcher.launch",
    "supervisor": "aurora_ds.multinode",
}
# in what was printed, or left in failures/
REASONS = (
    *("lost its connection", "is gone", "exits with return code", "ended with status", "no sign of life"),
    *("has ended", "Ended early", "the supervisor was killed"),
)


def prepare(folder: Path, width: int = 32, depth: int = 2, rank: int = 4) -> Path:
    """Shards, a backbone of that size with random weights, and the recipe, whose path is returned."""
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
    tower = {"width": width, "depth": depth, "heads": 2}
    ids = {"cls_id": 2, "sep_id": 3, "bos_id": words, "enc_id": words + 1}
    text = tower | ids | {"vocab_size": words + 2, "intermediate": 2 * width, "max_positions": 40}
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
        "prompts": {"rank": rank, "dropout": 0.1},
        "retrieval": {"queue_size": 24, "k_test": 4, "pairs_per_batch": 8, "max_tokens": 20},
        "data": {"shards": str(folder / "shards"), "workers": 1},
        "train": {"epochs": EPOCHS, "global_batch_size": BATCH, "lr": 1e-3, "save_every": 5, "zero_stage": 1},
        "evaluate": {"image_batch_size": 4, "text_batch_size": 8},
        "monitor": {"log_every": 1, "tensorboard": False, "gallery_queries": 0},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


class DidNotGoOn(Exception):
    """A run that was started again ended, or stood still, before anybody killed it."""


class Place:
    """Where runs are started: two hosts, made again when one was killed, or this machine."""

    def __init__(self, folder: Path, one_machine: bool) -> None:
        self.folder, self.one_machine = folder, one_machine
        self.hosts: separate_hosts.Hosts | None = None
        self._made = 0

    def ready(self) -> None:
        """Make the hosts, if they are not there."""
        if self.hosts is None and not self.one_machine:
            self.hosts, self._made = separate_hosts.start(self.folder / f"net-{self._made}"), self._made + 1

    def close(self) -> None:
        """End the hosts, and what runs on them."""
        if self.hosts is not None:
            self.hosts.close()
            shutil.rmtree(self.hosts.folder)
            self.hosts = None

    def command(self, recipe: Path, output: Path) -> tuple[list[str], dict[str, str]]:
        """(the command line that trains, what its environment has more)."""
        train = [str(recipe), "--output", str(output)]
        if self.hosts is None:
            launcher = [
                *("-m", "deepspeed.launcher.runner", "--num_gpus", "2"),
                *("--master_port", str(free_port())),
            ]
            return [sys.executable, *launcher, "--module", "aurora_ds.train", *train], {}
        supervisor = [sys.executable, "-m", "aurora_ds.multinode", "--hostfile", self.hosts.hostfile(1)]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        command = self.hosts[0].inside([*supervisor, *train], REPOSITORY)
        return command, {"HOME": str(self.hosts[0].home), "PATH": path}


class Run:
    """One launch, all of whose processes carry one of its names in their environment."""

    def __init__(self, place: Place, recipe: Path, output: Path) -> None:
        place.ready()
        self.place, self.name, self.output = place, uuid.uuid4().hex, output
        self.log = output.with_suffix(".txt")
        environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
        environment |= {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
            launched.VARIABLE: self.name,
        }
        for old in (output / variables.FILE, *output.glob("failures/*")):
            old.unlink(missing_ok=True)
        command, more = place.command(recipe, output)
        self._said_before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("a") as log:
            self.started = subprocess.Popen(
                command, env=environment | more, stdout=log, stderr=subprocess.STDOUT
            )

    def processes(self) -> dict[int, dict[str, str]]:
        """Process number -> environment: what the user started, and what the supervisor named anew."""
        names, file = [self.name], self.output / variables.FILE
        with contextlib.suppress(OSError):  # it is not there yet
            lines = [line.partition("=") for line in file.read_text().splitlines()]
            names += [value for name, _, value in lines if name == launched.VARIABLE]
        found = {number: each for name in names for number, each in launched.processes(name).items()}
        return {number: each for number, each in found.items() if not is_zombie(number)}

    def there(self, victim: str) -> list[int]:
        """The processes of which the victim is one: all of them for a host."""
        found = self.processes()
        if victim == "rank":
            return sorted(launched.ranks(found))
        return sorted(number for number in found if victim == "host" or module_of(number) == MODULES[victim])

    def kill(self, victim: str, chosen: random.Random) -> str:
        """SIGKILL to the victim as soon as it is there; it is told more exactly."""
        if victim == "host" and self.place.hosts is not None:
            number = chosen.randrange(2)
            self.place.hosts.link(number, "down")
            self.place.hosts[number].kill()
            return f"host {number + 1}"
        while not (found := self.there(victim)):
            if self.started.poll() is not None:
                raise self.did_not_go_on(f"The run ended before its {victim} was there")
            time.sleep(0.05)
        for number in found if victim == "host" else [chosen.choice(found)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        return victim

    def did_not_go_on(self, why: str) -> DidNotGoOn:
        """The error with what was printed; nothing of the launch is left."""
        said = self.said()[-4000:]
        self.wait(30)
        return DidNotGoOn(f"{why}:\n{said}")

    def wait(self, seconds: float) -> tuple[float, int]:
        """(seconds until no process was left, how many were left after `seconds`; those are then killed)."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            self.started.poll()
            if not self.processes():
                return time.monotonic() - began, 0
            time.sleep(0.2)
        left = self.processes()
        for number in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.started.wait()
        return time.monotonic() - began, len(left)

    def said(self) -> str:
        """What this launch printed, and what its ranks left on disk."""
        with self.log.open() as file:
            file.seek(self._said_before)
            printed = file.read()
        return "\n".join([printed, *(each.read_text() for each in self.output.glob("failures/rank-*"))])


def module_of(number: int) -> str:
    """What `python -m` runs there; a shell or pdsh that has it among its arguments runs none."""
    try:
        line = Path(f"/proc/{number}/cmdline").read_text().split("\0")
    except OSError:  # it ended
        return ""
    return line[line.index("-m") + 1] if "python" in Path(line[0]).name and "-m" in line else ""


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


def wait_for_step(run: Run, step: int) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not any(each >= step for each, *_ in losses(run.output)):
        if run.started.poll() is not None or time.monotonic() > end:
            raise run.did_not_go_on(f"The run did not come to step {step}")
        time.sleep(0.05)


def latest(output: Path) -> int:
    """The step that the newest checkpoint is of; 0 without one."""
    named = output / "checkpoints" / "latest"
    return int(named.read_text().strip().removeprefix("step-")) if named.is_file() else 0


def kill_one(place: Place, recipe: Path, output: Path, seed: int, commit: str) -> Trial:
    """Start the run, or start it again, kill, and wait until all has ended."""
    chosen = random.Random(seed)
    victims = [each for each in VICTIMS if each != "supervisor"] if place.one_machine else VICTIMS
    victim, after = victims[seed % len(victims)], 0
    run = Run(place, recipe, output)
    if chosen.random() < 0.2:
        time.sleep(chosen.uniform(0, 20))
    else:
        after = latest(output) + chosen.randint(1, MOST_STEPS_BETWEEN)
        # lines after the checkpoint are of the last launch until this one has resumed
        wait_for_step(run, after if after > last_step(output) else last_step(output) + 1)
        time.sleep(chosen.uniform(0, 0.3))
    after = last_step(output) if after else 0
    killed = run.kill(victim, chosen)
    ended, left = run.wait(BOUND_SECONDS + 30)
    # who killed all of one machine leaves nobody to say so; before the ranks are there, the reason is what was killed
    silent = (victim == "host" and place.one_machine) or not after
    why = silent or any(reason in run.said() for reason in REASONS)
    if victim == "host":
        place.close()
    return Trial(seed, killed, after, round(ended, 1), why, left, latest(output), commit=commit)


def last_step(output: Path) -> int:
    return max((step for step, *_ in losses(output)), default=0)


def settle(waiting: list[Trial], output: Path, whole: list[tuple[int, float, float]]) -> None:
    """Fill in what became of the run after those kills, now that it went on."""
    found = losses(output)
    steps, last = Counter(step for step, *_ in found), max((step for step, *_ in found), default=0)
    for trial in waiting:
        trial.steps_lost = sum(step not in steps for step in range(1, last + 1))
        trial.steps_repeated = sum(count - 1 for count in steps.values())
        trial.losses_equal = found == whole[:last]


def trials(folder: Path, count: int, first_seed: int, one_machine: bool) -> Iterator[list[Trial]]:
    """An undisturbed run, then runs that are killed again and again; all trials so far, whenever there are more."""
    recipe, place = prepare(folder), Place(folder, one_machine)
    commit = machine_facts(1)["commit"]
    try:
        undisturbed = Run(place, recipe, folder / "whole")
        undisturbed.wait(PATIENCE_SECONDS)
        whole = losses(folder / "whole")
        if [step for step, *_ in whole] != list(range(1, STEPS + 1)):
            raise SystemExit(f"The undisturbed run failed:\n{undisturbed.said()[-4000:]}")
        done: list[Trial] = []
        while len(done) < count:
            output, waiting, stuck = folder / f"run-{first_seed + len(done)}", [], False
            while len(done) + len(waiting) < count and latest(output) < LAST_KILLED:
                seed = first_seed + len(done) + len(waiting)
                try:
                    trial = kill_one(place, recipe, output, seed, commit)
                except DidNotGoOn as error:  # what the kill before led to
                    print(error, file=sys.stderr, flush=True)
                    stuck = True
                    break
                if trial.after_step:
                    settle(waiting, output, whole)
                    done += waiting
                    waiting = []
                    if done:
                        yield done
                waiting.append(trial)
            if not waiting:
                raise SystemExit("The run does not start.")
            end = Run(place, recipe, output)
            _, left = end.wait(PATIENCE_SECONDS)
            waiting[-1].left_behind += left
            settle(waiting, output, whole)
            waiting[-1].losses_equal &= not stuck
            if last_step(output) != STEPS:
                waiting[-1].steps_lost += STEPS - last_step(output)
                print(end.said()[-6000:], file=sys.stderr)
            done += waiting
            yield done
    finally:
        place.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="of the first trial; the others count on")
    parser.add_argument("--one-machine", action="store_true", help="two ranks on this machine, no hosts")
    parser.add_argument("--quick", action="store_true", help="3 trials, nothing written")
    parser.add_argument("--add", action="store_true", help="go on after the trials of results/soak.json")
    chosen = parser.parse_args(argv)
    count = 3 if chosen.quick else chosen.trials
    reason = "" if chosen.one_machine else separate_hosts.missing()
    if reason:
        raise SystemExit(f"{reason}; or give --one-machine")
    settings = {"hosts": 1 if chosen.one_machine else 2, "steps": STEPS}
    before = earlier(RESULTS / "soak.json", settings) if chosen.add else []
    first = max((trial.seed for trial in before), default=chosen.seed - 1) + 1
    done, told = before, len(before)
    with tempfile.TemporaryDirectory() as scratch:
        for more in trials(Path(scratch), count - len(before), first, chosen.one_machine):
            done = before + more
            for trial in done[told:]:
                print(json.dumps(asdict(trial) | {"survived": trial.survived()}), flush=True)
            told = len(done)
            record = settings | {"wanted": count, "trials": [asdict(trial) for trial in done]}
            write_results("soak", record, table(done, chosen.one_machine, count, STEPS, BATCH), chosen.quick)
    return 0 if all(trial.survived() for trial in done) else 1


if __name__ == "__main__":
    sys.exit(main())
