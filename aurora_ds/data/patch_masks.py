"""Which patches of an image are hidden: drawn one by one, or as rectangles (BEiT, arXiv 2106.08254, algorithm 1).

Both take the generator of random numbers, so that a mask is a function of its state.
"""

from __future__ import annotations

import math
import random

import numpy as np

ATTEMPTS = 10  # rectangles that are tried before one that hides something new is given up
SLIMMEST = 0.3  # least ratio of a rectangle's sides, either way


def random_mask(
    grid: tuple[int, int], count: int, generator: np.random.RandomState | np.random.Generator
) -> np.ndarray:
    """bool (rows, columns) with exactly `count` patches hidden, every set of them equally likely."""
    mask = np.zeros(math.prod(grid), dtype=bool)
    mask[generator.choice(len(mask), count, replace=False)] = True
    return mask.reshape(grid)


def block_mask(
    grid: tuple[int, int], count: int, generator: random.Random, smallest: int = 4, largest: int | None = None
) -> np.ndarray:
    """bool (rows, columns) with at most `count` patches hidden, in rectangles that may overlap.

    A rectangle's area is uniform from `smallest` to what is left to hide (`largest` at most), the ratio of its sides
    log-uniform from 0.3 to 1/0.3. Drawing ends when `ATTEMPTS` in a row hide nothing that fits."""
    mask, hidden = np.zeros(grid, dtype=bool), 0
    while hidden < count:
        most = count - hidden if largest is None else min(count - hidden, largest)
        new = _add_rectangle(mask, most, smallest, generator)
        if not new:
            break
        hidden += new
    return mask


def _add_rectangle(mask: np.ndarray, most: int, smallest: int, generator: random.Random) -> int:
    """Hides one more rectangle in place; returns how many patches that hid, 0 when none was found."""
    rows, columns = mask.shape
    for _ in range(ATTEMPTS):
        area = generator.uniform(smallest, most)
        ratio = math.exp(generator.uniform(math.log(SLIMMEST), -math.log(SLIMMEST)))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if height >= rows or width >= columns:
            continue
        top, left = generator.randint(0, rows - height), generator.randint(0, columns - width)
        place = mask[top : top + height, left : left + width]
        new = height * width - int(place.sum())
        if 0 < new <= most:
            place[:] = True
            return new
    return 0
