"""Multi-head attention after the projections: softmax(q kᵀ / sqrt(d)) v, on heads that are views of fused projections.

`sdpa` is the product path (PyTorch's fused kernels); `eager` forms the score matrix and is there to check the
other one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def split_heads(projected: Tensor, blocks: int, heads: int) -> tuple[Tensor, ...]:
    """(B, L, blocks·H) -> `blocks` views (B, heads, L, d). Rows of each block are contiguous slices per head."""
    return projected.unflatten(-1, (blocks, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def merge_heads(context: Tensor) -> Tensor:
    """(B, heads, L, d) -> (B, L, H). The fused kernels lay their output out so that this is a view."""
    return context.transpose(1, 2).flatten(2)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    eager: bool = False,
    score_scale: Tensor | None = None,
) -> Tensor:
    """Attention of query (B, heads, Lq, d) over key and value (B, heads, Lk, d) -> (B, heads, Lq, d).

    Args:
        mask: bool, broadcastable to (B, heads, Lq, Lk); False positions get probability 0. Or numbers, which are
            added to the scores.
        dropout: on the probabilities; the caller passes 0 outside training.
        score_scale: factors on the scores, broadcastable to (B, heads, Lq, Lk), as if each query saw scaled keys of
        its own. The fused kernels cannot do that, so the score matrix is formed.
    """
    if not eager and score_scale is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if score_scale is not None:
        scores = scores * score_scale
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    probabilities = F.dropout(scores.softmax(dim=-1), dropout, training=dropout > 0)
    return probabilities @ value
