"""Informative context enhancement: a fraction of the batch's mean text state added to the matching head's
input.

`released`: the mean of the rank's own batch, added to positive pairs only and never at evaluation. That
tells the head which pairs are positive, so it serves parity with the published numbers alone. `consistent`:
the mean over all ranks, added to every pair alike, and its running mean at evaluation. Aurora (arXiv
2305.08381) §3.3.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

RUNNING_MOMENTUM = 0.9


class _MeanOverRanks(torch.autograd.Function):
    """Mean of equal-shaped tensors over all ranks. Its gradient is the mean of the ranks' gradients: the
    engine averages parameter gradients over ranks once more, which makes the whole the gradient of the mean
    loss."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x / dist.get_world_size()

    @staticmethod
    def backward(ctx, dy):
        dy = dy.clone()
        dist.all_reduce(dy)
        return dy / dist.get_world_size()


class ContextEnhancement:
    """State and application of the context term. `running` (H,) fp32 is saved with the adapter."""

    def __init__(self, mode: str, scale: float) -> None:
        self.mode, self.scale = mode, scale
        self.running: Tensor | None = None

    def training_term(self, text_cls: Tensor) -> Tensor | None:
        """text_cls (batch, H) -> 0.1 · context (H,) with graph, or None when off. `consistent` also moves
        the running mean."""
        if self.mode == "off":
            return None
        context = text_cls.mean(0)
        if self.mode == "consistent":
            if dist.is_initialized() and dist.get_world_size() > 1:
                context = _MeanOverRanks.apply(context)
            current = context.detach().float()
            self.running = (
                current.clone()
                if self.running is None
                else self.running.to(current.device).lerp_(current, 1 - RUNNING_MOMENTUM)
            )
        return self.scale * context

    def apply(self, states: Tensor, term: Tensor | None, positives: int) -> Tensor:
        """states (pairs, H), the first `positives` of them matching pairs -> the matching head's input."""
        if term is None:
            return states
        if self.mode == "consistent":
            return states + term
        return torch.cat([states[:positives] + term, states[positives:]])

    def evaluation_term(self) -> Tensor | None:
        """What evaluation adds to every pair: the running mean in `consistent` mode, nothing otherwise."""
        if self.mode != "consistent" or self.running is None:
            return None
        return self.scale * self.running
