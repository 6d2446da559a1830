"""What a dataset family yields from its annotation files: an Entry per annotation, a Reject for what is unusable."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One annotation of one medium of a split, in the order of the annotation file.

    media: the file as the annotation names it, or the files of a group (NLVR2's pairs). kind: which list of the record
    it joins (captions, questions, statements, phrases, moments), with `annotation` as its JSON value; None for a medium
    without one. key: what makes entries the same medium, `media` where it is None. annotation_id: kept beside
    captions as `caption_ids`. extra: further fields of the medium's record.
    """

    split: str
    media: str | tuple[str, ...]
    kind: str | None = None
    annotation: Any = None
    key: str | int | None = None
    annotation_id: str | int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reject:
    """Something that could not be converted: which medium of which split, and why."""

    split: str
    media_id: str
    reason: str
