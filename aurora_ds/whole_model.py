"""The files of a whole model that training or export left: its weights, and beside them what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FULL_FILE = "backbone.safetensors"
RECORD_FILE = "record.json"  # beside it: where it comes from


def record_beside(checkpoint: str | Path | None) -> dict[str, Any] | None:
    """What the record in a folder, or in the folder of a file, says; None where there is none of ours."""
    place = Path(checkpoint or "").expanduser()
    path = (place if place.is_dir() else place.parent) / RECORD_FILE
    if not checkpoint or not place.exists() or not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # a file of that name that is none of ours
        return None
    ours = isinstance(record, dict) and str(record.get("format")).startswith("aurora_ds.")
    return record if ours else None
