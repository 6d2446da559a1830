"""Small runs of visual grounding: drawn images with boxes in shards, an mPLUG of a few layers with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from tiny_runs import VOCABULARY, draw

from aurora_ds.backbones.models import new_model
from aurora_ds.backbones.published import to_published
from aurora_ds.config import BackboneConfig
from aurora_ds.data.convert import convert

BINS = 24
PHRASES = ("the red ball", "the cube to the left of the ring", "thing of azure colour", "only fish")
SIZE = (48, 36)  # of the drawn images


def rows_of(split: str, images: int) -> list[dict[str, Any]]:
    """Two or three phrases about each image, as `shards convert phrases` takes them."""
    return [
        {
            "image": f"{split}/{image:02d}.png",
            "phrase": PHRASES[(image + number) % len(PHRASES)],
            "box": [3.0 + 4 * number + image, 2.5 + image, 12.0 + number, 9.0 + 2 * number],
        }
        for image in range(images)
        for number in range(2 + image % 2)
    ]


def write_raw(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> Path:
    """The raw folder: images of SIZE and a list for each split."""
    for split, listed in rows.items():
        for name in {row["image"] for row in listed}:
            draw(folder / "images" / name, sum(map(ord, name)) * 7)
        (folder / f"{split}.json").write_text(json.dumps(listed))
    return folder


def phrase_shards(folder: Path, rows: dict[str, list[dict[str, Any]]] | None = None) -> Path:
    """Shards of these rows, or of 8 images to train on and 5 to judge."""
    rows = rows or {"train": rows_of("train", 8), "test": rows_of("test", 5)}
    convert("phrases", write_raw(folder / "raw", rows), folder / "shards")
    return folder / "shards"


def backbone(folder: Path) -> dict[str, Any]:
    """The `backbone` section of a recipe: random weights in a file, a vocabulary with tokens of boxes beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    words = VOCABULARY.read_text().split()
    tokens = [f"[unused{number}]" for number in range(BINS + 2)]
    (folder / "vocab.txt").write_text("\n".join([*words, *tokens]) + "\n")
    section = {
        "name": "mplug",
        "head": "grounding",
        "vision": {"image_size": 32, "patch_size": 8, "width": 24, "depth": 2, "heads": 2},
        "text": {
            "vocab_size": len(words) + len(tokens) + 2,
            "width": 32,
            "depth": 4,
            "heads": 2,
            "intermediate": 48,
            "max_positions": 40,
            "cls_id": words.index("[CLS]"),
            "sep_id": words.index("[SEP]"),
            "bos_id": len(words) + len(tokens),
            "enc_id": len(words) + len(tokens) + 1,
        },
        "mplug": {"text_layers": 2, "fusion_layers": 4, "decoder_layers": 2, "stride": 2},
    }
    torch.manual_seed(3)
    model = new_model(BackboneConfig.model_validate(section))
    with torch.no_grad():  # as it is born, every phrase would get the same box
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    save_file(to_published(model), folder / "tiny.safetensors")
    return section | {"checkpoint": str(folder / "tiny.safetensors")}


def recipe(folder: Path, shards: Path, **sections: dict[str, Any]) -> Path:
    """A recipe of a few steps; `sections` add to its sections."""
    first = len(VOCABULARY.read_text().split())
    settings = {
        "task": "grounding",
        "backbone": backbone(folder / "backbone"),
        "prompts": {"rank": 4, "dropout": 0.1},
        "grounding": {"bins": BINS, "prefix_id": first, "first_bin_id": first + 1},
        "data": {"shards": str(shards), "workers": 0},
        "train": {"epochs": 2, "global_batch_size": 4, "lr": 1e-2, "max_steps": 3, "save_every": 100},
        "evaluate": {"image_batch_size": 2, "text_batch_size": 3},
        "monitor": {"log_every": 1, "tensorboard": False, "gallery_queries": 0},
    }
    for section, values in sections.items():
        settings[section] = {**settings.get(section, {}), **values}
    path = folder / "grounding.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
