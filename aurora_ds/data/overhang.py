"""Whether a box of an annotation lies in its image; without torch, for the processes that convert."""

from __future__ import annotations

from collections.abc import Sequence

OVERHANG = 1.0  # pixels by which a box may reach past its image: annotators' tools round


def lies_within(box: Sequence[float], width: int, height: int) -> bool:
    """Whether a box [left, top, width, height] in pixels holds a part of an image of `width` x `height`, and reaches
    past it by OVERHANG at most."""
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    inside = min(left, top) >= -OVERHANG and right <= width + OVERHANG and bottom <= height + OVERHANG
    return inside and min(right, width) > max(left, 0) and min(bottom, height) > max(top, 0)
