"""The phrases of a split, and how good the boxes are that were found for them (RefCOCO; Yu et al. 2016, §5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from aurora_ds.data.phrases import Phrase, checked_phrase, image_size
from aurora_ds.data.placement import Box
from aurora_ds.errors import AuroraError

HIT = 0.5  # overlap from which a box counts as found


@dataclass(frozen=True)
class Pointed:
    """A phrase about medium number `medium`, of sample `key`, whose image has `size` = (width, height) pixels."""

    medium: int
    key: str
    size: tuple[int, int]
    phrase: Phrase


class Found(NamedTuple):
    """A box in pixels of the image, how probable its tokens were, and its overlap with the true one, 0 to 1."""

    box: Box
    probability: float
    overlap: float


def pointed_phrases(records: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Pointed]:
    """The phrases of (key, record) of media 0, 1, … in their order. Raises AuroraError: there are none, or one is not
    as `checked_phrase` and `image_size` want it."""
    found = [
        Pointed(medium, key, size, checked_phrase(entry, key, *size))
        for medium, (key, record) in enumerate(records)
        if record.get("phrases")
        for size in [image_size(record, key)]
        for entry in record["phrases"]
    ]
    if not found:
        raise AuroraError(
            "There are no phrases in what data.eval_split and evaluate.limit choose. `aurora-ds shards inspect DIR` "
            "shows which splits have some."
        )
    return found


def as_json(box: Box) -> dict[str, float]:
    """A box in pixels as predictions and files tell it."""
    left, top, right, bottom = box
    sides = {"left": left, "top": top, "width": right - left, "height": bottom - top}
    return {name: round(each, 2) for name, each in sides.items()}


def judged(found: Sequence[Found]) -> dict[str, float]:
    """`accuracy`: percent of the boxes that overlap with the true one by half or more; `mean_overlap` in percent."""
    overlaps = [each.overlap for each in found]
    return {
        "accuracy": 100 * sum(each >= HIT for each in overlaps) / len(overlaps),
        "mean_overlap": 100 * sum(overlaps) / len(overlaps),
    }
