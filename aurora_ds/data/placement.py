"""Where an image lies in the square that a model sees, and a box with it (visual grounding: mPLUG §4, released code).

Evaluation: the long side becomes the square's, the rest is padded evenly. Training: half of the images, but none whose
phrase says where a thing is, are cropped around it; the long side becomes the square's or up to 6/20 less, at a random
place of the square; colours change; half of them are mirrored, and the words left and right with them. Padding is 0
once normalised: the mean colour.

Sizes are as published; the crop holds the middle of its box, and only words are exchanged (`upright` stays). Published
pixels are resampled twice where an image is cropped, here once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from aurora_ds.config import GroundingConfig
from aurora_ds.data.colours import Changes, draw_colours, with_colours
from aurora_ds.data.image import write_pixels

Box = tuple[float, float, float, float]  # left, top, right, bottom
# Boxes travel in batches as whole numbers of this part of the square: an engine casts fractions to bf16, whose steps
# are wider than those of the tokens of boxes.
SHARE = 2.0**-24

ZOOMS = (400, 500, 600)  # of the short side, before a crop
CROP_SIDES = (384, 600)
CROP_TRIES = 20
STEPS, STEP_SHARE = 7, 20  # the long side is shorter by 0 to 6 twentieths
COLOUR_CHANCE = 0.8
_SUFFIX = r"(?=(?:most|hand|side|wards?)?\b)"
_SIDES = re.compile(rf"\b(left|right){_SUFFIX}")
_PLACES = re.compile(rf"\b(?:left|right|top|bottom|middle){_SUFFIX}")
_OTHER_SIDE = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class Placement:
    """`region` of an image, in its pixels, `scale` times as large, as `width` x `height` pixels at (`left`, `top`) of a
    square of `size`. `mirrored`: left and right of it exchanged. `colours`: changes of (what, factor), in order."""

    size: int
    region: Box
    scale: float
    width: int
    height: int
    left: int
    top: int
    mirrored: bool = False
    colours: Changes = ()

    def into(self, box: Box) -> Box:
        """A box in pixels of the image -> what the region shows of it, in shares of the square."""
        first_x, first_y, last_x, last_y = self.region
        xs = [(min(max(x, first_x), last_x) - first_x) * self.scale for x in (box[0], box[2])]
        ys = [(min(max(y, first_y), last_y) - first_y) * self.scale for y in (box[1], box[3])]
        if self.mirrored:
            xs = [self.width - xs[1], self.width - xs[0]]
        (x0, x1), (y0, y1) = ([each + by for each in side] for side, by in ((xs, self.left), (ys, self.top)))
        return x0 / self.size, y0 / self.size, x1 / self.size, y1 / self.size

    def back(self, box: Box) -> Box:
        """The opposite of `into`, cut to the region."""
        xs, ys = (
            [each * self.size - by for each in side]
            for side, by in (((box[0], box[2]), self.left), ((box[1], box[3]), self.top))
        )
        if self.mirrored:
            xs = [self.width - xs[1], self.width - xs[0]]
        first_x, first_y, last_x, last_y = self.region
        x0, x1 = (min(max(first_x + x / self.scale, first_x), last_x) for x in xs)
        y0, y1 = (min(max(first_y + y / self.scale, first_y), last_y) for y in ys)
        return x0, y0, x1, y1

    def write(self, image: Image.Image, planes: np.ndarray) -> None:
        """RGB image -> `planes`, float32 (3, size, size), normalised."""
        image = image.resize((self.width, self.height), Image.Resampling.BILINEAR, box=self.region)
        image = with_colours(image, self.colours)
        if self.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        planes.fill(0)
        inside = planes[:, self.top : self.top + self.height, self.left : self.left + self.width]
        write_pixels(np.asarray(image), inside)


def centred(width: int, height: int, size: int) -> Placement:
    """An image of `width` x `height` in evaluation."""
    scale, shown = _fitted(width, height, size)
    left, top = (size - shown[0]) // 2, (size - shown[1]) // 2
    return Placement(size, (0, 0, width, height), scale, *shown, left, top)


def drawn(
    width: int,
    height: int,
    box: Box,
    phrase: str,
    size: int,
    options: GroundingConfig,
    mirror: bool,
    random: np.random.Generator,
) -> tuple[Placement, str]:
    """A placement for training and the phrase for it, of draws from `random` only. `mirror`: whether it may be."""
    region: Box = (0, 0, width, height)
    zoomed, sides = 1.0, (width, height)
    if random.random() < options.crop_chance and not _PLACES.search(phrase):
        region, zoomed, sides = _crop(width, height, box, random)
    long_side = size - int(random.integers(STEPS)) * (size // STEP_SHARE)
    scale, shown = _fitted(*sides, long_side)
    colours = _colours(options.colour_jitter, random)
    mirrored = mirror and random.random() < 0.5
    left = int(random.integers(size - shown[0] + 1))
    top = int(random.integers(size - shown[1] + 1))
    placement = Placement(size, region, zoomed * scale, *shown, left, top, mirrored, colours)
    return placement, exchanged_sides(phrase) if mirrored else phrase


def exchanged_sides(phrase: str) -> str:
    """The phrase for a mirrored image: left is right and the other way round, also in leftmost, right-hand and the
    like, but not within other words: upright, bright."""
    return _SIDES.sub(lambda found: _OTHER_SIDE[found[1]], phrase)


def _fitted(width: int, height: int, long_side: int) -> tuple[float, tuple[int, int]]:
    """(scale, (width, height)) of an image whose long side becomes `long_side`."""
    scale = long_side / max(width, height)
    return scale, (max(1, round(width * scale)), max(1, round(height * scale)))


def _crop(
    width: int, height: int, box: Box, random: np.random.Generator
) -> tuple[Box, float, tuple[int, int]]:
    """(region of the image, zoom, its sides when zoomed): a crop that holds the middle of the box, else the whole."""
    zoom = ZOOMS[int(random.integers(len(ZOOMS)))] / min(width, height)
    wide, high = round(width * zoom), round(height * zoom)
    across, down = (box[0] + box[2]) / 2 * zoom, (box[1] + box[3]) / 2 * zoom
    least, most = CROP_SIDES
    for _ in range(CROP_TRIES):
        crop_width = int(random.integers(least, min(wide, most) + 1))
        crop_height = int(random.integers(least, min(high, most) + 1))
        left = int(random.integers(wide - crop_width + 1))
        top = int(random.integers(high - crop_height + 1))
        right, bottom = left + crop_width, top + crop_height
        if left < across < right and top < down < bottom:
            # rounding of the zoomed sides may reach past the image by less than a pixel
            region = left / zoom, top / zoom, min(right / zoom, width), min(bottom / zoom, height)
            return region, zoom, (crop_width, crop_height)
    return (0, 0, width, height), zoom, (wide, high)


def _colours(strength: float, random: np.random.Generator) -> Changes:
    if not strength or random.random() >= COLOUR_CHANCE:
        return ()
    return draw_colours(strength, random)
