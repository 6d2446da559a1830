"""Entries of an annotation file with checked fields: a wrong one is an error naming file, entry, found and expected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurora_ds.data.convert import json_stream
from aurora_ds.data.convert.json_stream import json_type, shape
from aurora_ds.errors import AuroraError


@dataclass(frozen=True)
class Row:
    """One entry. `place`: where it is in the file, such as "questions[3]" or "line 7"."""

    path: Path
    place: str
    content: dict[str, Any]

    def __contains__(self, name: str) -> bool:
        return self.content.get(name) is not None

    def text(self, name: str) -> str:
        """A text that is not empty. Raises AuroraError for anything else."""
        value = self.content.get(name)
        if not isinstance(value, str) or not value:
            raise self.wrong(name, "a text")
        return value

    def words(self, name: str) -> str:
        """A text, empty or not: a blank one is rejected later, with the rest of its medium kept."""
        value = self.content.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts."""
        value = self.content.get(name)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.wrong(name, "a list of texts")
        return value

    def items(self, name: str) -> list[Any]:
        """A list of anything."""
        value = self.content.get(name)
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        return value

    def identity(self, name: str) -> str | int:
        """A number without fraction, or a text."""
        value = self.content.get(name)
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise self.wrong(name, "a whole number or a text")
        return value

    def number(self, name: str) -> int:
        """A number without fraction."""
        value = self.content.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, "a whole number")
        return value

    def rows(self, name: str) -> list[Row]:
        """The objects of a list."""
        value = self.content.get(name)
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self.wrong(name, "a list of objects")
        return [Row(self.path, f"{self.place}.{name}[{number}]", each) for number, each in enumerate(value)]

    def box(self, name: str) -> list[float]:
        """[x, y, width, height] in pixels."""
        value = self.content.get(name)
        numbers = value if isinstance(value, (list, tuple)) else []
        if len(numbers) != 4 or not all(
            isinstance(each, (int, float)) and not isinstance(each, bool) for each in numbers
        ):
            raise self.wrong(name, "four numbers, [x, y, width, height]")
        return [float(each) for each in numbers]

    def wrong(self, name: str, wanted: str) -> AuroraError:
        """The error for a field that is not `wanted`."""
        if name not in self.content:
            found = f"{self.place} without `{name}` (it has {', '.join(self.content) or 'nothing'})"
        else:
            value = self.content[name]
            found = f"{self.place} with {str(value)[:60]!r} ({json_type(value)}) as `{name}`"
        return shape(self.path, found, f"{wanted} as `{name}`")


def rows(path: Path, prefix: str = "item") -> Iterator[Row]:
    """The objects of the list at `prefix`, streamed. Raises AuroraError for a list that is empty or not there."""
    holder = prefix.removesuffix("item").removesuffix(".")
    number = -1
    for number, content in enumerate(json_stream.items(path, prefix)):
        place = f"{holder}[{number}]" if holder else f"entry {number}"
        yield _row(path, place, content)
    if number < 0:
        what = f"an empty list {holder!r}" if holder else "an empty list"
        raise shape(path, what, "at least one entry")


def line_rows(path: Path) -> Iterator[Row]:
    """The objects of a JSONL file, one a line. Raises AuroraError for a file without any."""
    empty = True
    for number, content in json_stream.lines(path):
        empty = False
        yield _row(path, f"line {number}", content)
    if empty:
        raise shape(path, "no line", "one object per line")


def _row(path: Path, place: str, content: Any) -> Row:
    if not isinstance(content, dict):
        raise shape(path, f"{place} that is a {json_type(content)}", 'an object like {"image": …}')
    return Row(path, place, content)
