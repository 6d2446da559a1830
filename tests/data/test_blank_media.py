"""data.media=blank: zeros in the place of every medium, and nothing else changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from written_shards import (
    Written,
    clip_sample,
    image_sample,
    pair_sample,
    picture,
    write_all_kinds,
    write_shards,
)

from aurora_ds.config import RunConfig
from aurora_ds.data import loader, media
from aurora_ds.data.image import MEAN, to_tensor
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import ShardReader

Configs = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One split per kind of sample."""
    folder = tmp_path_factory.mktemp("kinds")
    write_all_kinds(folder)
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_training_differs_in_nothing_but_its_pixels(run_config: Configs, tokenizer, workers: int) -> None:
    seen = list(loader.train_loader(run_config(), tokenizer, 2, 1, 1))
    blank = list(loader.train_loader(run_config(media="blank", workers=workers), tokenizer, 2, 1, 1))
    assert len(seen) == len(blank) == 5
    for ours, theirs in zip(blank, seen, strict=True):
        assert torch.equal(ours["image"], torch.zeros_like(theirs["image"])) and theirs["image"].any()
        for name in ("input_ids", "attention_mask", "media_index", "sample_index"):
            assert torch.equal(ours[name], theirs[name])
        assert ours["keys"] == theirs["keys"] and ours.keys() == theirs.keys()


@pytest.mark.parametrize("split", ["captions", "pairs", "clips", "frames"])
def test_every_kind_of_medium_keeps_its_shape(run_config: Configs, kinds: Path, split: str) -> None:
    def batch(which: str) -> dict:
        config = run_config(shards=str(kinds), media=which)
        config.data.video.frames = 3
        (found,) = loader.eval_image_loader(config, split, None, 1, 0, 8)
        assert media.medium_shape(config, Manifest.load(kinds), split) == found["image"].shape[1:]
        return found

    seen, blank = batch("seen"), batch("blank")
    assert torch.equal(blank["image"], torch.zeros_like(seen["image"])) and blank["keys"] == seen["keys"]
    assert torch.equal(blank["media_index"], seen["media_index"])


def test_nothing_is_decoded_or_read_but_the_records(
    run_config: Configs, tokenizer, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("open_image", "sample_clip"):
        monkeypatch.setattr(media, name, None)
    monkeypatch.setattr(ShardReader, "read", None)
    batches = list(loader.train_loader(run_config(media="blank"), tokenizer, 1, 0, 0))
    assert sum(len(batch["keys"]) for batch in batches) == 80


def test_a_record_that_does_not_say_its_kind_goes_by_its_members(run_config: Configs, tmp_path: Path) -> None:
    clip = clip_sample(0)
    old = Written(clip.key, {name: clip.record[name] for name in ("captions", "width", "height")}, clip.media)
    three = pair_sample(3)
    three = Written(three.key, {"kind": "images"}, [*three.media, ("2.jpg", picture(9))])
    manifest = write_shards(tmp_path, {"image": [[image_sample(0)]], "clip": [[old]], "three": [[three]]})
    config = run_config(shards=str(tmp_path), media="blank")
    shapes = [media.medium_shape(config, manifest, split) for split in ("image", "clip", "three")]
    assert shapes == [(3, 16, 16), (8, 3, 16, 16), (3, 3, 16, 16)]


def test_zero_is_the_mean_colour() -> None:
    mean = torch.tensor(MEAN).mul(255).round().to(torch.uint8).expand(4, 4, 3).numpy()
    assert to_tensor(mean).abs().max() < 0.01
