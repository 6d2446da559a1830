"""`aurora-ds shards inspect`: what is in a folder of shards, as numbers, tables and a picture of samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.contact_sheet import draw_contact_sheet, spread
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import ShardReader
from aurora_ds.data.remote import open_shards
from aurora_ds.errors import AuroraError

# Records read per split for statistics; the manifest has the exact counts.
RECORDS_READ = 500
# By kind of annotation, the field that is text; a caption is text itself.
TEXT_FIELDS = {"questions": "question", "statements": "sentence", "phrases": "phrase", "moments": "caption"}
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def inspect_shards(
    folder: str | Path, contact_sheet: str | Path | None = None, figures: str | Path | None = None
) -> dict[str, Any]:
    """Counts of a folder or URL of shards, also written to `figures` as JSON; `contact_sheet`: a picture of samples.

    Per split: samples, pairs, shards, bytes; per kind of annotation its pairs, how many a medium has and their words;
    media by kind and format, their pixels; seconds, frames and fps of clips. All but the first are of up to
    RECORDS_READ samples spread evenly (`looked_at`); damaged ones are counted by reason (`damaged`). Ranges are
    [least, mean, most]. Raises AuroraError for a folder without a readable manifest.
    """
    manifest = open_shards(folder)
    reader = ShardReader(manifest)
    summary = {
        "dataset": manifest.dataset,
        "licence": manifest.licence,
        "files": sorted(manifest.files),
        "splits": {name: _split_summary(manifest, reader, name) for name in manifest.splits},
    }
    if contact_sheet is not None:
        path = Path(contact_sheet)
        if path.suffix.lower() not in PICTURES:
            raise AuroraError(f"The contact sheet {path} must be a picture: name it FILE.png.")
        _write(path, "contact sheet", draw_contact_sheet(manifest, reader).save)
        summary["contact_sheet"] = str(path)
    if figures is not None:
        text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
        _write(Path(figures), "file of figures", lambda path: path.write_text(text, encoding="utf-8"))
    reader.close()
    return summary


def summary_tables(summary: dict[str, Any]) -> list[Table]:
    """What inspect_shards returned: splits with their media, annotations, and clips where there are any."""
    splits = summary["splits"]
    media = _table(
        f"{summary['dataset']}  ({summary['licence']})", "split", "media", "kind", "format", "pixels"
    )
    for heading in ("shards", "MB"):
        media.add_column(heading, justify="right", no_wrap=True)
    texts = _table("", "split", "annotations", "pairs", "per medium", "words")
    clips = _table("", "split", "seconds", "frames", "fps")
    for name, split in splits.items():
        media.add_row(
            name,
            f"{split['samples']:,}",
            _shares(split["kinds"]),
            _shares(split["formats"]),
            "x".join(map(str, split["median_pixels"])),
            f"{split['shards']:,}",
            f"{split['bytes'] / 1e6:,.1f}",
        )
        for kind, numbers in split["annotations"].items():
            texts.add_row(
                name, kind, f"{numbers['pairs']:,}", _span(numbers["per_medium"]), _span(numbers["words"])
            )
        if split["clips"]:
            clips.add_row(name, *(_span(split["clips"][each]) for each in ("seconds", "frames", "fps")))
    damaged = _table("", "split", "damaged", "reasons")
    for name, split in splits.items():
        if split["damaged"]:
            count = f"{sum(split['damaged'].values())} of {split['looked_at']} looked at"
            damaged.add_row(name, count, _counts(split["damaged"]))
    return [media, *(table for table in (texts, clips, damaged) if table.row_count)]


def texts_of(kind: str, record: dict[str, Any]) -> list[str]:
    """The text of each annotation of a kind."""
    field = TEXT_FIELDS.get(kind)
    listed = record.get(kind, [])
    return [str(each) if field is None else str(each.get(field, "")) for each in listed]


def _split_summary(manifest: Manifest, reader: ShardReader, name: str) -> dict[str, Any]:
    split = manifest.split(name)
    damaged: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    words: dict[str, list[int]] = {kind: [] for kind in manifest.kinds(name)}
    sizes: list[tuple[int, int]] = []
    clips: dict[str, list[float]] = {"seconds": [], "frames": [], "fps": []}
    chosen = spread(split.samples, RECORDS_READ)
    for medium in chosen:
        try:
            _, record = reader.record(name, medium)
            extensions = reader.extensions(name, medium)
        except BadSample as error:
            damaged[error.reason] += 1
            continue
        kinds[record.get("kind", "image")] += 1
        formats.update(extensions)
        for kind, numbers in words.items():
            numbers += [len(text.split()) for text in texts_of(kind, record)]
        sizes += record.get("sizes") or ([(record["width"], record["height"])] if "width" in record else [])
        clip = {**record, **record.get("source", {})}
        for each, values in clips.items():
            values += [clip[each]] if each in clip else []
    return {
        "samples": split.samples,
        "pairs": split.pairs,
        "shards": len(split.shards),
        "bytes": sum(shard.bytes for shard in split.shards),
        "looked_at": len(chosen),
        "damaged": dict(damaged),
        "kinds": dict(kinds.most_common()),
        "formats": dict(formats.most_common()),
        "median_pixels": [int(side) for side in np.median(sizes, axis=0)] if sizes else [],
        "annotations": {
            kind: {
                "pairs": manifest.pairs(name, kind),
                "per_medium": _range(manifest.annotation_counts(name, kind)),
                "words": _range(words[kind]),
            }
            for kind in manifest.kinds(name)
        },
        "clips": {each: _range(values) for each, values in clips.items()} if clips["seconds"] else {},
    }


def _write(path: Path, what: str, write: Callable[[Path], object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except OSError as error:
        raise AuroraError(f"The {what} {path} cannot be written: {error.strerror or error}.") from error


def _range(numbers: Any) -> list[float]:
    """[least, mean, most]"""
    if not len(numbers):
        return []
    least, mean, most = (round(float(value), 2) for value in (min(numbers), np.mean(numbers), max(numbers)))
    return [int(least) if least == int(least) else least, mean, int(most) if most == int(most) else most]


def _table(title: str, *headings: str) -> Table:
    # All columns fit a terminal of 80 characters only without frames.
    table = Table(title=title, title_justify="left", title_style="", box=SIMPLE_HEAD, collapse_padding=True)
    for heading in headings:
        left = heading in ("split", "annotations", "kind", "format", "reasons", "damaged")
        table.add_column(
            heading, justify="left" if left else "right", no_wrap=heading not in ("format", "reasons")
        )
    return table


def _span(values: list[float]) -> str:
    if not values:
        return "none"
    least, mean, most = (f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}" for value in values)
    return least if least == most else f"{least}–{most}, ⌀ {mean}"


def _shares(counts: dict[str, int]) -> str:
    """One name alone, or several with their shares."""
    total = sum(counts.values())
    if len(counts) < 2:
        return "".join(counts)
    return ", ".join(f"{name} {100 * count / total:.2g} %" for name, count in counts.items())


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
