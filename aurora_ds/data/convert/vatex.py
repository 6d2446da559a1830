"""VATEX (Wang et al. 2019): ten English and ten Chinese captions per clip.

official  a list [{videoID, enCap, chCap}] per split; `options: {captions: chCap}` takes the Chinese ones, and the two
          languages never mix: our text rules and tokenizer are for English. videoID is
          <YouTube id>_<first second, 6 digits>_<last second, 6 digits>.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aurora_ds.data.convert.clips import any_extension, captions, options
from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.rows import rows
from aurora_ds.errors import AuroraError

FORMATS = ("official",)
LANGUAGES = ("enCap", "chCap")
_NAME = re.compile(r"(?P<youtube_id>.+)_(?P<start>\d{6})_(?P<end>\d{6})")

candidates = any_extension


def read(way: AnnotationFiles, files: dict[str, Path]) -> Iterator[Entry | Reject]:
    """Clips and captions in the order of the files. Raises AuroraError for another shape."""
    field = options(way, "vatex", {"captions": LANGUAGES[0]})["captions"]
    if field not in LANGUAGES:
        raise AuroraError(
            f"Option `captions` of a vatex recipe is {field!r}; it may be {' or '.join(LANGUAGES)}."
        )
    for split, path in files.items():
        for row in rows(path):
            name = row.text("videoID")
            yield from captions(row, split, name, row.texts(field), _extra(name))


def _extra(name: str) -> dict[str, Any]:
    """video_id, and where the clip is in its YouTube video, in seconds."""
    parts = _NAME.fullmatch(name)
    if parts is None:
        return {"video_id": name}
    return {
        "video_id": name,
        "youtube_id": parts["youtube_id"],
        "start_time": int(parts["start"]),
        "end_time": int(parts["end"]),
    }
