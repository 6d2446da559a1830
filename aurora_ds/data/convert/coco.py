"""COCO captions, Karpathy split. Annotations name images as val2014/COCO_val2014_000000391895.jpg.

COCO 2017 is the same photos under other names (000000391895.jpg in train2017/ or val2017/), so those are found as
well.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from aurora_ds.data.convert.annotations import FORMATS, read_captions

__all__ = ["FORMATS", "candidates", "read"]

read = read_captions


def candidates(name: str) -> list[str]:
    """Where the image may be under an image folder, best first."""
    file = PurePosixPath(name).name
    number = file.rpartition("_")[2]
    return [name, file, f"train2017/{number}", f"val2017/{number}"]
