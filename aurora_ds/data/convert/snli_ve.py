"""SNLI-VE: Flickr30k photos with hypotheses, from the official JSON lines or ALBEF's and mPLUG's lists; own lists.

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

FORMATS = ("official", "albef", "list")
LABELS = ("entailment", "neutral", "contradiction")

candidates = flickr30k.candidates


def read(way: AnnotationFiles, files: dict[str, Path]) -> Iterator[Entry | Reject]:
    """A file per split. `official`: JSON lines; `albef`: [{image, sentence, label}], `image` with or without .jpg;
    `list`: the same with an `image` path and, if there is one, an `identifier`."""
    one = {"official": _official, "albef": _albef, "list": _listed}[way.format]
    for split, path in files.items():
        for row in line_rows(path) if way.format == "official" else rows(path):
            yield one(split, row)


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


def _albef(split: str, row: Row) -> Entry:
    image = str(row.identity("image"))
    return Entry(split, image if image.endswith(".jpg") else f"{image}.jpg", "statements", _statement(row))


def _listed(split: str, row: Row) -> Entry:
    identifier = {"identifier": row.text("identifier")} if "identifier" in row else {}
    return Entry(split, row.text("image"), "statements", _statement(row) | identifier)


def _statement(row: Row) -> dict[str, str]:
    return {"sentence": row.words("sentence"), "label": _label(row, "label")}


def _label(row: Row, name: str) -> str:
    label = row.text(name)
    if label not in LABELS:
        raise row.wrong(name, f"one of {', '.join(LABELS)}")
    return label
