"""Token ids of natural length for the benchmarks: lengths drawn from real captions, words drawn at random.

`coco_caption_lengths.json` counts tokens per caption ([CLS] and [SEP] included) of the COCO Karpathy validation
split.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from measurement import HERE
from torch import Tensor

CLS, SEP, FIRST_WORD = 101, 102, 1000
LIMIT = 35


def natural_captions(count: int, seed: int, vocabulary: int) -> list[Tensor]:
    """`count` id vectors, each [CLS] words [SEP], of 9 to 35 tokens. Random words: only lengths matter to the cost."""
    counts = json.loads((HERE / "coco_caption_lengths.json").read_text(encoding="utf-8"))["count_by_length"]
    generator = np.random.default_rng(seed)
    lengths = np.array([int(length) for length in counts])
    share = np.array(list(counts.values()), dtype=float)
    chosen = generator.choice(lengths, size=count, p=share / share.sum())
    return [
        torch.tensor(
            [CLS, *generator.integers(FIRST_WORD, vocabulary - 2, size=length - 2), SEP], dtype=torch.int64
        )
        for length in chosen
    ]


def padded(captions: list[Tensor], length: int | None = None) -> tuple[Tensor, Tensor]:
    """ids, mask (count, L): L is the longest caption, or `length`."""
    width = length or max(len(caption) for caption in captions)
    ids = torch.zeros(len(captions), width, dtype=torch.int64)
    mask = torch.zeros(len(captions), width, dtype=torch.int64)
    for row, caption in enumerate(captions):
        ids[row, : len(caption)] = caption
        mask[row, : len(caption)] = 1
    return ids, mask
