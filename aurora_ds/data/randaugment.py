"""RandAugment as BLIP uses it (arXiv 1909.13719; BLIP's released code): N operations drawn with replacement, each done
with probability 0.5, at level M of 10, on uint8 (H, W, 3) pixels.

The published operations are OpenCV's. These are the same in NumPy: warps follow OpenCV 4's fixed-point bilinear rule
(source coordinates in 1/32 pixel), so results are equal and no OpenCV is needed. Outside pixels are FILL.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

FILL = 128
FULL_LEVEL = 10
LARGEST_SHEAR = 0.3
LARGEST_SHIFT = 10  # pixels
LARGEST_TURN = 30  # degrees
_FRACTION_BITS = 5  # OpenCV keeps source coordinates in 1/32 pixel …
_COORDINATE_BITS = 10  # … rounded down from 1/1024
_FRACTIONS = 1 << _FRACTION_BITS
_ROWS_AT_ONCE = 32
_FIELD = 21  # bits per channel when a pixel is packed into one uint64: 8 of value, 10 of weight, and room


def rand_augment(pixels: np.ndarray, operations: int, level: int, random: np.random.Generator) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (H, W, 3). `operations` draws from OPERATIONS with replacement, in order."""
    for choice in random.integers(0, len(OPERATIONS), size=operations):
        # Both draws are always taken, so that a later operation does not depend on whether this one is done.
        done, sign = random.random() <= 0.5, -1 if random.random() > 0.5 else 1
        if done:
            pixels = OPERATIONS[choice][1](pixels, level / FULL_LEVEL, sign)
    return pixels


def auto_contrast(pixels: np.ndarray) -> np.ndarray:
    """Each channel stretched linearly to 0 … 255, rounded down."""
    tables = []
    for channel in range(3):
        low, high = int(pixels[..., channel].min()), int(pixels[..., channel].max())
        scale = 255 / (high - low) if high > low else 1.0
        offset = -low * scale if high > low else 0.0
        tables.append((np.arange(256) * scale + offset).clip(0, 255).astype(np.uint8))
    return _look_up(pixels, tables)


def equalize(pixels: np.ndarray) -> np.ndarray:
    """Each channel's histogram made flat: value v becomes (step // 2 + pixels below v) // step."""
    tables = []
    for channel in range(3):
        histogram = np.bincount(pixels[..., channel].ravel(), minlength=256)
        present = histogram[histogram > 0]
        step = int(present[:-1].sum()) // 255
        if step == 0:
            tables.append(np.arange(256, dtype=np.uint8))
            continue
        below = np.concatenate([[step // 2], histogram[:-1]])
        tables.append((np.cumsum(below) // step).clip(0, 255).astype(np.uint8))
    return _look_up(pixels, tables)


def brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Values times `factor`, rounded down."""
    return (np.arange(256, dtype=np.float32) * np.float32(factor)).clip(0, 255).astype(np.uint8)[pixels]


def sharpness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Between a smoothed image (3 x 3, centre 5/13, others 1/13; factor 0) and the image itself (factor 1)."""
    if factor == 1.0:
        return pixels
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="reflect").astype(np.float32)
    height, width = pixels.shape[:2]
    total = 4 * padded[1:-1, 1:-1]
    for down in range(3):
        for right in range(3):
            total = total + padded[down : down + height, right : right + width]
    smooth = np.rint(total / 13).astype(np.uint8)
    if factor == 0.0:
        return smooth
    result = pixels.astype(np.float32)
    inner = smooth[1:-1, 1:-1].astype(np.float32)
    result[1:-1, 1:-1] = inner + np.float32(factor) * (result[1:-1, 1:-1] - inner)
    # The published code casts without clipping; at the published level the factor is 1 and this line is not reached.
    return result.clip(0, 255).astype(np.uint8)


def shear_x(pixels: np.ndarray, slope: float) -> np.ndarray:
    """x' = x + slope · y."""
    return warp(pixels, np.array([[1, np.float32(slope), 0], [0, 1, 0]]))


def shear_y(pixels: np.ndarray, slope: float) -> np.ndarray:
    """y' = y + slope · x."""
    return warp(pixels, np.array([[1, 0, 0], [np.float32(slope), 1, 0]]))


def translate_x(pixels: np.ndarray, shift: int) -> np.ndarray:
    """`shift` pixels to the left."""
    return _shift_rows(pixels.transpose(1, 0, 2), shift).transpose(1, 0, 2)


def translate_y(pixels: np.ndarray, shift: int) -> np.ndarray:
    """`shift` pixels up."""
    return _shift_rows(pixels, shift)


def _shift_rows(pixels: np.ndarray, shift: int) -> np.ndarray:
    result = np.full_like(pixels, FILL)
    rows = max(0, len(pixels) - abs(shift))
    first, source = max(0, -shift), max(0, shift)
    result[first : first + rows] = pixels[source : source + rows]
    return result


def rotate(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """Counter-clockwise about (W / 2, H / 2)."""
    height, width = pixels.shape[:2]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    turn = [[cosine, sine, (1 - cosine) * x - sine * y], [-sine, cosine, sine * x + (1 - cosine) * y]]
    return warp(pixels, np.array(turn))


def warp(pixels: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """Affine map of (x, y), (2, 3) from source to result, bilinear; uint8 (H, W, 3) -> the same shape."""
    height, width = pixels.shape[:2]
    (a, b, c), (d, e, f) = _inverse(forward)
    columns, rows = np.arange(width), np.arange(height)
    # Two pixels of FILL around the image, and coordinates clamped into it, stand for the endless outside.
    padded = np.full((height + 4, width + 4, 3), FILL, dtype=np.uint8)
    padded[2:-2, 2:-2] = pixels
    packed, stride = _pack(padded).ravel(), width + 4
    result = np.empty_like(pixels)
    # Some rows at a time: what is computed on the way then stays in the processor's cache.
    for first in range(0, height, _ROWS_AT_ONCE):
        block = rows[first : first + _ROWS_AT_ONCE]
        x, right = _whole_and_fraction(_fixed_point(b * block + c)[:, None], _fixed_point(a * columns), width)
        y, down = _whole_and_fraction(_fixed_point(e * block + f)[:, None], _fixed_point(d * columns), height)
        corner = (y + 2) * stride + (x + 2)
        left, up = np.uint64(_FRACTIONS) - right, np.uint64(_FRACTIONS) - down
        total = (packed.take(corner) * left + packed.take(corner + 1) * right) * up
        total += (packed.take(corner + stride) * left + packed.take(corner + (stride + 1)) * right) * down
        result[first : first + _ROWS_AT_ONCE] = _unpack(total)
    return result


def _fixed_point(coordinate: np.ndarray) -> np.ndarray:
    # OpenCV rounds the two parts of a coordinate before it adds them; that decides the last 1/32 pixel.
    return np.rint(coordinate * (1 << _COORDINATE_BITS)).astype(np.int64)


def _whole_and_fraction(part: np.ndarray, other: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum of two fixed-point parts -> (whole pixels clamped to -2 … limit, int64; 1/32 pixels, uint64)."""
    drop = _COORDINATE_BITS - _FRACTION_BITS
    position = ((part + (1 << drop >> 1)) + other) >> drop
    fraction = (position & (_FRACTIONS - 1)).astype(np.uint64)
    return np.minimum(np.maximum(position >> _FRACTION_BITS, -2), limit), fraction


def _inverse(forward: np.ndarray) -> np.ndarray:
    (a, b, c), (d, e, f) = forward.astype(np.float64)
    scale = 1 / (a * e - b * d)
    a, b, d, e = e * scale, -b * scale, -d * scale, a * scale
    return np.array([[a, b, -a * c - b * f], [d, e, -d * c - e * f]])


def _pack(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> uint64 (H, W): three channels in fields wide enough to be weighted and added as one number."""
    wide = pixels.astype(np.uint64)
    return wide[..., 0] | (wide[..., 1] << np.uint64(_FIELD)) | (wide[..., 2] << np.uint64(2 * _FIELD))


def _unpack(total: np.ndarray) -> np.ndarray:
    """Fields of weighted sums (weights sum to 1024) -> rounded uint8 (H, W, 3)."""
    half = 512
    rounded = total + np.uint64(half | half << _FIELD | half << 2 * _FIELD)
    result = np.empty((*total.shape, 3), dtype=np.uint8)
    for channel in range(3):
        result[..., channel] = (rounded >> np.uint64(channel * _FIELD + 10)) & np.uint64(255)
    return result


def _look_up(pixels: np.ndarray, tables: list[np.ndarray]) -> np.ndarray:
    return np.stack([tables[channel][pixels[..., channel]] for channel in range(3)], axis=-1)


def _enhance(share: float) -> float:
    return 0.1 + 1.8 * share


# Name and (pixels, share of the full level, sign) -> pixels. Order matters: choices are keyed by number.
OPERATIONS: tuple[tuple[str, Callable[[np.ndarray, float, int], np.ndarray]], ...] = (
    ("Identity", lambda pixels, share, sign: pixels),
    ("AutoContrast", lambda pixels, share, sign: auto_contrast(pixels)),
    ("Brightness", lambda pixels, share, sign: brightness(pixels, _enhance(share))),
    ("Sharpness", lambda pixels, share, sign: sharpness(pixels, _enhance(share))),
    ("Equalize", lambda pixels, share, sign: equalize(pixels)),
    ("ShearX", lambda pixels, share, sign: shear_x(pixels, sign * LARGEST_SHEAR * share)),
    ("ShearY", lambda pixels, share, sign: shear_y(pixels, sign * LARGEST_SHEAR * share)),
    ("TranslateX", lambda pixels, share, sign: translate_x(pixels, round(sign * LARGEST_SHIFT * share))),
    ("TranslateY", lambda pixels, share, sign: translate_y(pixels, round(sign * LARGEST_SHIFT * share))),
    ("Rotate", lambda pixels, share, sign: rotate(pixels, sign * LARGEST_TURN * share)),
)
