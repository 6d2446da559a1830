"""MSVD (Chen and Dolan 2011), split of Venugopalan et al. (2015). Clips are named <YouTube id>_<first s>_<last s>.

captions      captions_msvd.json {clip: [captions]} and a list of clip names per split
descriptions  AllVideoDescriptions.txt of the official site (lines "clip caption", comments with #), and the lists
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aurora_ds.data.convert import json_stream
from aurora_ds.data.convert.clips import any_extension, one_or_more, options, require_one_split, text_lines
from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.json_stream import shape
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.rows import Row

FORMATS = ("captions", "descriptions")
CAPTION_FILE = "captions"  # key of the file with the captions; every other key of `files` is a split

candidates = any_extension


def read(way: AnnotationFiles, files: dict[str, Path]) -> Iterator[Entry | Reject]:
    """Clips in the order of the lists, captions in that of their file. Raises AuroraError for another shape."""
    options(way, "msvd", {})
    source = files[CAPTION_FILE]
    lists = {split: (path, _names(path)) for split, path in files.items() if split != CAPTION_FILE}
    require_one_split(lists)
    listed = {name for _, names in lists.values() for name in names}
    captions = _from_json(source, listed) if way.format == "captions" else _from_text(source, listed)
    for split, (_, names) in lists.items():
        for name in names:
            if not captions.get(name):
                yield Reject(split, name, f"{source.name} has no caption of it")
            for caption in captions.get(name, ()):
                yield Entry(split, name, "captions", caption, extra={"video_id": name})


def _names(path: Path) -> list[str]:
    names = [line for _, line in text_lines(path)]
    if not names:
        raise shape(path, "no line", "a clip name per line")
    return names


def _from_json(path: Path, listed: set[str]) -> dict[str, list[str]]:
    return {
        name: one_or_more(Row(path, f"clip {name}", {"captions": value}), "captions")
        for name, value in json_stream.pairs(path)
        if name in listed
    }


def _from_text(path: Path, listed: set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for number, line in text_lines(path):
        if line.startswith("#"):
            continue
        name, space, caption = line.partition(" ")
        if not space:
            raise shape(path, f"line {number} without a blank", "`clip caption`")
        if name in listed:
            found.setdefault(name, []).append(caption)
    return found
