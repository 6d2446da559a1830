"""Contrastive loss with momentum keys, a queue and soft targets (BLIP §3.2, after ALBEF and MoCo).

Per direction: cross entropy of q Kᵀ/τ against α · softmax(q_m Kᵀ/τ) + (1 - α) · y, where y spreads over the keys
of the same medium. Keys are momentum features of the batch and the queue.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from aurora_ds.tasks.feature_queue import EMPTY, FeatureQueue

MASKED_LOGIT = -1e30


@dataclass
class Features:
    """Normalised features of some pairs, and whose they are."""

    image: Tensor  # (B, E) fp32
    text: Tensor  # (B, E) fp32
    media: Tensor  # (B,) int64


def contrastive_loss(
    queries: Features,
    momentum: Features,
    keys: Features,
    queue: FeatureQueue,
    temperature: Tensor | float,
    alpha: float,
    noise_is_negative: bool,
    trace: dict[str, Tensor] | None = None,
) -> Tensor:
    """Mean over both directions and the rank's rows, a scalar.

    Args:
        queries: online features of the rank's rows. momentum: the same rows' momentum features. keys: momentum
            features of the rank's or of all ranks' rows.
        alpha: weight of the soft targets. noise_is_negative: whether queue places never written, which hold
            noise, count as negatives, as they do in the published code; otherwise they are left out.
        trace: when given, similarities are put in under their published names.
    """
    ids = torch.cat([keys.media, queue.ids])
    hard = (queries.media[:, None] == ids).to(queries.image.dtype)
    hard = hard / hard.sum(1, keepdim=True)
    empty = None if noise_is_negative else ids == EMPTY

    def direction(query: Tensor, query_m: Tensor, key: Tensor, queued: Tensor, name: str) -> Tensor:
        columns = torch.cat([key.t(), queued], dim=1)  # (E, K + Q)
        logits = query @ columns / temperature
        with torch.no_grad():
            soft = query_m @ columns / temperature
            if empty is not None:
                soft = soft.masked_fill(empty, MASKED_LOGIT)
            targets = alpha * soft.softmax(1) + (1 - alpha) * hard
        if empty is not None:
            logits = logits.masked_fill(empty, MASKED_LOGIT)
        if trace is not None:
            trace[f"sim_{name}"], trace[f"sim_{name}_m"] = logits, soft
        return F.cross_entropy(logits, targets)

    image_to_text = direction(queries.image, momentum.image, keys.text, queue.text, "i2t")
    text_to_image = direction(queries.text, momentum.text, keys.image, queue.image, "t2i")
    return (image_to_text + text_to_image) / 2
