"""What the converters' tests share: the excerpts, drawn photos under the names that these use, records read back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from drawn_data import draw

from aurora_ds.data.convert import load_recipe
from aurora_ds.data.convert.entries import Entry, Reject
from aurora_ds.data.convert.sources import FAMILIES
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import ShardReader

ANNOTATIONS = Path(__file__).parent / "annotations"


def write_json(path: Path, content: Any) -> None:
    """A JSON file, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """A JSONL file, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def draw_all(folder: Path, names: Iterable[str], size: tuple[int, int] = (40, 32)) -> None:
    """A different small picture under every name."""
    for number, name in enumerate(sorted(set(names))):
        draw(folder / name, number, size)


def entries_of(recipe_name: str, form: str, folder: Path, **files: str) -> list[Entry | Reject]:
    """What the recipe's family reads from `files` (key -> name in `folder`) in its format `form`."""
    recipe = load_recipe(recipe_name)
    way = next(way for way in recipe.annotations if way.format == form)
    return list(FAMILIES[recipe.family].read(way, {key: folder / name for key, name in files.items()}))


def of_kind(entries: list[Entry | Reject]) -> tuple[list[Entry], list[Reject]]:
    """Entries and rejects apart."""
    return (
        [each for each in entries if isinstance(each, Entry)],
        [each for each in entries if isinstance(each, Reject)],
    )


def read_back(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Records of every split, in order."""
    manifest = Manifest.load(folder)
    reader = ShardReader(manifest)
    return {
        split: [reader.record(split, medium)[1] for medium in range(manifest.media(split))]
        for split in manifest.splits
    }
