"""From real photographs with captions to batches: tests/data/photos, see README.md there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from drawn_data import PHOTOS, WordTokenizer

from aurora_ds.config import RunConfig
from aurora_ds.data import loader
from aurora_ds.data.convert import convert
from aurora_ds.data.shardcheck import verify_shards


@pytest.fixture(scope="module")
def photo_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    results = convert("folder", PHOTOS, folder, workers=2, max_rejects=0)
    assert {name: (split["samples"], split["pairs"]) for name, split in results["splits"].items()} == {
        "train": (8, 22),
        "test": (6, 15),
    }
    return folder


def test_every_photo_is_named_in_the_readme() -> None:
    readme = (PHOTOS / "README.md").read_text()
    listed = {
        row["image"]
        for split in ("train", "test")
        for row in json.loads((PHOTOS / f"{split}.json").read_text())
    }
    present = {f"images/{path.name}" for path in (PHOTOS / "images").iterdir()}
    assert listed == present and len(present) == 14
    assert all(f"| {Path(image).name} |" in readme for image in present)
    assert sum(path.stat().st_size for path in (PHOTOS / "images").iterdir()) < 2_500_000


def test_the_shards_are_right(photo_shards: Path) -> None:
    assert verify_shards(photo_shards)["samples"] == 14


def test_training_and_evaluation_batches_at_full_size(
    photo_shards: Path, run_config: Callable[..., RunConfig], tokenizer: WordTokenizer
) -> None:
    config = run_config(global_batch_size=8, shards=str(photo_shards), workers=2)
    config.backbone.vision.image_size = 224
    batches = list(loader.train_loader(config, tokenizer, 1, 0, epoch=0))
    assert len(batches) == 2
    for batch in batches:
        assert batch["image"].shape == (8, 3, 224, 224)
        assert torch.isfinite(batch["image"]).all() and batch["image"].abs().max() < 3
        assert batch["image"].flatten(1).std(1).min() > 0.2, "photographs are not flat"
    images = list(loader.eval_image_loader(config, "test", None, 1, 0, 4))
    texts = loader.eval_texts(config, "test", tokenizer)
    assert sum(len(batch["keys"]) for batch in images) == texts["media"] == 6
    assert "the face of a ginger tabby cat with green eyes" in texts["captions"]
