"""A run that is asked to end finishes its step, saves, says so and exits 0; resumed, it is the run nobody stopped."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from small_run import STEPS_PER_EPOCH, Ranks, free_port, wait_for

from aurora_ds.runtime import checkpoint
from aurora_ds.runtime.metrics_log import FILE, read

EPOCHS = 25  # some seconds even on an idle machine: the run must not be over before it is told to end
LAST = EPOCHS * STEPS_PER_EPOCH
SETTINGS = (
    f"train.epochs={EPOCHS}",
    "prompts.dropout=0",
    "backbone.text.dropout=0",
    "backbone.text.attention_dropout=0",
    f"train.save_every={10 * LAST}",
)


def losses(output: Path) -> dict[int, float]:
    return {line["step"]: line["train/loss"] for line in read(output / FILE) if "train/loss" in line}


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of the run that nobody stopped."""
    output = tmp_path_factory.mktemp("whole") / "run"
    train(output, *SETTINGS)
    return losses(output)


def in_training(run: Ranks, output: Path, step: int = 3) -> None:
    wait_for(lambda: step in losses(output), run)


def assert_ended_early(run: Ranks, output: Path, reason: str) -> int:
    """Every rank ended well, rank 0 said why, and the step that was under way is saved. Returns the step."""
    assert run.wait(60) == [0] * len(run.processes), run.output()
    step = max(losses(output))
    assert f"Ended early: {reason}; step {step} of {LAST} is done and saved" in run.output(), run.output()
    assert checkpoint.find(output, "required").name == f"step-{step:08d}"
    assert not (output / "results.json").exists() and 3 <= step < LAST
    return step


def assert_continues(train, output: Path, whole: dict[int, float]) -> None:
    train(output, *SETTINGS)
    assert losses(output) == pytest.approx(whole, rel=1e-5) and list(losses(output)) == list(
        range(1, LAST + 1)
    )


def test_a_signal_to_one_rank_ends_all_after_the_same_step(
    whole: dict, launch, train, recipe: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    settings = (*SETTINGS, "data.workers=1", "train.zero_stage=1")
    run = launch(["-m", "aurora_ds.train", recipe, "--output", output, *settings], ranks=2)
    in_training(run, output)
    rank = psutil.Process(run.processes[1].pid)
    # as a launcher does: the whole tree, data workers too
    for each in [*rank.children(recursive=True), rank]:
        each.send_signal(signal.SIGTERM)
    assert_ended_early(run, output, r"SIGTERM (rank 1)")
    assert_continues(train, output, whole)


@pytest.mark.slow
def test_one_rank_alone_and_the_warning_that_slurm_sends(
    whole: dict, launch, train, recipe: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    run = launch(["-m", "aurora_ds.train", recipe, "--output", output, *SETTINGS])
    in_training(run, output)
    os.kill(run.processes[0].pid, signal.SIGUSR1)
    assert_ended_early(run, output, "SIGUSR1")
    assert_continues(train, output, whole)


LAUNCHERS = {
    "deepspeed": ["-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", "PORT", "--module"],
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "PORT", "-m"],
}


def launched(launch, name: str, recipe: Path, output: Path) -> tuple[Ranks, list[psutil.Process]]:
    """The run under a real launcher, in training; and its ranks."""
    launcher = [word.replace("PORT", str(free_port())) for word in LAUNCHERS[name]]
    command = [*launcher, "aurora_ds.train", recipe, "--output", output, *SETTINGS]
    run = launch(command, python=[sys.executable])
    in_training(run, output)
    below = psutil.Process(run.processes[0].pid).children(recursive=True)
    return run, [each for each in below if "aurora_ds.train" in each.cmdline()[:4]]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_signal_to_the_launcher(
    launcher: str, whole: dict, launch, train, recipe: Path, tmp_path: Path
) -> None:
    """torchrun and deepspeed's launcher of a machine pass it on; deepspeed's outer one dies of it, which ranks see."""
    output = tmp_path / "run"
    run, ranks = launched(launch, launcher, recipe, output)
    assert len(ranks) == 2
    os.kill(run.processes[0].pid, signal.SIGTERM)
    assert psutil.wait_procs(ranks, 60)[1] == []
    run.wait(60)
    assert "Ended early: " in run.output(), run.output()
    assert checkpoint.find(output, "required").name == f"step-{max(losses(output)):08d}"
    assert_continues(train, output, whole)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_that_is_killed_leaves_no_process_behind(
    launcher: str, whole: dict, launch, train, recipe: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    run, ranks = launched(launch, launcher, recipe, output)
    everyone = psutil.Process(run.processes[0].pid).children(recursive=True)
    os.kill(run.processes[0].pid, signal.SIGKILL)
    assert psutil.wait_procs(everyone, 60)[1] == []
    assert "its launcher" in run.output() and "is gone" in run.output(), run.output()
    assert_continues(train, output, whole)
