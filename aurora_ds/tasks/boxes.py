"""Boxes as the tokens and losses of visual grounding take them: (centre x, centre y, width, height) in shares of the
square that a model sees; corners are (left, top, right, bottom)."""

from __future__ import annotations

import torch
from torch import Tensor

HULL_EPS = 1e-5  # of both ratios of GIoU, as published
IOU_EPS = 1e-16  # in evaluation, as published


def corners(box: Tensor) -> Tensor:
    """(…, 4) centres and sizes -> (…, 4) corners."""
    centre, half = box[..., :2], 0.5 * box[..., 2:]
    return torch.cat([centre - half, centre + half], dim=-1)


def centres(box: Tensor) -> Tensor:
    """(…, 4) corners -> (…, 4) centres and sizes."""
    first, last = box[..., :2], box[..., 2:]
    return torch.cat([(first + last) / 2, last - first], dim=-1)


def quantised(box: Tensor, bins: int) -> Tensor:
    """Shares (…, 4) -> bins int64 (…, 4), 0 to `bins`: floor(bins · v), v cut to 0 … 1."""
    return (bins * box.clamp(0, 1)).floor().long()


def overlap(predicted: Tensor, true: Tensor) -> Tensor:
    """Intersection over union (…) of corners (…, 4), as it is judged: the predicted box cut to the square."""
    return _overlap(predicted.clamp(0, 1), true, IOU_EPS)[0]


def generalised_overlap(predicted: Tensor, true: Tensor) -> Tensor:
    """GIoU (…) of corners (…, 4): the overlap less the share of the hull that neither covers (Rezatofighi et al. 2019,
    §3)."""
    ratio, union = _overlap(predicted, true, HULL_EPS)
    first = torch.minimum(predicted[..., :2], true[..., :2])
    last = torch.maximum(predicted[..., 2:], true[..., 2:])
    hull = _area(first, last)
    return ratio - (hull - union) / (hull + HULL_EPS)


def _overlap(one: Tensor, other: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(overlap, area of the union)."""
    first = torch.maximum(one[..., :2], other[..., :2])
    last = torch.minimum(one[..., 2:], other[..., 2:])
    common = _area(first, last)
    union = _area(one[..., :2], one[..., 2:]) + _area(other[..., :2], other[..., 2:]) - common
    return common / (union + eps), union


def _area(first: Tensor, last: Tensor) -> Tensor:
    return (last - first).clamp(min=0).prod(-1)
