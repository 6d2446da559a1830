"""SNLI-VE: Flickr30k photos with hypotheses, from the official JSON lines or ALBEF's and mPLUG's lists.

Where the annotators found no majority the gold label is `-`: such a hypothesis has no label to learn and is rejected,
as SNLI's authors advise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aurora_ds.data.convert import flickr30k
from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.rows import Row, line_rows, rows

FORMATS = ("official", "albef")
LABELS = ("entailment", "neutral", "contradiction")

candidates = flickr30k.candidates


def read(way: AnnotationFiles, files: dict[str, Path]) -> Iterator[Entry | Reject]:
    """A file per split. `official`: JSON lines; `albef`: [{image, sentence, label}], `image` with or without .jpg."""
    for split, path in files.items():
        for row in line_rows(path) if way.format == "official" else rows(path):
            yield _official(split, row) if way.format == "official" else _listed(split, row)


def _official(split: str, row: Row) -> Entry | Reject:
    image = f"{row.identity('Flickr30K_ID')}.jpg"
    identifier = row.text("pairID")
    if row.content.get("gold_label") == "-":
        return Reject(split, image, f"pair {identifier} has no gold label: the annotators did not agree")
    statement = {
        "sentence": row.words("sentence2"),
        "label": _label(row, "gold_label"),
        "identifier": identifier,
    }
    return Entry(split, image, "statements", statement)


def _listed(split: str, row: Row) -> Entry:
    image = str(row.identity("image"))
    image = image if image.endswith(".jpg") else f"{image}.jpg"
    return Entry(
        split, image, "statements", {"sentence": row.words("sentence"), "label": _label(row, "label")}
    )


def _label(row: Row, name: str) -> str:
    label = row.text(name)
    if label not in LABELS:
        raise row.wrong(name, f"one of {', '.join(LABELS)}")
    return label
