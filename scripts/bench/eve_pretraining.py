"""What masked pre-training teaches a small EVE in the toy world: from random weights, STEPS steps on pictures with
captions of the source domain, by the product's own training; then the frozen trunk against the same one untrained.

Pre-training has no contrast and no matching, so what fits is judged by what it does have. A caption's fit to a picture
is the log-likelihood of its words in that picture: every other word is hidden and guessed, then the others, so that
each counts once, half of the rest being seen, as in training. Pictures for a caption are ranked by that; captions for a
picture by that minus the logarithm of the caption's mean likelihood over all pictures of the test, since some captions
are likely whatever is seen. The probe: questions about other pictures of the domain, and a new linear layer on the
frozen trunk's state of a hidden word behind the question, where a masked model says what it thinks. The words of a
question alone already say something, so the untrained trunk's figure is the one to compare with.

    python scripts/bench/eve_pretraining.py [--seeds 3] [--steps 700] [--folder DIR]

Each run is a process of its own with one thread. A seed decides initial values, the order of samples, what is hidden;
data are the same. Processor seconds are of the pre-training alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
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
from torch import Tensor, nn
from torch.nn import functional as F

STEPS, BATCH, RATE = 700, 32, 3e-3
EMBEDDED = 0.5  # deviation of embeddings of positions, kinds and hidden patches
PICTURES, JUDGED = 2000, 100
ASKED = {"train": 500, "test": 200}  # pictures with three questions each
PROBE_STEPS, PROBE_RATE = 200, 5e-3
SHOWN_KINDS = ("place", "colour", "thing")
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
        world.write(folder / "raw", "source", 3, {"train": PICTURES, "val": 4, "test": JUDGED})
        convert("folder", folder / "raw", folder / "captions")


@torch.inference_mode()
def fit(task: nn.Module, images: Tensor, ids: Tensor) -> Tensor:
    """Log-likelihood (pictures, captions) of the words of captions, int64 (captions, L) with padding, in pictures."""
    scores = images.new_zeros(len(images), len(ids))
    for number, row in enumerate(ids):
        row = row[row != task.text.pad_id]
        words = torch.arange(1, len(row) - 1)
        for hidden in (words[0::2], words[1::2]):
            places = hidden.expand(len(images), -1)
            every = row.expand(len(images), -1)
            masked = every.scatter(1, places, task.mask_id)
            said, _ = task.model.guessed(images, masked, torch.ones_like(masked), places)
            chosen = said.log_softmax(-1).gather(2, every.gather(1, places)[..., None])
            scores[:, number] += chosen[..., 0].sum(1)
    return scores


def recall(scores: Tensor, at: int) -> float:
    """Share, in percent, of rows whose own column is among the `at` best."""
    return 100 * float(
        (scores.argsort(1, descending=True)[:, :at] == torch.arange(len(scores))[:, None])
        .any(1)
        .float()
        .mean()
    )


def retrieval(task: nn.Module, images: Tensor, ids: Tensor) -> dict[str, float]:
    """Recall both ways."""
    scores = fit(task, images, ids)
    ways = {"image": scores.t(), "text": scores - scores.logsumexp(0, keepdim=True)}
    return {
        f"{way} R@{at}": recall(found.contiguous(), at) for way, found in ways.items() for at in (1, 5, 10)
    }


@torch.inference_mode()
def features(task: nn.Module, images: Tensor, ids: Tensor, mask: Tensor, owner: Tensor) -> Tensor:
    """(questions, D): the state of a hidden word behind each question, which is read with its picture."""
    found = []
    for part in torch.arange(len(ids)).split(100):
        rows, last = torch.arange(len(part)), mask[part].sum(1) - 1
        asked = F.pad(ids[part], (0, 1), value=task.text.pad_id)
        asked[rows, last], asked[rows, last + 1] = task.mask_id, task.text.sep_id
        tokens = task.model.image_tokens(images[owner[part]])
        seen = (asked != task.text.pad_id).long()
        one = task.model.backbone(image_tokens=tokens, input_ids=asked, attention_mask=seen)
        found.append(one.states[rows, one.vision_tokens + last])
    return torch.cat(found)


def probe(task: nn.Module, asked: dict[str, tuple[Any, ...]], answers: int) -> dict[str, float]:
    """Percent of test questions that a linear layer on the frozen trunk answers right, of all and of some kinds."""
    taught, judged = ({"x": features(task, *given[:4]).clone(), "y": given[4]} for given in asked.values())
    mean, deviation = taught["x"].mean(0), taught["x"].std(0) + 1e-6
    torch.manual_seed(0)
    width = taught["x"].shape[1]
    head = nn.Linear(width, answers)
    optimizer = torch.optim.AdamW(head.parameters(), lr=PROBE_RATE, weight_decay=0.1)
    for _ in range(PROBE_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(head((taught["x"] - mean) / deviation), taught["y"]).backward()
        optimizer.step()
    with torch.no_grad():
        said = head((judged["x"] - mean) / deviation).argmax(1)
    right, kinds = (said == judged["y"]).float(), asked["test"][5]
    found = {"probe": 100 * float(right.mean())}
    for kind in SHOWN_KINDS:
        found[f"probe, {kind}"] = 100 * float(right[[each == kind for each in kinds]].mean())
    return found


def questions(tokenizer: Any, config: Any) -> tuple[dict[str, tuple[Any, ...]], int]:
    """Of both splits (pictures, ids, mask, owner, answer, kind), and how many answers there are."""
    from aurora_ds.quickstart.questions import answer_list, sample_questions

    listed, found = answer_list(), {}
    for split, number in ASKED.items():
        drawn = sample_questions("source", split, number, 3, seed=1)
        rows = [(owner, question) for owner, (_, asked) in enumerate(drawn) for question in asked]
        ids, mask = tokenizer.encode([question.words for _, question in rows], config.pretrain.max_tokens)
        pictures = seen([scene for scene, _ in drawn])
        owners = torch.tensor([owner for owner, _ in rows])
        answers = torch.tensor([listed.index(question.truth) for _, question in rows])
        kinds = [question.kind for _, question in rows]
        found[split] = (pictures, ids, mask, owners, answers, kinds)
    return found, len(listed)


def seen(scenes: list[Any]) -> Tensor:
    """Pictures of scenes as a loader gives them, float32 (n, 3, S, S)."""
    from aurora_ds.data.image import write_test
    from aurora_ds.quickstart.render import SIDE, render
    from aurora_ds.quickstart.world import DOMAINS

    planes = np.empty((len(scenes), 3, SIDE, SIDE), np.float32)
    for scene, out in zip(scenes, planes, strict=True):
        write_test(render(scene, DOMAINS["source"].look), out)
    return torch.from_numpy(planes)


def judge(task: nn.Module, tokenizer: Any, config: Any) -> dict[str, float]:
    """Retrieval and probe of a trunk as it is."""
    from aurora_ds.quickstart.world import sample_split

    task.eval()
    pictures = sample_split("source", "test", JUDGED, 3, 3)
    ids, _ = tokenizer.encode([each.captions[0] for each in pictures], config.pretrain.max_tokens)
    found = retrieval(task, seen([each.scene for each in pictures]), ids)
    return found | probe(task, *questions(tokenizer, config))


def run(folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """One seed, in this process: figures of the untrained and of the pre-trained trunk."""
    from aurora_ds import train
    from aurora_ds.assemble import build_task
    from aurora_ds.recipe import load_config

    written, output = recipe(folder, seed, steps), folder / f"run-{seed}"
    start(written, seed)
    path = str(written)
    config = load_config(path)
    bare = build_task(config)
    untrained = judge(bare.task, bare.tokenizer, config)
    before = processor_seconds()
    record = train.run(config, output)
    spent = processor_seconds() - before
    trained = build_task(
        load_config(path, [f"backbone.checkpoint={output / 'adapter' / 'backbone.safetensors'}"])
    )
    figures = {"untrained": untrained, "pre-trained": judge(trained.task, trained.tokenizer, config)}
    return figures | {"metrics": record["metrics"], "steps": steps, "processor_seconds": round(spent, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
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
        runs = []
        for seed in range(arguments.seeds):
            options = ["--folder", str(folder), "--steps", str(arguments.steps), "--one", str(seed)]
            runs.append(fresh_process(Path(__file__).name, options, 1))
            print(json.dumps(runs[-1]), flush=True)
        report({"facts": machine_facts(1), "runs": runs}, quick=arguments.steps < STEPS)


def report(record: dict[str, Any], quick: bool) -> None:
    """Tables of all seeds."""
    runs = record["runs"]
    rows = [
        [way, *(_spread([run[way][name] for run in runs]) for name in runs[0][way])]
        for way in ("untrained", "pre-trained")
    ]
    judged = {
        "words right %": "text_accuracy",
        "perplexity": "perplexity",
        "pixels explained %": "image_explained",
    }
    hidden = [_spread([run["metrics"][name] for run in runs]) for name in judged.values()]
    text = (
        f"# Masked pre-training in the toy world\n\nFrom random weights, {runs[0]['steps']} steps of {BATCH} pairs, "
        f"{_spread([run['processor_seconds'] for run in runs])} processor seconds. {len(runs)} seeds: mean (least to "
        f"most), percent. Retrieval among {JUDGED} pictures with a caption each, zero-shot; `image`: pictures for a "
        "caption, `text`: captions for a picture; `probe`: questions, all and of a kind, answered by a linear layer "
        "on the frozen trunk.\n\n"
        f"{markdown_table(['trunk', *runs[0]['untrained']], rows)}\n\nWhat is hidden of the test split:\n\n"
        f"{markdown_table(list(judged), [hidden])}\n\n{facts_line(record['facts'])}\n"
    )
    write_results("eve_pretraining", record, text, quick)


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
