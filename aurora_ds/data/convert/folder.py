"""Own data: media in a folder and JSON lists in BLIP's form: [{"image": path, "caption": …, "split": "train"}].

With `options: {medium: video}` the lists name clips: [{"video": path, …}].
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aurora_ds.data.convert.annotations import read_captions
from aurora_ds.data.convert.clips import options
from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.recipe import AnnotationFiles

FORMATS = ("blip",)


def read(way: AnnotationFiles, files: dict[str, Path]) -> Iterator[Entry | Reject]:
    """An entry per caption. Raises AuroraError for a list of another shape."""
    return read_captions(way, files, options(way, "folder", {"medium": "image"})["medium"])


def candidates(name: str) -> list[str]:
    """Media are where the list says, relative to the source folder or to one of the recipe's media folders."""
    return [name]
