"""MSR-VTT (Xu et al. 2016): 10,000 clips, 20 captions each. Annotations name clips as video7010.

official  train_val_videodatainfo.json and test_videodatainfo.json; each video names its split
csv       a CSV of clip names per split (7k, 9k), captions from the official JSON; with a `sentence` column
          (JSFUSION's 1k-A test list) the row's own caption and no other
jsonl     the clip lists of ClipBERT and BLIP
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aurora_ds.data.convert.clips import any_extension, clip_lines, options, require_one_split, table
from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.rows import Row, rows

FORMATS = ("official", "csv", "jsonl")
CAPTION_FILES = "captions"  # beside a CSV, files whose key begins so are official JSON
# key in a video of the official JSON -> field of our record; times are seconds of the video at `url`
_FIELDS = {"category": "category", "url": "url", "start time": "start_time", "end time": "end_time"}
_Caption = tuple[str, Any]  # (caption, sen_id)

candidates = any_extension


def read(way: AnnotationFiles, files: dict[str, Path]) -> Iterator[Entry | Reject]:
    """Clips in the order of their list; captions in the order of the JSON. Raises AuroraError for another shape."""
    options(way, "msrvtt", {})
    if way.format == "jsonl":
        for split, path in files.items():
            yield from clip_lines(path, split)
    elif way.format == "official":
        yield from _official(way, files)
    else:
        yield from _lists(files)


def _official(way: AnnotationFiles, files: dict[str, Path]) -> Iterator[Entry | Reject]:
    ours = {theirs: name for name, names in way.splits.items() for theirs in names}
    for path in files.values():
        videos = _videos(path)
        captions = _captions(path, videos)
        for name, video in videos.items():
            split = video.text("split")
            if split not in ours:
                raise video.wrong("split", f"one of {', '.join(ours)}")
            yield from _entries(ours[split], name, captions.get(name), _extra(name, video), path.name)


def _lists(files: dict[str, Path]) -> Iterator[Entry | Reject]:
    videos: dict[str, Row] = {}
    captions: dict[str, list[_Caption]] = {}
    sources = [path for key, path in files.items() if key.startswith(CAPTION_FILES)]
    for path in sources:
        own = _videos(path)
        captions |= _captions(path, own)
        videos |= own
    where = " or ".join(path.name for path in sources)
    lists = {split: path for split, path in files.items() if not split.startswith(CAPTION_FILES)}
    listed = {split: list(table(path, ("video_id",))) for split, path in lists.items()}
    require_one_split(
        {split: (path, [row.text("video_id") for row in listed[split]]) for split, path in lists.items()}
    )
    for split, own_rows in listed.items():
        for row in own_rows:
            name = row.text("video_id")
            extra = _extra(name, videos.get(name))
            if "sentence" in row:
                identity = row.content.get("key")
                yield Entry(
                    split, name, "captions", row.words("sentence"), annotation_id=identity, extra=extra
                )
            else:
                yield from _entries(split, name, captions.get(name), extra, where)


def _entries(
    split: str, name: str, captions: list[_Caption] | None, extra: dict[str, Any], where: str
) -> Iterator[Entry | Reject]:
    if not captions:
        yield Reject(split, name, f"{where} has no caption of it")
    for caption, identity in captions or ():
        yield Entry(split, name, "captions", caption, annotation_id=identity, extra=extra)


def _videos(path: Path) -> dict[str, Row]:
    """video_id -> its entry in the official JSON."""
    return {video.text("video_id"): video for video in rows(path, "videos.item")}


def _captions(path: Path, videos: dict[str, Row]) -> dict[str, list[_Caption]]:
    """video_id -> (caption, sen_id)… The whole dataset's 200,000 take about 50 MB."""
    found: dict[str, list[_Caption]] = {}
    for sentence in rows(path, "sentences.item"):
        name = sentence.text("video_id")
        if name not in videos:
            raise sentence.wrong("video_id", "one of `videos`")
        found.setdefault(name, []).append((sentence.words("caption"), sentence.content.get("sen_id")))
    return found


def _extra(name: str, video: Row | None) -> dict[str, Any]:
    known = {} if video is None else video.content
    return {"video_id": name} | {ours: known[theirs] for theirs, ours in _FIELDS.items() if theirs in known}
