"""Small runs of question answering: a vocabulary of its own, a two-layer backbone in a file, shards of questions."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_retrieval import BOS, tiny_backbone

from aurora_ds.assemble import Assembled, build_task
from aurora_ds.backbones.models import new_model
from aurora_ds.backbones.published import to_published
from aurora_ds.config import PromptConfig, RunConfig, VqaConfig
from aurora_ds.data.manifest import Manifest
from aurora_ds.evaluate import task_forward
from aurora_ds.wiring.base import Evaluation

sys.path.append(str(Path(__file__).parents[1] / "data"))
from written_shards import clip_sample, image_sample, write_shards

WORDS = (
    "what which who how many colour is are the it there on in of a red green blue black white yes no one two three "
    "four dog cat boat tree grass water man woman left right big small to ? ."
).split()
ANSWERS = [
    "yes",
    "no",
    "red",
    "green",
    "blue",
    "one",
    "two",
    "a big dog",
    "a cat on the grass",
    "the water",
    "man",
]


def question(number: int, text: str, answers: Sequence[str] = (), **fields: Any) -> dict[str, Any]:
    """As records have it: each answer with its share of those who answered."""
    shares = {answer: list(answers).count(answer) / len(answers) for answer in answers}
    listed = [{"answer": answer, "weight": share} for answer, share in shares.items()]
    return {"question": text, "question_id": number, "answers": listed, **fields}


def image_questions(number: int) -> list[dict[str, Any]]:
    """1 to 3 questions about image `number`, each answered by ten people."""
    asked = []
    for place in range(1 + number % 3):
        text = ["What colour is the dog?", "How many are there", "Is it on the water, or in the grass?"][
            place
        ]
        kind = ["other", "number", "yes/no"][place]
        chosen = ANSWERS[(number + 3 * place) % len(ANSWERS)]
        second = ANSWERS[(number + 3 * place + 1) % len(ANSWERS)]
        given = [chosen] * (6 + number % 3) + [second] * (4 - number % 3)
        asked.append(
            question(100 * number + place, text, given, question_type=text.split()[0], answer_type=kind)
        )
    return asked


def image_shards(folder: Path, train: int = 8, test: int = 7, **splits: Any) -> Manifest:
    """Images in two shards a split, with ten answers a question, and the list of answers beside them."""
    written = {
        name: [
            [image_sample(n + 1, dataset="vqa", questions=image_questions(n)) for n in part]
            for part in (range(first, first + count // 2), range(first + count // 2, first + count))
        ]
        for name, first, count in (("train", 0, train), ("test", 50, test))
    }
    return write_shards(folder, written | splits, files=answer_file(folder))


def clip_shards(folder: Path) -> Manifest:
    """Clips with one answer a question."""
    texts = ("what is on the grass", "who is there", "how many are there")

    def clip(number: int) -> Any:
        listed = [
            question(10 * number + place, text, [ANSWERS[(number + place) % 8]])
            for place, text in enumerate(texts[: 1 + number % 3])
        ]
        return clip_sample(number, questions=listed)

    splits = {"train": [[clip(n) for n in range(4)]], "test": [[clip(n) for n in range(4, 9)]]}
    return write_shards(folder, splits, files=answer_file(folder))


def answer_file(folder: Path, answers: Sequence[str] = ANSWERS) -> dict[str, str]:
    """Writes the list; its name and sha256, as a manifest lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(answers).encode()
    (folder / "answer_list.json").write_bytes(content)
    return {"answer_list.json": hashlib.sha256(content).hexdigest()}


def backbone(folder: Path) -> dict[str, Any]:
    """The settings of a backbone whose weights tell its inputs apart, and its vocabulary beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join([*words, *(f"[{n}]" for n in range(BOS - len(words)))]))
    config = tiny_backbone(head="vqa")
    torch.manual_seed(4)
    model = new_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    save_file(to_published(model), folder / "tiny.safetensors")
    return config.model_dump() | {"checkpoint": str(folder / "tiny.safetensors")}


def run_config(backbone: dict[str, Any], shards: Path | None, vqa: dict[str, Any] | None = None) -> RunConfig:
    """A few steps without augmentation; blocks of two images, chunks of three questions."""
    return RunConfig(
        task="vqa",
        backbone=backbone,
        prompts=PromptConfig(rank=4, dropout=0.0),
        vqa=VqaConfig(**{"max_tokens": 12, "k_test": 5} | (vqa or {})),
        data={
            "shards": None if shards is None else str(shards),
            "workers": 0,
            "augment": "none",
            "video": {"frames": 3},
        },
        train={"epochs": 1, "global_batch_size": 4, "lr": 1e-2, "max_steps": 3},
        evaluate={"image_batch_size": 2, "text_batch_size": 3},
        monitor={"log_every": 1},
    )


GENERATE = {"inference": "generate", "generation": {"max_length": 6, "min_length": 1, "beams": 2}}


def judged(config: RunConfig) -> tuple[Assembled, Evaluation]:
    """A fresh task over random weights and its evaluation, all in this process."""
    assembled = build_task(config)
    assembled.task.eval()
    if assembled.task.prompts is not None:
        assembled.task.prompts.disable()
    return assembled, assembled.wiring.evaluate(task_forward(assembled), assembled.tokenizer)
