"""Drawn pictures, their annotation lists and manifests, and a tokenizer that needs no vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aurora_ds.data.convert import load_recipe
from aurora_ds.data.convert.progress import Counter
from aurora_ds.data.convert.recipe import RECIPE_FOLDERS
from aurora_ds.data.convert.sources import find_annotations
from aurora_ds.data.convert.spool import Spool, SpooledMedium, open_spool
from aurora_ds.data.manifest import Manifest, ShardEntry, SplitEntry

TRAIN_IMAGES, TEST_IMAGES = 45, 11
PHOTOS = Path(__file__).parent / "photos"


class WordTokenizer:
    """Words by length: [CLS] 101, 1000 + length of each word, [SEP] 102, padded with 0 to the longest text."""

    def encode(
        self, texts: list[str], max_tokens: int, single: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [
            [101, *(1000 + len(word) for word in text.split())][: max_tokens - 1] + [102] for text in texts
        ]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return ids, (ids != 0).long()


def draw(path: Path, number: int, size: tuple[int, int] = (40, 32)) -> None:
    """A picture whose pixels tell `number`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
    image.save(path, quality=90) if path.suffix == ".jpg" else image.save(path)


def write_source(folder: Path, images: int = TRAIN_IMAGES, tests: int = TEST_IMAGES) -> Path:
    """annotations.json and images/: image n has 1 + n % 3 captions, every fifth image is a PNG."""
    entries = []
    for split, total in (("train", images), ("test", tests)):
        for number in range(total):
            name = f"{split}/{number:03d}.{'png' if number % 5 == 4 else 'jpg'}"
            draw(folder / "images" / name, number + 1000 * (split == "test"))
            captions = [
                f"{split} picture {number} told in {'many ' * which}words." for which in range(1 + number % 3)
            ]
            entries.append({"image": name, "caption": captions, "split": split})
    (folder / "annotations.json").write_text(json.dumps(entries))
    return folder


def write_recipe(path: Path, samples_per_shard: int = 7) -> Path:
    """The folder recipe with small shards."""
    text = (RECIPE_FOLDERS[0] / "folder.yaml").read_text()
    path.write_text(text.replace("samples_per_shard: 500", f"samples_per_shard: {samples_per_shard}"))
    return path


def written_manifest(counts: list[list[int]]) -> Manifest:
    """A manifest of split `train` without files: captions of each medium, shard by shard."""
    shards = [
        ShardEntry(
            file=f"train-{number:06d}.tar",
            samples=len(each),
            pairs=sum(each),
            bytes=len(each),
            sha256=f"{number:064d}",
            counts={"captions": sum(each)},
        )
        for number, each in enumerate(counts)
    ]
    arrays = {
        "train/offsets": np.concatenate([np.arange(len(each) + 1) for each in counts]).astype(np.int64),
        "train/counts/captions": np.concatenate([np.asarray(each, dtype=np.int32) for each in counts]),
        **{f"train/{name}": np.zeros(sum(map(len, counts)), np.uint32) for name in ("crc32", "crc32/record")},
    }
    splits = {"train": SplitEntry.of(shards)}
    return Manifest(schema=1, dataset="written", splits=splits).with_arrays(arrays)


def spooled(recipe: str, source: Path) -> tuple[dict[str, list[SpooledMedium]], Spool]:
    """All media of a recipe by split, as its family reads them from `source`, without looking for media files."""
    annotations = find_annotations(load_recipe(recipe), source)
    spool = open_spool(source / "spool.sqlite", "", annotations.read(), None, Counter("", None, None))
    return {split: spool.media(split, 0, total) for split, total in spool.splits.items()}, spool
