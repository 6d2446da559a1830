"""Recall from ranked candidates, without a score matrix (BLIP §4.1; TR@K and IR@K for K = 1, 5, 10).

Candidates are ordered by their re-ranking score; what was not a candidate follows. `tail` says how:
`similarity` keeps the contrastive order, `released` reproduces the published matrices, in which
non-candidates tie and the higher index goes first.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

DEPTHS = (1, 5, 10)


def rank_of_targets(
    candidates: Tensor,
    scores: Tensor,
    queries: Tensor,
    targets: Tensor,
    similarity_rank: Tensor,
    gallery: int,
    tail: str = "similarity",
) -> Tensor:
    """Rank (0 is best) of each (query, target) pair.

    Args:
        candidates: (n, k) int64, gallery indices per query. scores: (n, k) fp32, higher is better.
        queries, targets: (m,) rows of `candidates` and gallery indices. similarity_rank: (m,) place in the
        contrastive order.
        gallery: its size. tail: see above.
    Returns: (m,) int64.
    """
    rows, row_scores = candidates[queries], scores[queries]  # (m, k)
    is_target = rows == targets[:, None]
    found = is_target.any(1)
    own = (
        torch.where(is_target, row_scores, torch.full_like(row_scores, -torch.inf))
        .max(1, keepdim=True)
        .values
    )
    ahead = (row_scores > own) | ((row_scores == own) & (rows > targets[:, None]))
    if tail == "released":
        behind = (gallery - 1 - targets) - (rows > targets[:, None]).sum(1)
        outside = candidates.shape[1] + behind
    else:
        outside = similarity_rank
    return torch.where(found, ahead.sum(1), outside)


def recall(image_to_text: Tensor, text_to_image: Tensor) -> dict[str, float]:
    """Per-image and per-text best ranks (0-based) -> percentages under the published names."""
    result: dict[str, float] = {}
    for name, ranks in (("txt", image_to_text), ("img", text_to_image)):
        values = np.asarray(ranks)
        for depth in DEPTHS:
            result[f"{name}_r{depth}"] = float(100.0 * np.mean(values < depth))
        result[f"{name}_r_mean"] = sum(result[f"{name}_r{d}"] for d in DEPTHS) / len(DEPTHS)
    result["r_mean"] = (result["txt_r_mean"] + result["img_r_mean"]) / 2
    return result
