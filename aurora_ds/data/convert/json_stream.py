"""Annotation files: entries of a large JSON file one at a time, lines of a JSONL file, small files whole.

Every message names the file and what to do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from aurora_ds.errors import AuroraError


def items(path: Path, prefix: str) -> Iterator[Any]:
    """The entries at `prefix`, one at a time: "item" for a list, "images.item" for {"images": [...]}; floats as float.

    Raises AuroraError for a file that cannot be read, is not JSON, or has no list there. An empty list gives nothing.
    """
    import ijson

    found = False
    with _opened(path) as file:
        try:
            for entry in ijson.items(file, prefix, use_float=True):
                found = True
                yield entry
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise _not_json(path, error) from error
    if not found:
        _require_list(path, prefix)


def pairs(path: Path, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of the object at `prefix` ("" for the whole file), one at a time. Raises AuroraError as `items`."""
    import ijson

    found = False
    with _opened(path) as file:
        try:
            for entry in ijson.kvitems(file, prefix, use_float=True):
                found = True
                yield entry
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise _not_json(path, error) from error
    if not found and (prefix, "start_map") not in _events(path):
        raise shape(
            path, _outline(path), f"an object at {prefix!r}" if prefix else 'an object like {"id": …}'
        )


def lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, parsed line) of a JSONL file, blank lines left out. Raises AuroraError naming the line."""
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                raise AuroraError(
                    f"Annotation file {path}, line {number}, is not JSON ({error}). Expected one object per line. The "
                    "file may be cut, or a web page saved in its place; get it again."
                ) from error


def load(path: Path) -> Any:
    """A whole small file. Raises AuroraError when it cannot be read or is not JSON."""
    with _opened(path) as file:
        try:
            return json.load(file)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise _not_json(path, error) from error


def file_sha256(path: Path) -> str:
    """sha256 of a file of any size. Raises AuroraError when it cannot be read."""
    digest = hashlib.sha256()
    with _opened(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def shape(path: Path, found: str, wanted: str) -> AuroraError:
    """The error for a file that is JSON of another shape: `raise shape(path, "entry 3 without `image`", "…")`."""
    return AuroraError(
        f"Annotation file {path} has another shape than expected: found {found}, expected {wanted}."
    )


def json_type(content: Any) -> str:
    """What JSON calls the type of a parsed value."""
    names = {list: "list", dict: "object", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(content), "number")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file; a failing read, now or later, is an AuroraError."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise AuroraError(f"Annotation file {path} cannot be read: {error.strerror or error}.") from error


def _not_json(path: Path, error: Exception) -> AuroraError:
    reason = " ".join(str(error).split())[:200]
    return AuroraError(
        f"Annotation file {path} is not JSON ({reason}). It may be cut, or a web page saved in its place; get it again."
    )


def _require_list(path: Path, prefix: str) -> None:
    """Raises when nothing was found because the list is not there, not because it is empty."""
    holder = prefix.removesuffix("item").removesuffix(".")
    if (holder, "start_array") in _events(path):
        return
    if holder:
        raise shape(path, f"{_outline(path)} without `{holder}`", f'{{"{holder}": [...]}}')
    raise shape(path, _outline(path), "a list like [{…}, {…}]")


def _events(path: Path) -> set[tuple[str, str]]:
    """(prefix, event) of all containers near the top of the file."""
    import ijson

    found: set[tuple[str, str]] = set()
    with _opened(path) as file:
        for prefix, event, _ in ijson.parse(file, use_float=True):
            if event.startswith("start_") and prefix.count(".") < 4:
                found.add((prefix, event))
    return found


def _outline(path: Path) -> str:
    import ijson

    with _opened(path) as file:
        for _, event, value in ijson.parse(file, use_float=True):
            return {"start_array": "a list", "start_map": "an object"}.get(event, f"a {json_type(value)}")
    raise AssertionError("an empty file is not JSON, which the reading before has told")
