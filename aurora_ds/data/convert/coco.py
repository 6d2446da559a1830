"""COCO captions, Karpathy split. Annotations name images as val2014/COCO_val2014_000000391895.jpg.

COCO 2017 is the same photos under other names (000000391895.jpg in train2017/ or val2017/), so those are found as
well.
"""

from __future__ import annotations

from pathlib import PurePosixPath


def image_paths(image: str) -> list[str]:
    """Where the image may be under an image folder, best first."""
    name = PurePosixPath(image).name
    number = name.rpartition("_")[2]
    return [image, name, f"train2017/{number}", f"val2017/{number}"]
