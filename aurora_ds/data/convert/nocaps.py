"""nocaps: photos of Open Images with ten captions each for validation, none public for test.

The official JSON has COCO's layout, and each image's `domain` (in-domain, near-domain, out-domain), by which results
are reported; BLIP's lists name images only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from aurora_ds.data.convert.coco_json import coco_captions, coco_images
from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.rows import rows

FORMATS = ("official", "blip")


def read(way: AnnotationFiles, files: dict[str, Path]) -> Iterator[Entry | Reject]:
    """A file per split. `official`: captions, for test the image info alone; `blip`: [{image, img_id}]."""
    for split, path in files.items():
        if way.format == "official":
            reading = coco_images if split == "test" else coco_captions
            yield from reading(path, split, keep=("domain", "open_images_id"))
            continue
        for row in rows(path):
            yield Entry(split, row.text("image"), extra={"image_id": row.number("img_id")})


def candidates(name: str) -> list[str]:
    """Where a photo may be, best first."""
    file = PurePosixPath(name).name
    return [name, file, *(f"{folder}/{file}" for folder in ("val", "validation", "test"))]
