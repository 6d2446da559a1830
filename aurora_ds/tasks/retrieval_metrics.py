"""Recall, median and mean rank from ranked candidates, without a score matrix (BLIP §4.1; K = 1, 5, 10).

Candidates are ordered by their re-ranking score; what was not a candidate follows. `tail` says how:
`similarity` keeps the contrastive order, `released` reproduces the published matrices, in which
non-candidates tie. Of equal numbers the higher index goes first, everywhere, as in the published reversed sort.

Where a medium has several captions, each caption is a query for its medium; for the medium as a query all captions
are the gallery, and its own that is placed best counts (as on COCO).
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


def recall(image_to_text: Tensor, text_to_image: Tensor, medium: str = "img") -> dict[str, float]:
    """Per-image and per-text best ranks (0-based) -> metrics under the names of the published scripts.

    `txt_…` are of images (or clips) as queries, `img_…` (or `vid_…`, by `medium`) of texts as queries: r1, r5, r10 in
    per cent and their mean r_mean; mdR and mnR, the median and the mean rank, counted from 1. r_mean is of both ways.
    """
    result: dict[str, float] = {}
    for name, ranks in (("txt", image_to_text), (medium, text_to_image)):
        values = np.asarray(ranks)
        for depth in DEPTHS:
            result[f"{name}_r{depth}"] = float(100.0 * np.mean(values < depth))
        result[f"{name}_r_mean"] = sum(result[f"{name}_r{d}"] for d in DEPTHS) / len(DEPTHS)
        result[f"{name}_mdR"] = float(np.median(values + 1))
        result[f"{name}_mnR"] = float(np.mean(values + 1))
    result["r_mean"] = (result["txt_r_mean"] + result[f"{medium}_r_mean"]) / 2
    return result
