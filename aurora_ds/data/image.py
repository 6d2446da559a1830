"""Image transforms of BLIP (arXiv 2201.12086, released code) and EVE: RGB image -> float32 (3, size, size).

Training: random crop of crop_scale of the area, bicubic to size, flip, then RandAugment(2, 5), or as EVE has it
nothing, jitter of colours or RandAugment(2, 7). Test: bicubic to (size, size), aspect not kept. Then /255, minus mean,
over deviation. The write_ functions fill rows of a batch by NumPy alone: a decoded image has emptied the caches, and a
few calls of PyTorch then cost as much as the work between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aurora_ds.config import DataConfig
from aurora_ds.config.pixels import DEVIATION, MEAN
from aurora_ds.data.colours import draw_colours, with_colours
from aurora_ds.data.decode import open_image as open_image
from aurora_ds.data.randaugment import rand_augment

ASPECT = (3 / 4, 4 / 3)  # of random crops
RANDAUGMENT_OPERATIONS = 2


class Augmentation(NamedTuple):
    """What is drawn for an image in training. Named as in `data`, where each is said."""

    crop_scale: tuple[float, float] = (0.5, 1.0)
    horizontal_flip: bool = True
    randaugment: bool = True
    randaugment_level: int = 5
    colour_jitter: float = 0.0

    @classmethod
    def of(cls, data: DataConfig) -> Augmentation:
        """As configured."""
        return cls(*(getattr(data, name) for name in cls._fields))


PUBLISHED = Augmentation()  # for BLIP


def test_transform(image: Image.Image, size: int) -> Tensor:
    """RGB image -> float32 (3, size, size), normalised. Bicubic, aspect not kept."""
    out = torch.empty(3, size, size)
    write_test(image, out.numpy())
    return out


test_transform.__test__ = False  # its name is the published one; it is no test


def write_test(image: Image.Image, planes: np.ndarray) -> None:
    """test_transform into `planes`, float32 (3, size, size)."""
    size = planes.shape[-1]
    resized = image.resize((size, size), Image.Resampling.BICUBIC)
    # Pillow picks out a band faster than it separates all, and than NumPy turns pixels into planes.
    bands = [np.frombuffer(resized.tobytes("raw", band), np.uint8) for band in "RGB"]
    _normalise(planes, [band.reshape(size, size) for band in bands])


def train_transform(
    image: Image.Image, size: int, random: np.random.Generator, augmentation: Augmentation = PUBLISHED
) -> Tensor:
    """RGB image -> float32 (3, size, size), augmented with draws from `random` only, normalised."""
    out = torch.empty(3, size, size)
    write_train(image, out.numpy(), random, augmentation)
    return out


def write_train(
    image: Image.Image, planes: np.ndarray, random: np.random.Generator, augmentation: Augmentation
) -> None:
    """train_transform into `planes`, float32 (3, size, size)."""
    left, top, width, height = random_crop(image.width, image.height, augmentation.crop_scale, random)
    # Crop, then resize: with resize(box=…) Pillow's filter would also see pixels outside the crop.
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((planes.shape[-1], planes.shape[-1]), Image.Resampling.BICUBIC)
    if augmentation.horizontal_flip and random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation.colour_jitter:
        image = with_colours(image, draw_colours(augmentation.colour_jitter, random))
    pixels = np.asarray(image)
    if augmentation.randaugment:
        pixels = rand_augment(pixels, RANDAUGMENT_OPERATIONS, augmentation.randaugment_level, random)
    write_pixels(pixels, planes)


def random_crop(
    width: int, height: int, scale: tuple[float, float], random: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a crop: share of the area uniform in `scale`, aspect log-uniform in 3/4 … 4/3.

    Ten draws, then the largest central crop of an allowed aspect; the rule of torchvision's RandomResizedCrop.
    """
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(random.integers(0, width - crop_width + 1))
            top = int(random.integers(0, height - crop_height + 1))
            return left, top, crop_width, crop_height
    aspect = min(max(width / height, ASPECT[0]), ASPECT[1])
    crop_width, crop_height = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) -> float32 (3, H, W): /255, minus mean, over deviation."""
    out = torch.empty(3, *pixels.shape[:2])
    write_pixels(pixels, out.numpy())
    return out


def write_pixels(pixels: np.ndarray, planes: np.ndarray) -> None:
    """to_tensor into `planes`, float32 (3, H, W)."""
    _normalise(planes, pixels.transpose(2, 0, 1))


def _normalise(planes: np.ndarray, bands: Sequence[np.ndarray]) -> None:
    """Plane by plane, which stays in the processor's cache."""
    for plane, band, mean, deviation in zip(planes, bands, MEAN, DEVIATION, strict=True):
        np.copyto(plane, band)
        plane /= np.float32(255)
        plane -= np.float32(mean)
        plane /= np.float32(deviation)


def to_pixels(image: Tensor) -> np.ndarray:
    """Inverse of to_tensor, for pictures of batches: float32 (3, H, W) -> uint8 (H, W, 3)."""
    planes = image.detach().float().cpu().numpy()
    planes = planes * np.asarray(DEVIATION)[:, None, None] + np.asarray(MEAN)[:, None, None]
    return np.clip(np.rint(planes * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
