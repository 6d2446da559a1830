"""Small runs of captioning: drawn images and clips with captions in shards, and recipes over them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tiny_runs import recipe

sys.path.append(str(Path(__file__).parents[1] / "data"))
from written_shards import clip_sample, image_sample, write_shards

THINGS = ("a red ball", "two boxes", "a green star", "a blue cup on the grass", "an orange fish")
TEST = 7  # images to judge, in blocks of two
GENERATION = {"max_length": 12, "min_length": 5}


def captions_of(number: int) -> list[str]:
    """Two or three captions of image `number`, in which the same things come again and again."""
    thing, other = THINGS[number % 5], THINGS[(number * 3 + 1) % 5]
    told = [
        f"{thing} and {other} in the snow",
        f"There is {thing}, to the left of {other}.",
        f"we find {thing}",
    ]
    return told[: 2 + number % 2]


def image(number: int, **record: Any) -> Any:
    """An image whose dataset calls it 1000 + number."""
    return image_sample(number, **{"captions": captions_of(number), "image_id": 1000 + number, **record})


def image_shards(folder: Path) -> Path:
    """Splits: train and test; bare, without captions; blank, with an empty one; twice, with one name for two images;
    domains, as nocaps."""
    named = ["in-domain", "near-domain", "in-domain"]
    splits = {
        "train": [[image(n) for n in range(6)], [image(n) for n in range(6, 12)]],
        "test": [[image(n) for n in range(20, 24)], [image(n) for n in range(24, 20 + TEST)]],
        "bare": [[image(n, captions=[]) for n in range(30, 33)]],
        "blank": [[image(n, captions=["a red ball", " . "]) for n in range(40, 44)]],
        "twice": [[image(50), image(51, image_id=1050)]],
        "domains": [[image(60 + n, domain=domain) for n, domain in enumerate(named)]],
    }
    write_shards(folder, splits)
    return folder


def clip_shards(folder: Path) -> Path:
    """Clips to train and to judge on, called by name."""

    def clip(number: int) -> Any:
        return clip_sample(number, captions=captions_of(number), video_id=f"clip{number}")

    write_shards(folder, {"train": [[clip(n) for n in range(4)]], "test": [[clip(n) for n in range(4, 7)]]})
    return folder


def image_recipe(folder: Path, shards: Path, **caption: Any) -> Path:
    """A few steps without augmentation or dropout; `caption` adds to its section."""
    settings = {"generation": GENERATION, "max_tokens": 20, **caption}
    data = {"augment": "none", "video": {"frames": 3}}
    text = {"prompts": {"dropout": 0.0}, "evaluate": {"image_batch_size": 2, "java": False}}
    return recipe(folder, "caption", shards, caption=settings, data=data, **text)


def read(path: Path) -> Any:
    return json.loads(path.read_text())
