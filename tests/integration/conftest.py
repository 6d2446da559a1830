"""A real run in small: toy photographs in shards, a two-layer backbone on disk, a recipe, and processes that train."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from small_run import BATCH, TEST_MEDIA, TRAIN_PAIRS, Found, Ranks, environment, free_port

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before anything imports DeepSpeed
LANGUAGE_WORKER = Path(__file__).with_name("language_ranks_worker.py")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures to train on, 13 to test on (not a multiple of any batch used here), two captions each."""
    from aurora_ds.data.convert import convert
    from aurora_ds.quickstart import world

    folder = tmp_path_factory.mktemp("toy")
    world.write(folder / "raw", counts={"train": TRAIN_PAIRS // 2, "test": TEST_MEDIA}, captions=2)
    convert("folder", folder / "raw", folder / "shards")
    return folder / "shards"


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict:
    """The `backbone` section of a recipe: two layers a tower, random weights in a file, the toy world's vocabulary."""
    import torch
    from safetensors.torch import save_file

    from aurora_ds.backbones.checkpoint import load_backbone
    from aurora_ds.backbones.published import to_published
    from aurora_ds.config import BackboneConfig

    folder = tmp_path_factory.mktemp("backbone")
    shutil.copy(repository / "aurora_ds" / "quickstart" / "assets" / "vocab.txt", folder)
    words = len((folder / "vocab.txt").read_text().split())
    section = {
        "vision": {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 2},
        "text": {
            "vocab_size": words + 2,
            "width": 32,
            "depth": 2,
            "heads": 2,
            "intermediate": 64,
            "max_positions": 40,
            "dropout": 0.1,
            "attention_dropout": 0.1,
            "cls_id": 2,
            "sep_id": 3,
            "bos_id": words,
            "enc_id": words + 1,
        },
        "embed_dim": 16,
    }
    torch.manual_seed(5)
    model = load_backbone(BackboneConfig.model_validate(section)).model
    save_file(to_published(model), folder / "tiny.safetensors")
    return section | {"checkpoint": str(folder / "tiny.safetensors")}


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, shards: Path, backbone: dict) -> Path:
    """Two epochs of six steps, dropout and queue on, a checkpoint every other step, every step's figures kept."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    sections = {
        "backbone": backbone,
        "prompts": {"rank": 4, "dropout": 0.1},
        "retrieval": {"queue_size": 20, "k_test": 6, "pairs_per_batch": 8, "max_tokens": 20},
        "data": {"shards": str(shards), "workers": 0},
        "train": {"epochs": 2, "global_batch_size": BATCH, "lr": 1e-3, "save_every": 2, "moved_after": 4},
        "evaluate": {"image_batch_size": 4, "text_batch_size": 8},
        "monitor": {"log_every": 1, "tensorboard": False, "gallery_queries": 0},
    }
    path.write_text(yaml.safe_dump(sections))
    return path


@pytest.fixture(scope="session")
def launch(repository: Path, tmp_path_factory: pytest.TempPathFactory):
    """`launch(command, ranks)`: `python COMMAND…` as that many ranks, which find each other by plain variables."""
    folder, count, started = tmp_path_factory.mktemp("logs"), [0], []

    def launch(command: list[object], ranks: int = 1, python: list[str] | None = None) -> Ranks:
        port, processes, logs = free_port(), [], []
        for rank in range(ranks):
            variables = environment(repository)
            if ranks > 1:
                variables |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(ranks),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            count[0] += 1
            logs.append(folder / f"{count[0]:03d}-rank{rank}.txt")
            with logs[-1].open("w") as log:
                processes.append(
                    subprocess.Popen(
                        [*(python or [sys.executable]), *map(str, command)],
                        env=variables,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        started.append(Ranks(processes, logs))
        return started[-1]

    yield launch
    for ranks in started:
        if ranks.running():
            ranks.kill()


@pytest.fixture(scope="module")
def work(launch, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[dict[str, Found]]]:
    """`work(jobs, ranks)`: what each rank found, by job."""

    def work(jobs: list[tuple[str, str, list[str]]], ranks: int) -> list[dict[str, Found]]:
        folder = tmp_path_factory.mktemp("work")
        (folder / "jobs.json").write_text(json.dumps(jobs))
        run = launch([LANGUAGE_WORKER, folder], ranks)
        assert run.wait() == [0] * ranks, run.output()[-6000:]
        files = [folder / f"found-{rank}.pickle" for rank in range(ranks)]
        return [
            {name: Found(*found) for name, found in pickle.loads(file.read_bytes()).items()} for file in files
        ]

    return work


@pytest.fixture(scope="session")
def train(recipe: Path):
    """`train(output, overrides…)`: the training command on 1 rank in this process, which saves its start."""
    from aurora_ds.train import main

    def train(output: Path, *arguments: str) -> None:
        assert main([str(recipe), "--output", str(output), *arguments]) == 0

    return train


@pytest.fixture(scope="session")
def train_command(launch, recipe: Path):
    """`train_command(output, overrides…, ranks=1)`: the same in processes of its own, to a good end."""

    def train_command(output: Path, *arguments: str, ranks: int = 1) -> Ranks:
        run = launch(["-m", "aurora_ds.train", recipe, "--output", output, *arguments], ranks)
        assert run.wait() == [0] * ranks, run.output()[-6000:]
        return run

    return train_command
