"""Runs of the language tasks in small: drawn media with annotations in shards, a two-layer backbone with random
weights, and recipes over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

# of questions and answers; what captions and statements are made of is in the toy world's vocabulary
WORDS = "yes no across down which what how many does do is it goes go still thing colour of where who".split()
VOCABULARY = Path(__file__).parents[1] / "aurora_ds" / "quickstart" / "assets" / "vocab.txt"
SENTENCES = (
    "the left photo has a red dog",
    "both photos have a small boat",
    "in one photo we find a green tree",
)


def draw(path: Path, number: int) -> None:
    """A small picture of coloured blocks that tells its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((48, 36), Image.Resampling.NEAREST).save(path)


def pair_rows(split: str, pairs: int) -> list[dict[str, Any]]:
    """Statements as `shards convert pairs` takes them: two pairs a set, each with the set's two or three sentences."""
    rows = []
    for pair in range(pairs):
        group, inside = divmod(pair, 2)
        for number in range(2 + group % 2):
            rows.append(
                {
                    "images": [f"{split}/{pair:02d}-{side}.png" for side in (0, 1)],
                    "sentence": SENTENCES[(group + number) % len(SENTENCES)],
                    "label": str((pair * 5 + number * 3) % 4 < 2),
                    "identifier": f"{split}-{group}-{inside}-{number}",
                }
            )
    return rows


def write_pairs(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> Path:
    """The raw folder of pairs: their pictures and a list for each split."""
    for split, listed in rows.items():
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for name in {name for row in listed for name in row["images"]}:
            draw(folder / "images" / name, sum(map(ord, name)) * 7 + len(split))
        (folder / f"{split}.json").write_text(json.dumps(listed))
    return folder


def pair_shards(folder: Path, train: int = 12, test: int = 7) -> Path:
    """Shards of so many pairs."""
    from aurora_ds.data.convert import convert

    rows = {split: pair_rows(split, count) for split, count in (("train", train), ("test", test))}
    convert("pairs", write_pairs(folder / "raw", rows), folder / "shards")
    return folder / "shards"


def entailment_shards(folder: Path) -> Path:
    """Shards of photos with statements that they entail, contradict, or neither, as of SNLI-VE."""
    from aurora_ds.data.convert import convert

    raw, labels = folder / "raw", ("entailment", "neutral", "contradiction")
    for split, count in (("train", 12), ("dev", 3), ("test", 5)):
        rows = []
        for number in range(count):
            name = f"{len(split)}{number:03d}"
            draw(raw / "flickr30k-images" / f"{name}.jpg", number * 5 + len(split))
            rows += [
                {"image": name, "sentence": sentence, "label": labels[(number + place) % 3]}
                for place, sentence in enumerate(SENTENCES[: 1 + number % 3])
            ]
        (raw / f"ve_{split}.json").write_text(json.dumps(rows))
    convert("snli_ve", raw, folder / "shards")
    return folder / "shards"


FAMILIES = {  # beside what `backbone` sets: tokens after the vocabulary, settings
    "blip": (2, {}),
    "eve": (0, {"eve": {"top_layers": [1], "moe": {"experts": 4}, "layer_scale": 0.5, "answers": 3}}),
    "mplug": (0, {"mplug": {"text_layers": 1, "fusion_layers": 2, "decoder_layers": 2, "stride": 1}}),
}


def backbone(head: str, folder: Path, depth: int = 2, name: str = "blip") -> dict[str, Any]:
    """The `backbone` section of a recipe: two layers a tower, random weights in a file, a vocabulary beside it."""
    import torch
    from safetensors.torch import save_file

    from aurora_ds.backbones.models import new_model
    from aurora_ds.backbones.published import to_published
    from aurora_ds.config import BackboneConfig

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = list(dict.fromkeys([*VOCABULARY.read_text().split(), *WORDS]))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    words = len(vocabulary)
    added, settings = FAMILIES[name]
    section = {
        "name": name,
        "head": head,
        **settings,
        "vision": {"image_size": 16, "patch_size": 8, "width": 32, "depth": depth, "heads": 2},
        "text": {
            "vocab_size": words + added,
            "width": 32,
            "depth": depth,
            "heads": 2,
            "intermediate": 48,
            "max_positions": 40,
            "pad_id": 0,
            "cls_id": 2,
            "sep_id": 3,
            "bos_id": words if added else 2,
            "enc_id": words + 1 if added else 2,
        },
    }
    if head == "pretrain":
        section["eve"] = settings["eve"] | {
            "mask_embedding": True,
            "decoder": {"width": 32, "depth": 1, "heads": 2},
        }
    torch.manual_seed(3)
    model = new_model(BackboneConfig.model_validate(section))
    with torch.no_grad():  # as it is born, every medium would be judged alike
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_file(to_published(model), folder / "tiny.safetensors")
    return section | {"checkpoint": str(folder / "tiny.safetensors")}


def recipe(folder: Path, head: str, shards: Path, name: str = "blip", **sections: dict[str, Any]) -> Path:
    """A recipe of a few steps; `name`: of the family of backbones; `sections` add to its sections."""
    settings = {
        "task": head,
        "backbone": backbone(head, folder / f"backbone-{head}", name=name),
        "prompts": {"rank": 4, "dropout": 0.1},
        head: {"max_tokens": 20},
        "data": {"shards": str(shards), "workers": 0, "randaugment": False},
        "train": {"epochs": 2, "global_batch_size": 4, "lr": 1e-2, "max_steps": 3, "save_every": 100},
        "evaluate": {"image_batch_size": 2, "text_batch_size": 3},
        "monitor": {"log_every": 1, "tensorboard": False, "gallery_queries": 0},
    }
    for section, values in sections.items():
        settings[section] = {**settings.get(section, {}), **values}
    path = folder / f"{head}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
