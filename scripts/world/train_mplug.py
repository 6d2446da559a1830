"""Makes a small mPLUG that points: trained in full, from random weights, on phrases with boxes of the toy world's
source domain, by the product's own training.

    python scripts/world/train_mplug.py --output FOLDER [--pictures 6000] [--epochs 6] [--seed 7]

Writes backbone.safetensors (published key names), backbone.json (sizes and tokens, as in the `backbone` and `grounding`
sections of a recipe), vocab.txt and training.json with the accuracy on both domains' test splits. It was run in small
only: there are no figures of the full size yet.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from train_backbone import SPECIAL

from aurora_ds import evaluate, train
from aurora_ds.data.convert import convert
from aurora_ds.quickstart import pointing
from aurora_ds.quickstart.questions import language_vocabulary
from aurora_ds.recipe import load_config

BINS = 60  # one for each pixel of a side
PHRASES = 4  # of each picture


def sections(vocabulary: list[str]) -> dict[str, Any]:
    """The sections of a recipe that say what the model is."""
    first = len(vocabulary) - BINS - 2
    vision = {"image_size": 60, "patch_size": 10, "width": 96, "depth": 4, "heads": 4}
    text = {
        **{"vocab_size": len(vocabulary), "width": 96, "depth": 4, "heads": 4, "intermediate": 384},
        **{"max_positions": 40, "dropout": 0.0, "attention_dropout": 0.0},
        **{"cls_id": 2, "sep_id": 3, "bos_id": 2, "enc_id": 2},
    }
    layers = {"text_layers": 2, "fusion_layers": 4, "decoder_layers": 2, "stride": 2}
    mplug = layers | {"vision_attention_dropout": 0.0}
    return {
        "backbone": {"name": "mplug", "head": "grounding", "vision": vision, "text": text, "mplug": mplug},
        "grounding": {"bins": BINS, "prefix_id": first, "first_bin_id": first + 1},
    }


def shards(folder: Path, domain: str, seed: int, counts: dict[str, int]) -> Path:
    """Phrases with boxes of a domain, unless they are there."""
    raw, made = folder / f"raw_{domain}", folder / domain
    if not raw.is_dir():
        pointing.write(raw, domain, seed, counts, PHRASES)
    convert("phrases", raw, made)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    started, output = time.time(), arguments.output
    output.mkdir(parents=True, exist_ok=True)
    vocabulary = [*SPECIAL, *language_vocabulary(), *(f"[unused{number}]" for number in range(BINS + 2))]
    (output / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    described = sections(vocabulary)
    (output / "backbone.json").write_text(json.dumps(described, indent=2) + "\n")

    work = output / "work"
    source = shards(work, "source", arguments.seed, {"train": arguments.pictures, "test": 200})
    target = shards(work, "target", arguments.seed, {"test": 200})
    recipe = work / "recipe.yaml"
    settings = {
        "task": "grounding",
        "seed": arguments.seed,
        **described,
        "data": {"shards": str(source), "workers": 1, "augment": "none"},
        "train": {
            **{"method": "full", "epochs": arguments.epochs, "global_batch_size": arguments.batch},
            **{"lr": arguments.rate, "warmup_steps": 150, "clip_norm": 1.0, "weight_decay": 0.02},
        },
    }
    settings["backbone"] = described["backbone"] | {"tokenizer": str(output / "vocab.txt")}
    recipe.write_text(yaml.safe_dump(settings))
    train.run(load_config(str(recipe), []), work / "run")
    shutil.copyfile(work / "run" / "adapter" / "backbone.safetensors", output / "backbone.safetensors")

    figures = {}
    for domain, place in (("source", source), ("target", target)):
        trained = [f"backbone.checkpoint={output / 'backbone.safetensors'}", f"data.shards={place}"]
        record = evaluate.run(load_config(str(recipe), trained), None, work / f"judged_{domain}")
        figures[domain] = record["metrics"]
    made = {name: getattr(arguments, name) for name in ("pictures", "epochs", "batch", "rate", "seed")}
    made |= {"seconds": round(time.time() - started), "torch": torch.__version__}
    (output / "training.json").write_text(json.dumps({"made": made, "found": figures}, indent=2) + "\n")
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
