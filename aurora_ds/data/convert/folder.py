"""Own data: images in a folder and JSON lists in BLIP's form: [{"image": path, "caption": …, "split": "train"}]."""

from __future__ import annotations

from aurora_ds.data.convert.annotations import read_captions

FORMATS = ("blip",)

read = read_captions


def candidates(name: str) -> list[str]:
    """Images are where the list says, relative to the source folder or to its images/ folder."""
    return [name]
