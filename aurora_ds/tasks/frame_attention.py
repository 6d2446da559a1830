"""Frame-aware attention of clips (Aurora, arXiv 2305.08381, as released): frames that resemble the text count more.

It is a factor on the keys that a text's cross-attention sees, so it needs no parameters and no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def frame_scales(text: Tensor, frames: Tensor, tokens: int) -> Tensor:
    """Factors on the keys of each pair's clip: s_t = T·softmax_t(cos(text, frame t)/4) for the patches of frame t, and
    1 for each frame's first token.

    Args:
        text: features (P, E) of length 1. frames: features (P, T, E) of length 1, or (1, T, E): one clip for all texts.
        tokens: of a clip, T·(N+1).
    Returns: (P, T·(N+1)), the features' dtype.
    """
    count = frames.shape[1]
    weights = torch.einsum("pe,pte->pt", text, frames.expand(len(text), -1, -1))
    scales = (count * (weights / 4).softmax(1))[:, :, None].repeat(1, 1, tokens // count)
    scales[:, :, 0] = 1.0
    return scales.flatten(1)
