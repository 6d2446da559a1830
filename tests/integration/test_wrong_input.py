"""What people get wrong with train, evaluate and export: status 2, one paragraph that says what to do, nothing lost.

Most cases run the command's own main() in this process; those about processes, disks and signals run the real one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aurora_ds.runtime import checkpoint
from aurora_ds.runtime.metrics_log import FILE, read


@pytest.fixture(scope="module")
def run_folder(train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps; tests that write into it take a copy."""
    output = tmp_path_factory.mktemp("finished") / "run"
    train(output, "train.max_steps=4")
    return output


@pytest.fixture
def refused(recipe: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """`refused(command, arguments…)` -> its one paragraph on stderr, after the checks that all of them share."""
    from aurora_ds.cli import main

    def refused(command: str, *arguments: object, source: object = recipe) -> str:
        capsys.readouterr()
        recipes = [] if command == "export" else [str(source)]
        status = main([command, *recipes, *map(str, arguments)])
        return paragraph(status, capsys.readouterr().err)

    return refused


def paragraph(status: int, printed: str) -> str:
    """The message; it must be one paragraph, without a stack trace, and come with status 2."""
    lines = [line for line in printed.splitlines() if line.startswith("aurora-ds")]
    assert status == 2, printed
    assert len(lines) == 1 and "Traceback" not in printed, printed
    return lines[0]


# what the recipe says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.batch_size=4", "Did you mean train.global_batch_size?"),
        ("prompts.rank=0", "prompts.rank = 0"),
        ("prompts.rank=-3", "prompts.rank = -3"),
        ("prompts.sites=[no_such_layer.*]", "matches no site"),
        ("prompts.sites=[]", "prompts.sites is empty"),
        ("prompts.train_heads=[tail]", "prompts.train_heads"),
        ("data.shards=/no/such/folder", "/no/such/folder"),
        ("data.shards=null", "data.shards is not set"),
        ("data.train_split=validation", "validation"),
        ("backbone.checkpoint=/no/such/file.pth", "no such file"),
        ("backbone.checkpoint=builtin:moon", "builtin:moon"),
        ("backbone.vision.width=64", "backbone.vision.width is 32 in the file and 64 in the configuration"),
        ("backbone.tokenizer=/no/such/vocab.txt", "does not exist"),
        ("backbone.queue_weights=read", "backbone.queue_weights=ignore"),
        ("train.global_batch_size=200", "fewer than one step"),
        ("train.precision=fp16", "fp16"),
        ("seed=0.5", "seed = 0.5"),
    ],
)
def test_a_wrong_setting(override: str, said: str, refused, tmp_path: Path) -> None:
    assert said in refused("train", override, "--output", tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_recipe_that_does_not_exist(refused, tmp_path: Path) -> None:
    said = refused("train", "--output", tmp_path / "run", source="retrieval_moon")
    assert "retrieval_moon" in said and "retrieval_world" in said


def test_a_deepspeed_config_that_does_not_exist(refused, tmp_path: Path) -> None:
    assert "ds_configs/" in refused(
        "train", "--output", tmp_path / "run", "--deepspeed-config", tmp_path / "zero9.json"
    )


# more ranks than lanes -----------------------------------------------------------------------------------------------


def test_more_ranks_than_lanes(launch, recipe: Path, tmp_path: Path) -> None:
    run = launch(["-m", "aurora_ds.train", recipe, "data.lanes=1", "--output", tmp_path / "run"], ranks=2)
    assert run.wait() == [2, 2]
    for log, name in zip(run.logs, ("aurora-ds: ", "aurora-ds (rank 1): "), strict=True):
        said = paragraph(2, log.read_text())
        assert said.startswith(name) and "2 ranks cannot share 1 lanes (data.lanes)" in said


# checkpoints, adapters and folders of other runs ---------------------------------------------------------------------


@pytest.fixture
def other_backbone(backbone: dict, tmp_path: Path) -> Path:
    """The same architecture with other weights."""
    place = tmp_path / "other"
    shutil.copytree(Path(backbone["checkpoint"]).parent, place)
    tensors = load_file(place / "tiny.safetensors")
    save_file({name: value * 1.5 for name, value in tensors.items()}, place / "tiny.safetensors")
    return place / "tiny.safetensors"


def test_an_output_folder_of_another_run(run_folder: Path, refused) -> None:
    before = tree(run_folder)
    said = refused("train", "train.lr=5e-4", "prompts.rank=8", "--output", run_folder)
    assert "belongs to another run" in said and "train.lr (0.001 there, 0.0005 now)" in said
    assert tree(run_folder) == before


def test_resuming_never_where_checkpoints_are(run_folder: Path, refused) -> None:
    before = tree(run_folder)
    assert "--resume auto" in refused(
        "train", "train.max_steps=4", "--output", run_folder, "--resume", "never"
    )
    assert tree(run_folder) == before


def test_resuming_what_is_not_there(refused, tmp_path: Path) -> None:
    assert "no complete checkpoint" in refused("train", "--output", tmp_path / "run", "--resume", "required")
    said = refused("train", "--output", tmp_path / "run", "--resume", tmp_path / "nothing")
    assert "no checkpoint folder" in said


def test_a_checkpoint_of_another_backbone(
    run_folder: Path, other_backbone: Path, refused, tmp_path: Path
) -> None:
    said = refused(
        "train",
        f"backbone.checkpoint={other_backbone}",
        *("--output", tmp_path / "run"),
        *("--resume", run_folder),
    )
    assert "trained on backbone tiny.safetensors with another sha256" in said


def test_a_checkpoint_of_other_prompts(run_folder: Path, refused, tmp_path: Path) -> None:
    said = refused("train", "prompts.rank=8", "--output", tmp_path / "run", "--resume", run_folder)
    assert "prompts.rank" in said and "shape" in said


def test_a_damaged_checkpoint_named_by_path(run_folder: Path, refused, tmp_path: Path) -> None:
    broken = tmp_path / "step-00000004"
    shutil.copytree(checkpoint.find(run_folder, "required"), broken)
    with (broken / checkpoint.OPTIMIZER).open("r+b") as file:
        file.seek(200)
        file.write(b"????")
    said = refused("train", "--output", tmp_path / "run", "--resume", broken)
    assert "optimizer.safetensors has changed" in said


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_an_adapter_for_another_backbone(
    command: str, run_folder: Path, other_backbone: Path, train, refused, tmp_path: Path
) -> None:
    chosen = [f"backbone.checkpoint={other_backbone}"]
    if command == "export":
        run_folder = tmp_path / "mergeable"
        train(run_folder, "train.max_steps=1", "prompts.query_transform=false")
        chosen = ["--backbone", str(other_backbone)]
    said = refused(command, *chosen, "--adapter", run_folder, "--output", tmp_path / "out")
    assert "belongs to backbone 'tiny.safetensors'" in said and "backbone.checkpoint" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_no_adapter_there(command: str, refused, tmp_path: Path) -> None:
    assert "No adapter in" in refused(command, "--adapter", tmp_path, "--output", tmp_path / "out")


def test_a_fully_fine_tuned_backbone_given_as_an_adapter(
    train, refused, recipe: Path, tmp_path: Path
) -> None:
    from aurora_ds.evaluate import main

    output = tmp_path / "run"
    train(output, "train.method=full", "retrieval.momentum_model=twin", "train.max_steps=2")
    said = refused("evaluate", "--adapter", output, "--output", tmp_path / "out")
    assert f"backbone.checkpoint={output}/adapter/backbone.safetensors" in said
    # and what it says works
    chosen = f"backbone.checkpoint={output}/adapter/backbone.safetensors"
    assert main([str(recipe), chosen, "--output", str(tmp_path / "out")]) == 0
    found, wanted = (
        json.loads((each / "results.json").read_text())["metrics"] for each in (tmp_path / "out", output)
    )
    assert found == wanted


def test_an_adapter_cut_off(run_folder: Path, refused, tmp_path: Path) -> None:
    shutil.copytree(run_folder / "adapter", tmp_path / "torn")
    whole = (tmp_path / "torn" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "torn" / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    said = refused("evaluate", "--adapter", tmp_path / "torn", "--output", tmp_path / "out")
    assert "cannot be read" in said and "cut off" in said


def test_an_output_that_is_a_file(refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refused("train", "--output", tmp_path / "file")
    assert "could not be written" in refused("evaluate", "--output", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# what is wrong with the data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_sample_is_told_plainly_whoever_read_it(
    workers: int, shards: Path, refused, tmp_path: Path
) -> None:
    damaged = tmp_path / "shards"
    shutil.copytree(shards, damaged)
    with (damaged / "train-000000.tar").open("r+b") as file:
        for place in range(0, os.path.getsize(damaged / "train-000000.tar") - 4096, 4096):
            file.seek(place)
            file.write(b"\0" * 2048)
    command = ("train", f"data.shards={damaged}", f"data.workers={workers}", "--output", tmp_path / "run")
    said = refused(*command)
    assert "48 samples in a row cannot be read" in said and "worker" not in said.lower()
    listed = [json.loads(line) for line in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()]
    assert {line["shard"] for line in listed} == {"train-000000.tar"} and len(listed) > 10
    said = refused(*command, "data.bad_samples=error")
    assert "cannot be used" in said and "data.bad_samples=skip" in said and "worker" not in said.lower()


def test_a_missing_shard(shards: Path, refused, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    (tmp_path / "shards" / "train-000000.tar").unlink()
    said = refused("train", f"data.shards={tmp_path / 'shards'}", "--output", tmp_path / "run")
    assert "train-000000.tar" in said


# what goes wrong on the way ------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_with_the_samples_and_keeps_the_last_checkpoint(
    train, refused, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    settings = ["train.lr=1e20", "train.schedule=constant", "train.warmup_steps=3", "train.save_every=1"]
    said = refused("train", *settings, "--output", output)
    assert "not finite in step" in said and "last checkpoint is kept" in said and "train.lr" in said
    (kept,) = (output / "not_finite").iterdir()
    assert str(kept) in said and {file.name for file in kept.iterdir()} == {
        "rank-00000.json",
        "rank-00000.safetensors",
        "state.safetensors",
    }
    last = checkpoint.find(output, "required")
    checkpoint.verify(last)
    assert {line["step"] for line in read(output / FILE)} == set(
        range(1, checkpoint.verify(last)["step"] + 1)
    )


def test_a_backbone_that_is_not_finite(backbone: dict, refused, tmp_path: Path) -> None:
    place = tmp_path / "broken"
    shutil.copytree(Path(backbone["checkpoint"]).parent, place)
    tensors = load_file(place / "tiny.safetensors")
    tensors["visual_encoder.blocks.1.norm1.weight"] = torch.full_like(
        tensors["visual_encoder.blocks.1.norm1.weight"], torch.inf
    )
    save_file(tensors, place / "tiny.safetensors")
    said = refused("train", f"backbone.checkpoint={place / 'tiny.safetensors'}", "--output", tmp_path / "run")
    assert "not finite in step 1" in said and "on the samples" in said and "train-0000" in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("making a small file system needs root")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"mounting a tmpfs is not allowed here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("tensorboard", ["false", "true"])
def test_a_disk_that_fills_up_while_saving(tensorboard: str, small_disk: Path, recipe: Path, launch) -> None:
    output = small_disk / "run"
    settings = ["train.save_every=1", "train.keep_last=100", f"monitor.tensorboard={tensorboard}"]
    run = launch(["-m", "aurora_ds.train", recipe, *settings, "train.epochs=20", "--output", output])
    said = paragraph(run.wait()[0], run.output())
    assert "The disk is full" in said and "Earlier checkpoints are kept" in said
    left = checkpoint.complete(output)
    assert left and not list((output / "checkpoints").glob(".writing-*"))
    for each in left:
        checkpoint.verify(each)


def test_a_disk_that_is_full_when_results_are_written(small_disk: Path, run_folder: Path, refused) -> None:
    (small_disk / "results.json").write_text("{}")
    with (small_disk / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        for _ in range(2**20):
            file.write(b"x" * 4096)
    said = refused("evaluate", "--adapter", run_folder, "--output", small_disk)
    assert "results.json could not be written: No space left" in said
    assert json.loads((small_disk / "results.json").read_text()) == {}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its content, but for the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.lock"
    }
