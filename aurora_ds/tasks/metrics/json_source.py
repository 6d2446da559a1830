"""Where results and ground truth come from: a JSON file, or its content that is already in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aurora_ds.errors import AuroraError

Identifier = int | str


def json_content(source: object, layout: str) -> Any:
    """The content of a file where `source` is its path, else `source` itself.

    Raises:
        AuroraError: there is no such file, or no JSON in it. `layout` says what it should hold.
    """
    if not isinstance(source, (str, Path)):
        return source
    try:
        return json.loads(Path(source).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AuroraError(f"{source} cannot be read as JSON: {error}; {layout}.") from error


def origin(source: object, otherwise: str) -> str:
    """How a message names `source`: its path, or `otherwise`."""
    return str(source) if isinstance(source, (str, Path)) else otherwise


def is_identifier(value: object) -> bool:
    """Whether `value` can name an image or a question: an integer or a text."""
    return isinstance(value, (int, str)) and not isinstance(value, bool)
