"""Blank media for the language-only baseline (data.media=blank): every pixel is the mean colour, zero when normalised.

What such a run can learn or answer, it does from text alone. Keys, order and annotations are those of the other runs;
of a sample only its record is read, so damaged media go unnoticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aurora_ds.config import RunConfig
from aurora_ds.data.reader import VIDEO_TYPES, ShardReader


@dataclass(frozen=True)
class BlankMedium:
    """Stands where a media.Medium would. `leading`: () for an image, (images,) for a set, (T,) for a clip."""

    key: str
    record: dict[str, Any]
    leading: tuple[int, ...]

    def shape(self, size: int) -> tuple[int, ...]:
        """Of the tensor that the medium would become."""
        return (*self.leading, 3, size, size)

    def write(self, out: np.ndarray, config: RunConfig, random: np.random.Generator | None) -> None:
        """Zeros, whatever the size and the augmentation."""
        out.fill(0)


def read_blank(reader: ShardReader, split: str, medium: int, frames: int) -> BlankMedium:
    """The medium without its pixels; `frames`: how many are taken of a clip. Raises BadSample."""
    key, record = reader.record(split, medium)
    kind = record.get("kind")
    if kind in ("video", "frames"):
        return BlankMedium(key, record, (frames,))
    if kind == "image":
        return BlankMedium(key, record, ())
    types = reader.extensions(
        split, medium
    )  # how many images a set has; what an older shard without "kind" holds
    if kind == "images":
        return BlankMedium(key, record, (len(types),))
    return BlankMedium(key, record, (frames,) if types[0] in VIDEO_TYPES else ())
