"""Masked pre-training on pairs of image and caption (EVE, AAAI 2024)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from aurora_ds.config.section import Section


class PretrainConfig(Section):
    """Hidden patches are reconstructed beside the whole caption, hidden words guessed beside the whole image."""

    image_share: float = Field(0.75, gt=0, lt=1, description="of an image's patches that are hidden")
    image_pattern: Literal["random", "blocks"] = Field(
        "random", description="hidden patches one by one, or in rectangles, which then are at most so many"
    )
    smallest_block: PositiveInt = Field(4, description="patches of a rectangle, for image_pattern=blocks")
    text_share: float = Field(0.5, gt=0, lt=1, description="of a caption's tokens that are hidden")
    image_weight: PositiveFloat = Field(1.0, description="of the loss of pixels")
    text_weight: PositiveFloat = Field(1.0, description="of the loss of words")
    normalise_patches: bool = Field(
        False,
        description="what is reconstructed: each patch with its own mean 0 and deviation 1, or its pixels",
    )
    mask_id: NonNegativeInt | None = Field(
        None, description="token that stands for a hidden one; null: [MASK] of the vocabulary"
    )
    max_words: PositiveInt = 30
    max_tokens: PositiveInt = 40
