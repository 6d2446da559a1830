"""The official COCO captions JSON, which nocaps shares.

{images: [{id, file_name}], annotations: [{image_id, id, caption}]}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.rows import rows


def coco_captions(path: Path, split: str, keep: tuple[str, ...] = ()) -> Iterator[Entry | Reject]:
    """An entry per caption, in the order of `annotations`; a reject for an image without one, or one without image.

    keep: fields of an image that go into the record, where it has them. Raises AuroraError for another shape.
    """
    images = {entry.extra["image_id"]: entry for entry in coco_images(path, split, keep)}
    captioned: set[int] = set()
    for row in rows(path, "annotations.item"):
        number, identity = row.number("image_id"), row.identity("id")
        image = images.get(number)
        if image is None:
            yield Reject(
                split, f"image {number}", f"caption {identity} is of an image that is not in `images`"
            )
            continue
        captioned.add(number)
        yield Entry(
            split, image.media, "captions", row.words("caption"), annotation_id=identity, extra=image.extra
        )
    for number, image in images.items():
        if number not in captioned:
            yield Reject(split, str(image.media), "the image has no caption")


def coco_images(path: Path, split: str, keep: tuple[str, ...] = ()) -> Iterator[Entry]:
    """An entry without annotation per image, as for a test set whose captions are not public."""
    for row in rows(path, "images.item"):
        extra: dict[str, Any] = {"image_id": row.number("id")}
        extra |= {name: row.identity(name) for name in keep if name in row}
        yield Entry(split, row.text("file_name"), extra=extra)
