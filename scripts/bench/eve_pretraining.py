"""What masked pre-training teaches a small EVE in the toy world: from random weights, STEPS steps on pictures with
captions of the source domain, by the product's own training; then the frozen trunk against the same one untrained,
judged by `pretraining_judge.py` on pictures of another world.

    python scripts/bench/eve_pretraining.py [--seeds 3] [--steps 2200] [--at-once 1] [--folder DIR]

Each run is a process of its own with one thread. A seed decides initial values, the order of samples, what is hidden;
data are the same. Runs that DIR has are judged, not made again. Processor seconds are of the pre-training alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measurement import (
    facts_line,
    fresh_process,
    machine_facts,
    markdown_table,
    processor_seconds,
    write_results,
)
from pretraining_judge import ASKED, FEW, JUDGED, Judge
from torch import nn

STEPS, BATCH, RATE = 2200, 32, 3e-3
EMBEDDED = 0.5  # deviation of embeddings of positions, kinds and hidden patches
TAUGHT = 11  # seed of the world of training
PICTURES = 4000
MADE = "made.json"  # of a finished run: its recipe, metrics and processor seconds
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def recipe(folder: Path, seed: int, steps: int) -> Path:
    """Writes the recipe of a run, and the vocabulary."""
    import yaml

    from aurora_ds.quickstart.questions import language_vocabulary

    words = [*SPECIAL, *language_vocabulary()]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokens = {"vocab_size": len(words), "max_positions": 40, "dropout": 0.0}
    ids = {"pad_id": 0, "cls_id": 2, "sep_id": 3, "bos_id": 2, "enc_id": 2}
    eve = {"top_layers": [2], "moe": {"experts": 4}, "layer_scale": 1.0, "pixels": "as_they_are"}
    settings = {
        "task": "pretrain",
        "seed": seed,
        "backbone": {
            "checkpoint": str(folder / f"start-{seed}.safetensors"),
            "name": "eve",
            "head": "pretrain",
            "tokenizer": str(folder / "vocab.txt"),
            "vision": {"image_size": 60, "patch_size": 15, "width": 64, "depth": 3, "heads": 4},
            "text": tokens | ids,
            "eve": eve | {"mask_embedding": True, "decoder": {"width": 64, "depth": 0, "heads": 4}},
        },
        "pretrain": {"text_share": 0.4, "image_weight": 0.3, "max_tokens": 30},
        "data": {"shards": str(folder / "captions"), "workers": 0, "augment": "none"},
        "train": {
            **{"method": "full", "epochs": 1 + steps * BATCH // (3 * PICTURES), "max_steps": steps},
            **{"global_batch_size": BATCH, "lr": RATE, "warmup_steps": 40, "betas": [0.9, 0.98]},
            **{"clip_norm": 1.0, "weight_decay": 0.02, "save_every": 10**6},
        },
        "monitor": {"log_every": 50},
    }
    path = folder / f"pretrain-{seed}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def start(path: Path, seed: int) -> None:
    """Writes the random weights that a run begins with, with deviations that suit so small a width and so few steps:
    the published 0.02 would have to grow first, above all that of positions, which are added to normed words."""
    from safetensors.torch import save_file

    from aurora_ds.backbones.models import new_model
    from aurora_ds.backbones.published import to_published
    from aurora_ds.recipe import load_config

    config = load_config(str(path), ["backbone.checkpoint=null"])
    torch.manual_seed(seed)
    model = new_model(config.backbone)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    trunk = model.backbone
    nn.init.normal_(trunk.word_embedding.weight, std=config.backbone.vision.width**-0.5)
    for name in ("pos_embed_vision", "pos_embed_text", "type_embed_vision", "type_embed_text"):
        nn.init.normal_(getattr(trunk, name), std=EMBEDDED)
    for name in ("class_embedding_vision", "mask_embed_vision"):
        nn.init.normal_(getattr(trunk, name), std=EMBEDDED)
    save_file(to_published(model), path.with_name(f"start-{seed}.safetensors"))


def prepare(folder: Path) -> None:
    """Shards of pictures with captions, unless they are there."""
    from aurora_ds.data.convert import convert
    from aurora_ds.quickstart import world

    if not (folder / "captions" / "manifest.json").is_file():
        world.write(folder / "raw", "source", TAUGHT, {"train": PICTURES, "val": 4, "test": JUDGED})
        convert("folder", folder / "raw", folder / "captions")


def pretrained(folder: Path, seed: int, steps: int) -> tuple[str, dict[str, Any]]:
    """The recipe of a run, and what is known of it. A run that `folder` has is not made again.

    Raises SystemExit where that one was made in another way."""
    from aurora_ds import train
    from aurora_ds.recipe import fingerprint, load_config

    path, output = str(recipe(folder, seed, steps)), folder / f"run-{seed}"
    config = load_config(path)
    if not (output / MADE).is_file():
        start(Path(path), seed)
        before = processor_seconds()
        metrics = train.run(config, output)["metrics"]
        spent = round(processor_seconds() - before, 1)
        known = {"recipe": fingerprint(config), "metrics": metrics, "processor_seconds": spent}
        (output / MADE).write_text(json.dumps(known))
    known = json.loads((output / MADE).read_text())
    if known.pop("recipe") != fingerprint(config):
        raise SystemExit(f"{output} was made with other settings: choose another --folder")
    return path, known | {"steps": steps}


def run(folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """One seed, in this process: figures of the untrained and of the pre-trained trunk."""
    from aurora_ds.assemble import build_task
    from aurora_ds.recipe import load_config

    path, made = pretrained(folder, seed, steps)
    weights = folder / f"run-{seed}" / "adapter" / "backbone.safetensors"
    bare, trained = (
        build_task(load_config(path, settings)) for settings in ([], [f"backbone.checkpoint={weights}"])
    )
    judge = Judge(bare.tokenizer, load_config(path).pretrain.max_tokens)
    return {"untrained": judge(bare.task), "pre-trained": judge(trained.task)} | made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--at-once", type=int, default=1, help="seeds that run at the same time")
    parser.add_argument(
        "--folder", type=Path, help="for data and runs; default: one that is removed afterwards"
    )
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(run(arguments.folder, arguments.one, arguments.steps)), flush=True)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder)
        options = ["--folder", str(folder), "--steps", str(arguments.steps), "--one"]
        with ThreadPoolExecutor(arguments.at_once) as pool:
            runs = list(
                pool.map(
                    lambda seed: fresh_process(Path(__file__).name, [*options, str(seed)], 1),
                    range(arguments.seeds),
                )
            )
        report({"facts": machine_facts(1), "runs": runs}, quick=arguments.steps < STEPS)


def report(record: dict[str, Any], quick: bool) -> None:
    """Tables of all seeds."""
    runs = record["runs"]

    def table(of: str, names: list[str]) -> str:
        rows = [
            [way, *(_spread([run[way][of][name] for run in runs]) for name in names)]
            for way in ("untrained", "pre-trained")
        ]
        return markdown_table(["trunk", *names], rows)

    kinds = {"zero-shot": ("all", "place", "colour", "thing", "number", "row")}
    kinds |= {f"{FEW} pictures": ("all", "place", "colour")}
    kinds |= {f"{ASKED['train']} pictures": ("all", "place", "colour")}
    asked = [f"{how}, {kind}" for how, some in kinds.items() for kind in some]
    ranks = list(runs[0]["untrained"]["retrieval"])
    judged = {
        "words right %": "text_accuracy",
        "perplexity": "perplexity",
        "pixels explained %": "image_explained",
    }
    hidden = [_spread([run["metrics"][name] for run in runs]) for name in judged.values()]
    text = (
        f"# Masked pre-training in the toy world\n\nFrom random weights, {runs[0]['steps']} steps of {BATCH} pairs of "
        f"{PICTURES:,} pictures, {_spread([run['processor_seconds'] for run in runs])} processor seconds. {len(runs)} "
        "seeds: mean (least to most), percent. Judged on pictures of another world than those of training and of the "
        f"choice of settings.\n\nRetrieval among {JUDGED} pictures with a caption each, zero-shot; `image`: pictures "
        f"for a caption, `text`: captions for a picture.\n\n{table('retrieval', ranks)}"
        "\n\nQuestions, put as captions with a hidden word where the answer belongs. zero-shot: the likeliest word of "
        "those that answer such a question, nothing else taught (yes and no left out); so many pictures: a linear "
        "layer on the frozen trunk's state of the hidden word, taught with questions about so many pictures.\n\n"
        f"{table('questions', asked)}\n\nWhat is hidden of the test split:\n\n"
        f"{markdown_table(list(judged), [hidden])}\n\n{facts_line(record['facts'])}\n"
    )
    write_results("eve_pretraining", record, text, quick)


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
