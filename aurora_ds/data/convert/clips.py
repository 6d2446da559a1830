"""What the video families share: CSV rows, lists of names, clip lists as JSON lines, and where a clip's file may be."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.json_stream import shape
from aurora_ds.data.convert.recipe import AnnotationFiles
from aurora_ds.data.convert.rows import Row, line_rows
from aurora_ds.errors import AuroraError


def any_extension(name: str) -> list[str]:
    """Where the clip of a name without extension may be: named exactly so, else with any extension of a video."""
    return [name, f"{name}.*"]


def options(way: AnnotationFiles, family: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """The recipe's options with defaults. Raises AuroraError for one that the family does not have."""
    unknown = next((name for name in way.options if name not in defaults), None)
    if unknown is not None:
        raise AuroraError(
            f"A recipe of family {family} has no option {unknown!r}; options: {', '.join(defaults) or 'none'}."
        )
    return defaults | way.options


def one_or_more(row: Row, field: str) -> list[str]:
    """A field that must be text or a list of texts. Raises AuroraError naming file, place and field."""
    value = row.content.get(field)
    return [value] if isinstance(value, str) else row.texts(field)


def table(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """The rows of a CSV file whose first line names its columns, `columns` among them; values are texts.

    Raises AuroraError for a file that cannot be read, lacks a column, has no row or one of another length.
    """
    empty = True
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            missing = [name for name in columns if name not in (rows.fieldnames or [])]
            if missing:
                found = ", ".join(rows.fieldnames or []) or "nothing"
                raise shape(path, f"a first line with {found}", f"the columns {', '.join(columns)}")
            for row in rows:
                if None in row or None in row.values():
                    wanted = (
                        f"one per column of {','.join(rows.fieldnames)}; a comma inside a value needs quotes"
                    )
                    raise shape(path, f"line {rows.line_num} with another number of values", wanted)
                empty = False
                yield Row(path, f"line {rows.line_num}", row)
    except OSError as error:
        raise AuroraError(f"Annotation file {path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise AuroraError(
            f"Annotation file {path} is not a CSV file in UTF-8 ({error}). It may be cut, or another file saved in "
            "its place; get it again."
        ) from error
    if empty:
        raise shape(path, "no row", "at least one")


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) of a text file, trimmed, without blank lines. Raises AuroraError as `table`."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.strip()
    except OSError as error:
        raise AuroraError(f"Annotation file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise AuroraError(f"Annotation file {path} is not text in UTF-8 ({error}). Get it again.") from error


def require_one_split(lists: dict[str, tuple[Path, list[str]]]) -> None:
    """{split: (list file, clip names)}. Raises AuroraError for a clip listed twice: splits must not share clips."""
    first: dict[str, Path] = {}
    for path, names in lists.values():
        for name in names:
            if name in first:
                where = "twice" if first[name] == path else f"also in {first[name]}"
                raise AuroraError(f"{path} lists {name} {where}. A clip belongs to one split, once.")
            first[name] = path


def clip_lines(path: Path, split: str) -> Iterator[Entry | Reject]:
    """A clip list of ClipBERT and BLIP: lines {"clip_name": …, "caption": text or texts, "sen_id": …, optional}."""
    for row in line_rows(path):
        name = row.text("clip_name")
        texts = one_or_more(row, "caption")
        yield from captions(row, split, name, texts, {"video_id": name}, row.content.get("sen_id"))


def captions(
    row: Row, split: str, name: str, texts: list[str], extra: dict[str, Any], identity: Any = None
) -> Iterator[Entry | Reject]:
    """An entry per caption of a clip, or a reject when there is none."""
    if not texts:
        yield Reject(split, name, f"{row.place} has an empty caption list")
    for text in texts:
        yield Entry(split, name, "captions", text, annotation_id=identity, extra=extra)


def stem(name: str) -> str:
    """A file name without its folder and extension; a bare dot at its end is an extension too."""
    base = PurePosixPath(name).name
    return base.rpartition(".")[0] or base
