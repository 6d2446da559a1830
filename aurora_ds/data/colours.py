"""Colours changed at random in training: brightness, contrast and saturation, in random order, by Pillow.

A factor of 1 leaves an image as it is; of 0 it is black, grey, or without
colour. The rule of torchvision's ColorJitter.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance

Changes = tuple[tuple[str, float], ...]  # (what, factor), in order
_WHAT = ("Brightness", "Contrast", "Color")


def draw_colours(strength: float, random: np.random.Generator) -> Changes:
    """Each factor uniform in 1 ± `strength`."""
    return tuple(
        (_WHAT[which], float(random.uniform(1 - strength, 1 + strength)))
        for which in random.permutation(len(_WHAT))
    )


def with_colours(image: Image.Image, changes: Changes) -> Image.Image:
    """RGB image -> RGB image."""
    for what, factor in changes:
        image = getattr(ImageEnhance, what)(image).enhance(factor)
    return image
