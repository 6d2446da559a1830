"""Norm and clipping of gradients where DeepSpeed does neither: ZeRO 0 in fp32, whose engine does not report a norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aurora_ds.runtime.expert_ranks import ExpertRanks, is_expert


def gradient_norm(trainables: Sequence[Tensor], experts: ExpertRanks | None) -> float:
    """Of all trainables that have a gradient, the experts of other ranks included (collective then)."""
    held = [parameter for parameter in trainables if parameter.grad is not None]
    if not held:
        return 0.0
    norms = torch.stack([parameter.grad.float().norm() for parameter in held])
    if experts is not None:
        spread_out = torch.tensor([is_expert(each) for each in held], device=norms.device)
        every = experts.sum_over_ranks(norms[spread_out].square().sum()).sqrt()
        norms = torch.cat([norms[~spread_out], every[None]])
    return float(torch.linalg.vector_norm(norms))


def clip(trainables: Sequence[Tensor], norm: float, longest: float) -> bool:
    """Clip to the norm `longest` (0: not at all) as the ZeRO optimizers do, and like them drop gradients that are not
    finite: False then."""
    if not math.isfinite(norm):
        for parameter in trainables:
            parameter.grad = None
        return False
    factor = longest / (norm + 1e-6)
    if 0.0 < factor < 1.0:
        for parameter in trainables:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
    return True
