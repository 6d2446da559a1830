"""DiDeMo (Hendricks et al. 2017): descriptions of moments in clips of 25 to 30 seconds.

official  a list [{video, description, times, num_segments, annotation_id}] per split, in one of two forms:
          `options: {form: paragraph}`  one caption per clip: its descriptions in the order of the file, joined by a
                                        space (Liu et al. 2019, what retrieval is measured on)
          `options: {form: moments}`    each description with its times: [first, last] of the 5-second segments from 0,
                                        one per annotator, both ends included
jsonl     the clip lists of ClipBERT (paragraphs)

A clip is known by its name without extension: the files name 29 of the 1,065 validation clips with two extensions, some
with a bare dot, and what is downloaded is often NAME.mov.mp4 or has been re-packed to .mp4.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aurora_ds.data.convert.clips import clip_lines, options, stem
from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.rows import rows
from aurora_ds.data.text import pre_caption
from aurora_ds.errors import AuroraError

FORMATS = ("official", "jsonl")
FORMS = ("paragraph", "moments")


def candidates(name: str) -> list[str]:
    """Where the clip may be, best first: as named, as the authors' script saves it, or with any extension."""
    return [name, f"{name}.mp4", f"{stem(name)}.*"]


def read(way: AnnotationFiles, files: dict[str, Path]) -> Iterator[Entry | Reject]:
    """Clips in order of first appearance. Raises AuroraError for another shape."""
    form = options(way, "didemo", {"form": FORMS[0]})["form"]
    if form not in FORMS or (way.format == "jsonl" and form != FORMS[0]):
        allowed = FORMS[0] if way.format == "jsonl" else " or ".join(FORMS)
        raise AuroraError(
            f"Option `form` of a didemo recipe of format {way.format} is {form!r}; it may be {allowed}."
        )
    for split, path in files.items():
        if way.format == "jsonl":
            yield from clip_lines(path, split)
        elif form == "moments":
            yield from _moments(path, split)
        else:
            yield from _paragraphs(path, split)


def _moments(path: Path, split: str) -> Iterator[Entry]:
    names: dict[str, str] = {}
    for row in rows(path):
        clip = stem(row.text("video"))
        times = row.content.get("times")
        if not _are_times(times):
            raise row.wrong("times", "a list of [first segment, last segment]")
        moment = {
            "caption": row.words("description"),
            "times": times,
            "num_segments": row.number("num_segments"),
            "annotation_id": row.identity("annotation_id"),
        }
        media = names.setdefault(clip, row.text("video"))
        yield Entry(split, media, "moments", moment, key=clip, extra={"video_id": clip})


def _paragraphs(path: Path, split: str) -> Iterator[Entry | Reject]:
    names: dict[str, str] = {}
    parts: dict[str, list[str]] = {}
    for row in rows(path):
        clip = stem(row.text("video"))
        names.setdefault(clip, row.text("video"))
        description = row.words("description").strip()
        if pre_caption(description, 1):
            parts.setdefault(clip, []).append(description)
        else:
            reason = f"the description of {row.place} is blank; the clip keeps its other ones"
            yield Reject(split, row.text("video"), reason)
    for clip, media in names.items():
        caption = " ".join(parts.get(clip, ()))
        yield Entry(split, media, "captions", caption, key=clip, extra={"video_id": clip})


def _are_times(times: Any) -> bool:
    return isinstance(times, list) and all(
        isinstance(span, list) and len(span) == 2 and all(type(end) is int and end >= 0 for end in span)
        for span in times
    )
