"""A run killed with SIGKILL and started again is the run that was never killed: bit for bit on the same ranks.

The killed runs are the real command in processes of their own; the moment of the kill is drawn from a seed that a
failure prints. metrics.jsonl holds every step's figures exactly, so losses are compared as numbers, not as prints.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import BATCH, STEPS_PER_EPOCH, free_port, wait_for

from aurora_ds.runtime import checkpoint
from aurora_ds.runtime.metrics_log import FILE, read

LAST = 2 * STEPS_PER_EPOCH
SEED = int(os.environ.get("AURORA_DS_KILL_SEED", "20240611"))
NO_DROPOUT = ("prompts.dropout=0", "backbone.text.dropout=0", "backbone.text.attention_dropout=0")


def losses(output: Path) -> dict[int, dict[str, float]]:
    """Step -> its losses and its gradient norm, exactly."""
    wanted = ("train/loss", "train/loss_ita", "train/loss_itm", "train/gradient_norm", "train/lr")
    return {
        line["step"]: {name: line[name] for name in wanted}
        for line in read(output / FILE)
        if "train/loss" in line
    }


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter" / "adapter_model.safetensors")


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, atol=tolerance, rtol=tolerance, msg=f"{name}, seed {SEED}"
        )


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody killed: 1 rank, dropout and queue on."""
    output = tmp_path_factory.mktemp("whole") / "run"
    train(output)
    return output


def killed(
    launch, recipe: Path, output: Path, after_step: int, delay: float, *arguments: str, ranks: int = 1
):
    """Start a run, SIGKILL it `delay` seconds after its log shows `after_step`."""
    run = launch(["-m", "aurora_ds.train", recipe, "--output", output, *arguments], ranks)
    wait_for(lambda: any(line["step"] >= after_step for line in read(output / FILE)), run)
    time.sleep(delay)
    run.kill()
    return run


def test_metrics_hold_every_step(whole: Path) -> None:
    assert list(losses(whole)) == list(range(1, LAST + 1))
    lines = [line for line in read(whole / FILE) if "train/loss" in line]
    assert [line["samples"] for line in lines] == [BATCH * step for step in range(1, LAST + 1)]
    assert checkpoint.find(whole, "required").name == f"step-{LAST:08d}"


def test_killed_at_a_random_step_and_resumed_it_is_the_same_run_bit_for_bit(
    whole: Path, launch, train_command, recipe: Path, tmp_path: Path
) -> None:
    generator, output = random.Random(SEED), tmp_path / "run"
    step, delay = generator.randrange(2, LAST - 4), generator.uniform(0, 0.1)
    run = killed(launch, recipe, output, step, delay)
    before = losses(output)
    assert before, f"seed {SEED}: nothing was logged\n{run.output()}"
    train_command(output, "--resume", "auto")
    assert losses(output) == losses(whole), f"seed {SEED}: killed {delay:.3f} s after step {step}"
    assert_equal(adapter(output), adapter(whole), 0.0)
    own, other = (checkpoint.verify(checkpoint.find(each, "required")) for each in (output, whole))
    assert own["files"] == other["files"]  # sizes and sha256 of adapter, moments, queue, momentum copies
    assert before.items() <= losses(whole).items()


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(6))
def test_killed_again_and_again_also_while_saving(
    whole: Path, launch, train, recipe: Path, tmp_path: Path, turn: int
) -> None:
    """Every step is saved, and kills come within milliseconds of a step's end, when a checkpoint is being written."""
    generator, output = random.Random(SEED + turn), tmp_path / "run"
    for _ in range(3):
        done = max(losses(output), default=0)
        if done >= LAST - 1:
            break
        killed(
            launch,
            recipe,
            output,
            generator.randrange(done + 1, LAST),
            generator.uniform(0, 0.03),
            "train.save_every=1",
        )
        for each in (output / "checkpoints").glob("step-*"):
            checkpoint.verify(each)  # what bears a checkpoint's name is one
    train(output, "train.save_every=1")
    assert losses(output) == losses(whole), f"seed {SEED + turn}"
    assert_equal(adapter(output), adapter(whole), 0.0)


@pytest.fixture(scope="module")
def whole_without_dropout(train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dropout masks are drawn per rank, so runs on different numbers of ranks are compared without."""
    output = tmp_path_factory.mktemp("whole") / "run"
    train(output, *NO_DROPOUT, "train.zero_stage=1")
    return output


def assert_close_losses(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for step, figures in wanted.items():
        assert found[step] == pytest.approx(figures, rel=1e-5, abs=1e-5), f"step {step}, seed {SEED}"


def test_two_ranks_killed_under_the_deepspeed_launcher_and_resumed_on_one_at_another_stage(
    whole_without_dropout: Path, launch, train, recipe: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2"]
    launcher += ["--master_port", str(free_port()), "--module"]
    command = ["aurora_ds.train", recipe, "--output", output, *NO_DROPOUT, "train.zero_stage=3"]
    run = launch(command, python=launcher)
    step = random.Random(SEED + 1).randrange(3, 8)
    wait_for(lambda: any(line["step"] >= step for line in read(output / FILE)), run)
    run.kill()
    assert checkpoint.find(output, "required") is not None
    train(output, *NO_DROPOUT, "train.zero_stage=1", "--resume", "required")
    assert_close_losses(losses(output), losses(whole_without_dropout))
    assert_equal(adapter(output), adapter(whole_without_dropout), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [(0, 2), (1, 3), (2, 0)])
def test_one_rank_killed_and_resumed_on_two(
    whole_without_dropout: Path, launch, train_command, recipe: Path, tmp_path: Path, stages: tuple[int, int]
) -> None:
    output = tmp_path / "run"
    killed(launch, recipe, output, 4, 0.0, *NO_DROPOUT, f"train.zero_stage={stages[0]}")
    train_command(output, *NO_DROPOUT, f"train.zero_stage={stages[1]}", ranks=2)
    assert_close_losses(losses(output), losses(whole_without_dropout))
    assert_equal(adapter(output), adapter(whole_without_dropout), 1e-5)


def test_another_output_continues_from_a_named_checkpoint(whole: Path, train, tmp_path: Path) -> None:
    middle = checkpoint.complete(whole)[0]
    train(tmp_path / "run", "--resume", str(middle))
    assert losses(tmp_path / "run").items() <= losses(whole).items()
    assert_equal(adapter(tmp_path / "run"), adapter(whole), 0.0)


def torn(checkpoint_folder: Path) -> None:
    (checkpoint_folder / checkpoint.OPTIMIZER).write_bytes(b"torn")


def one_bit(checkpoint_folder: Path) -> None:
    file = checkpoint_folder / checkpoint.OPTIMIZER
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def a_file_missing(checkpoint_folder: Path) -> None:
    (checkpoint_folder / "adapter_model.safetensors").unlink()


def no_record(checkpoint_folder: Path) -> None:
    (checkpoint_folder / checkpoint.STATE).write_text('{"schema": 1,')


@pytest.mark.parametrize("damage", [torn, one_bit, a_file_missing, no_record])
def test_a_damaged_newest_checkpoint_is_passed_over(
    damage: Callable[[Path], None], whole: Path, train, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    damage(checkpoint.find(output, "required"))
    with pytest.warns(UserWarning, match="Passing over a checkpoint"):
        train(output)
    assert losses(output) == losses(whole)
    assert_equal(adapter(output), adapter(whole), 0.0)


def test_an_evaluation_that_was_due_when_the_run_ended_is_made_when_it_comes_back(
    train, tmp_path: Path
) -> None:
    """The checkpoint of an epoch's end is written before the evaluation: a kill in between must not lose it."""
    output, setting = tmp_path / "run", "train.evaluate_every=1"
    train(output, setting, f"train.max_steps={STEPS_PER_EPOCH}")
    shutil.rmtree(output / "best")
    (output / FILE).unlink()
    train(output, setting)
    evaluated = [line["step"] for line in read(output / FILE) if "eval/r_mean" in line]
    assert evaluated == [STEPS_PER_EPOCH, LAST]
    assert (output / "best" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    "settings",
    [
        ["train.method=heads"],
        ["train.method=full", "retrieval.momentum_model=twin"],
        ["retrieval.momentum_model=twin"],
        ["prompts.preset=released"],
        ["prompts.form=cp", "retrieval.train_temperature=true"],
        ["train.accumulation=2", "train.clip_norm=0.5"],
        ["train.precision=bf16", "train.zero_stage=2"],
        ["train.zero_stage=3", "backbone.activation_checkpointing=true"],
        ["data.workers=2", "train.schedule=cosine_epoch", "train.warmup_steps=4"],
        ["data.expand=media", "data.window=3", "train.global_batch_size=4"],
        ["data.mix=[{shards: SHARDS, weight: 0.5}, {shards: SHARDS, split: test, weight: 1.5}]"],
    ],
    ids=" ".join,
)
def test_every_kind_of_run_goes_on_bit_for_bit(
    settings: list[str], train, shards: Path, tmp_path: Path
) -> None:
    settings = [setting.replace("SHARDS", str(shards)) for setting in settings]
    train(tmp_path / "whole", *settings, "train.max_steps=8")
    train(tmp_path / "parts", *settings, "train.max_steps=3")
    train(tmp_path / "parts", *settings, "train.max_steps=8")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    own, other = (
        checkpoint.verify(checkpoint.find(tmp_path / each, "required")) for each in ("parts", "whole")
    )
    assert own["files"] == other["files"]
