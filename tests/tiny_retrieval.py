"""A retrieval task small enough to build in a moment, and batches for it; shared by the tests of prompts and tasks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aurora_ds.assemble import Assembled, build_task
from aurora_ds.config import (
    BackboneConfig,
    PromptConfig,
    RetrievalConfig,
    RunConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
)

VOCABULARY, PAD, CLS, SEP, BOS, ENC = 60, 0, 1, 2, 58, 59


def tiny_backbone(
    vision_width: int = 32, text_width: int = 32, dropout: float = 0.0, **changes: Any
) -> BackboneConfig:
    """Two vision blocks on 16 px in patches of 8 (5 tokens), two text layers."""
    return BackboneConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=vision_width, depth=2, heads=2),
        text=TextConfig(
            vocab_size=VOCABULARY,
            width=text_width,
            depth=2,
            heads=2,
            intermediate=48,
            max_positions=16,
            dropout=dropout,
            attention_dropout=dropout,
            cls_id=CLS,
            sep_id=SEP,
            bos_id=BOS,
            enc_id=ENC,
        ),
        embed_dim=12,
        **changes,
    )


def tiny_config(
    preset: str = "aurora",
    prompts: dict[str, Any] | None = None,
    retrieval: dict[str, Any] | None = None,
    method: str = "aurora",
    **backbone: Any,
) -> RunConfig:
    """Rank 4, no dropout, a queue of 10; keywords go to `tiny_backbone`."""
    return RunConfig(
        backbone=tiny_backbone(**backbone),
        prompts=PromptConfig(**{"preset": preset, "rank": 4, "dropout": 0.0} | (prompts or {})),
        retrieval=RetrievalConfig(**{"queue_size": 10, "max_tokens": 9, "momentum": 0.9} | (retrieval or {})),
        train=TrainConfig(method=method),
    )


def awaken(parameters: Any, seed: int = 5, scale: float = 0.2) -> None:
    """Random values for every trained tensor but the heads: V is born zero and the gates nearly so, and then nothing
    in the prompts would show in an output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in parameters.named_parameters():
            if not name.endswith(("_weight", "_bias")):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def tiny_task(*arguments: Any, awake: bool = True, **keywords: Any) -> Assembled:
    """`tiny_config` built, in training mode, its prompts awake."""
    assembled = build_task(tiny_config(*arguments, **keywords))
    if awake and assembled.task.prompts is not None:
        awaken(assembled.task.prompts.bank)
        assembled.task.prompts.enable()
    assembled.task.train()
    return assembled


def tiny_batch(
    rows: int = 4, seed: int = 0, media: list[int] | None = None, frames: int = 0
) -> dict[str, Tensor]:
    """Texts of 4 to 9 tokens, padded; with `frames` clips instead of images."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 10, (rows,), generator=generator)
    longest = int(lengths.max())
    ids = torch.randint(3, BOS, (rows, longest), generator=generator)
    ids[:, 0] = CLS
    ids[torch.arange(rows), lengths - 1] = SEP
    mask = (torch.arange(longest) < lengths[:, None]).long()
    shape = (rows, frames, 3, 16, 16) if frames else (rows, 3, 16, 16)
    return {
        "image": torch.randn(shape, generator=generator),
        "input_ids": ids * mask,
        "attention_mask": mask,
        "media_index": torch.arange(rows) if media is None else torch.tensor(media),
        "sample_index": torch.randint(0, 1000, (rows,), generator=generator),
    }
