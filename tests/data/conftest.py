"""A small dataset of drawn pictures and its shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from drawn_data import WordTokenizer, write_recipe, write_source

from aurora_ds.config import RunConfig
from aurora_ds.data.convert import convert
from aurora_ds.data.manifest import Manifest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A fresh raw dataset that the test may damage."""
    return write_source(tmp_path / "source", 12, 4)


@pytest.fixture
def small_recipe(tmp_path: Path) -> Path:
    """Recipe `folder` with 7 samples a shard."""
    return write_recipe(tmp_path / "small.yaml")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 train and 11 test images in shards of 7."""
    folder = tmp_path_factory.mktemp("dataset")
    write_source(folder / "source")
    convert(write_recipe(folder / "small.yaml"), folder / "source", folder / "shards")
    return folder / "shards"


@pytest.fixture(scope="session")
def manifest(shards: Path) -> Manifest:
    return Manifest.load(shards)


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer()


@pytest.fixture
def run_config(shards: Path) -> Callable[..., RunConfig]:
    """RunConfig over `shards` at 16 px, global batch 16, without worker processes; keywords go to `data`."""

    def make(global_batch_size: int = 16, accumulation: int = 1, **data: object) -> RunConfig:
        config = RunConfig()
        config.backbone.vision.image_size = 16
        config.train.global_batch_size, config.train.accumulation = global_batch_size, accumulation
        for name, value in {"shards": str(shards), "workers": 0, **data}.items():
            setattr(config.data, name, value)
        return config

    return make
