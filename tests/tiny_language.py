"""Answering, captioning and image-pair tasks small enough to build in a moment, and batches for them."""

from __future__ import annotations

import torch
from tiny_retrieval import BOS, CLS, SEP, awaken, tiny_backbone, tiny_batch
from torch import Tensor

from aurora_ds.backbones.models import new_model
from aurora_ds.config import CaptionConfig, PromptConfig, VqaConfig
from aurora_ds.prompts import attach
from aurora_ds.tasks.caption import CaptionTask
from aurora_ds.tasks.nlvr import NlvrTask
from aurora_ds.tasks.vqa import VqaTask

PROMPT = torch.tensor([CLS, 7, 8, SEP])


def tiny(head: str, preset: str | None = "aurora", options=None):
    """A task in evaluation; with a preset its prompts are attached and awake."""
    torch.manual_seed(1)
    backbone = tiny_backbone(head=head)
    model, prompts = new_model(backbone), None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    if preset:
        config = PromptConfig(preset=preset, rank=4, dropout=0.0)
        prompts = attach(model, model.sites(), config, model.query_layers(), model.heads())
        awaken(prompts.bank)
        prompts.enable()
    if head == "vqa":
        task = VqaTask(model, prompts, options or VqaConfig(), backbone.text)
    elif head == "caption":
        task = CaptionTask(model, prompts, options or CaptionConfig(), backbone.text, PROMPT)
    else:
        task = NlvrTask(model, prompts, backbone.text)
    return task.eval()


def texts(rows: int, longest: int, seed: int) -> tuple[Tensor, Tensor]:
    """ids and mask of texts of two to `longest` words between first and end token; the first text is the longest."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, longest + 1, (rows,), generator=generator)
    lengths[0] = longest
    ids = torch.randint(3, BOS, (rows, longest), generator=generator)
    ids[:, 0] = CLS
    ids[torch.arange(rows), lengths - 1] = SEP
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return ids * mask, mask


def asked(answers: tuple[int, ...] = (2, 1, 3), seed: int = 0, frames: int = 0) -> dict[str, Tensor]:
    """A batch of questions with so many answers each."""
    batch = tiny_batch(len(answers), seed=seed, frames=frames)
    ids, mask = texts(sum(answers), 5, seed)
    return batch | {
        "answer_ids": ids,
        "answer_mask": mask,
        "answer_question": torch.arange(len(answers)).repeat_interleave(torch.tensor(answers)),
        "answer_weights": torch.rand(sum(answers), generator=torch.Generator().manual_seed(seed)),
    }


def captions() -> dict[str, Tensor]:
    batch = tiny_batch(3)
    batch["input_ids"][:, 1:3] = PROMPT[1:3]
    return batch


def pairs() -> dict[str, Tensor]:
    return tiny_batch(4, frames=2) | {"label": torch.tensor([1, 0, 1, 0])}
