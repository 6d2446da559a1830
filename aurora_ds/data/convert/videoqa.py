"""MSRVTT-QA and MSVD-QA (Xu et al. 2017): questions about clips, each with one answer.

original  a list [{answer, id, question, video_id, category_id}] per split; video_id is a number
csv       the same as a table: video,question,answer,qid and, for MSRVTT-QA, type (the clip's category)
jsonl     lines {video_id, question, answer, answer_type}, as ClipBERT, ALPRO and mPLUG have them; video_id names the
          clip's file, and a question's number is that of its line, from 0, as those codes count

`options: {name: "video{}"}` turns a number into the name of the clip's file. Beside the splits `files` may have a
`mapping` with lines "CLIP vidNUMBER" (youtube_mapping.txt): then the file may be named by either.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aurora_ds.data.convert.clips import any_extension, options, table, text_lines
from aurora_ds.data.convert.entries import Entry
from aurora_ds.data.convert.json_stream import shape
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.rows import Row, line_rows, rows
from aurora_ds.errors import AuroraError

FORMATS = ("original", "csv", "jsonl")
QUESTION_TYPES = ("what", "who", "how", "when", "where")
MAPPING_FILE = "mapping"
_EITHER = "="  # vid1=-4wsuPCjDBc_5_15: a clip with two names


def candidates(name: str) -> list[str]:
    """Where the clip may be: by its YouTube name where it is known, by its number, with any extension."""
    number, _, clip = name.partition(_EITHER)
    return [*(any_extension(clip) if clip else ()), *any_extension(number)]


def read(way: AnnotationFiles, files: dict[str, Path]) -> Iterator[Entry]:
    """Questions in the order of the files. Raises AuroraError for another shape."""
    pattern = options(way, "videoqa", {"name": "{}"})["name"]
    if not isinstance(pattern, str) or pattern.count("{}") != 1:
        raise AuroraError(
            f"Option `name` of a videoqa recipe is {pattern!r}; it must be text with one {{}}, such as video{{}}."
        )
    clips = _mapping(files[MAPPING_FILE]) if MAPPING_FILE in files else {}
    reader = {"original": _original, "csv": _csv, "jsonl": _jsonl}[way.format]
    for split, path in files.items():
        if split == MAPPING_FILE:
            continue
        for video, category, question in reader(path):
            name = pattern.replace("{}", str(video)) if isinstance(video, int) else video
            extra = {"video_id": video} | ({} if category is None else {"category": category})
            if name in clips:
                extra["clip_id"] = clips[name]
                name = f"{name}{_EITHER}{clips[name]}"
            yield Entry(split, name, "questions", question, extra=extra)


_Asked = tuple[int | str, int | None, dict[str, Any]]  # (video, category, question)


def _original(path: Path) -> Iterator[_Asked]:
    for row in rows(path):
        category = row.number("category_id") if "category_id" in row else None
        yield row.number("video_id"), category, _question(row, row.number("id"))


def _csv(path: Path) -> Iterator[_Asked]:
    for row in table(path, ("video", "question", "answer", "qid")):
        category = _integer(row, "type") if "type" in row else None
        yield _integer(row, "video"), category, _question(row, _integer(row, "qid"))


def _jsonl(path: Path) -> Iterator[_Asked]:
    for place, row in enumerate(line_rows(path)):
        yield row.text("video_id"), None, _question(row, place)


def _question(row: Row, identity: int) -> dict[str, Any]:
    """The question as a record has it. Its type is the data's own, else its first word when that is one."""
    text = row.words("question")
    kind = row.text("answer_type") if "answer_type" in row else text.lower().partition(" ")[0]
    answer = row.words("answer").strip() if "answer" in row else ""
    return {
        "question": text,
        "question_id": identity,
        "answers": [{"answer": answer, "weight": 1.0}] if answer else [],
    } | ({"question_type": kind} if kind in QUESTION_TYPES else {})


def _integer(row: Row, field: str) -> int:
    try:
        return int(row.text(field))
    except ValueError:
        raise row.wrong(field, "a whole number") from None


def _mapping(path: Path) -> dict[str, str]:
    """vid1 -> the clip's YouTube name."""
    found: dict[str, str] = {}
    for number, line in text_lines(path):
        parts = line.split()
        if len(parts) != 2:
            raise shape(path, f"line {number} with {len(parts)} words", "`CLIP vidNUMBER`")
        found[parts[1]] = parts[0]
    return found
