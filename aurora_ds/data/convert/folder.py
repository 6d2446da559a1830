"""Own data: images in a folder and JSON lists in BLIP's form: [{"image": path, "caption": …, "split": "train"}]."""

from __future__ import annotations


def image_paths(image: str) -> list[str]:
    """Images are where the list says, relative to the source folder or to its images/ folder."""
    return [image]
