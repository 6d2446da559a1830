"""Flickr30k: BLIP's lists, Karpathy's file, or MacCap's list.

Annotations name images as flickr30k-images/1007129816.jpg, or by the file name alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from aurora_ds.data.convert.annotations import FORMATS as CAPTION_FORMATS
from aurora_ds.data.convert.annotations import read_captions
from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.rows import rows

FORMATS = (*CAPTION_FORMATS, "maccap")


def read(way: AnnotationFiles, files: dict[str, Path]) -> Iterator[Entry | Reject]:
    """`blip`, `karpathy`, or `maccap`: [{split, image_name, captions}], whose entries name their split."""
    if way.format != "maccap":
        yield from read_captions(way, files)
        return
    for path in files.values():
        for row in rows(path):
            split, image = row.text("split"), row.text("image_name")
            captions = row.texts("captions")
            if not captions:
                yield Reject(split, image, "the caption list is empty")
            for caption in captions:
                yield Entry(split, image, "captions", caption)


def candidates(name: str) -> list[str]:
    """Where the image may be under an image folder, best first. Archives differ in the name of their folder."""
    file = PurePosixPath(name).name
    folders = ("flickr30k-images", "flickr30k_images", "Images")
    return [name, file, *(f"{folder}/{file}" for folder in folders)]
