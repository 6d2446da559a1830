"""NLVR2: pairs of photographs with sentences that are true or false of both: official JSON lines, or BLIP's lists.

Official identifiers are split-set-pair-sentence; the pair's photos are split-set-pair-img0.png (left) and -img1.png
(right), whose content is often JPEG in spite of the name. Training photos are in folders that `directory` names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.rows import Row, line_rows, rows

FORMATS = ("official", "blip")
LABELS = ("True", "False")
_IDENTIFIER = re.compile(r"(\w+)-\d+-\d+-\d+")


def read(way: AnnotationFiles, files: dict[str, Path]) -> Iterator[Entry | Reject]:
    """A file per split: `official` JSON lines, `blip` a list."""
    for split, path in files.items():
        for row in line_rows(path) if way.format == "official" else rows(path):
            pair = _official_pair(row) if way.format == "official" else _listed_pair(row)
            label = row.text("label")
            if label not in LABELS:
                raise row.wrong("label", "True or False")
            statement = {"sentence": row.words("sentence"), "label": label}
            if "identifier" in row:
                statement["identifier"] = row.text("identifier")
            yield Entry(split, pair, "statements", statement)


def candidates(name: str) -> list[str]:
    """Where a photo may be, best first: images/train/3/… and dev/… as unpacked, or with fewer upper folders."""
    parts = PurePosixPath(name).parts
    ends = [str(PurePosixPath(*parts[start:])) for start in range(len(parts))]
    return [name, *(path for end in ends for path in (end, f"images/{end}"))]


def _official_pair(row: Row) -> tuple[str, str]:
    identifier = row.text("identifier")
    fits = _IDENTIFIER.fullmatch(identifier)
    if not fits:
        raise row.wrong("identifier", "split-set-pair-sentence, such as dev-850-0-0,")
    part = fits[1]
    folder = f"images/train/{row.number('directory')}" if part == "train" else part
    pair = identifier.rpartition("-")[0]
    return f"{folder}/{pair}-img0.png", f"{folder}/{pair}-img1.png"


def _listed_pair(row: Row) -> tuple[str, str]:
    images = row.texts("images")
    if len(images) != 2 or not all(images):
        raise row.wrong("images", "two image paths")
    return images[0], images[1]
