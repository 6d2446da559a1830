"""`aurora-ds shards inspect`: what is in a folder of shards, as numbers, a table and a picture of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.box import SIMPLE_HEAD
from rich.table import Table

from aurora_ds.config import DataConfig
from aurora_ds.data.decode import open_image
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import IMAGE_TYPES, ShardReader
from aurora_ds.data.remote import open_shards
from aurora_ds.errors import AuroraError

# Records read per split for word and size statistics; the manifest has the exact counts.
RECORDS_READ = 500
SHEET_COLUMNS, SHEET_ROWS = 4, 3
CELL_WIDTH, PICTURE_HEIGHT, CAPTION_LINES, FONT_SIZE, MARGIN = 280, 210, 5, 13, 10


def inspect_shards(folder: str | Path, contact_sheet: str | Path | None = None) -> dict[str, Any]:
    """Counts of a folder or URL of shards; with `contact_sheet`, also writes a picture of its samples there.

    Word and size figures are of up to RECORDS_READ samples spread evenly over each split. Raises AuroraError for a
    folder without a readable manifest or shards.
    """
    manifest = open_shards(folder)
    reader = ShardReader(manifest)
    summary = {
        "dataset": manifest.dataset,
        "licence": manifest.licence,
        "splits": {name: _split_summary(manifest, reader, name) for name in manifest.splits},
    }
    if contact_sheet is not None:
        path = Path(contact_sheet)
        if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
            raise AuroraError(f"The contact sheet {path} must be a picture: name it FILE.png.")
        sheet = draw_contact_sheet(manifest, reader)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(path)
        except OSError as error:
            raise AuroraError(
                f"The contact sheet {path} cannot be written: {error.strerror or error}."
            ) from error
        summary["contact_sheet"] = str(path)
    reader.close()
    return summary


def summary_table(summary: dict[str, Any]) -> Table:
    """What inspect_shards returned, one row per split."""
    title = f"{summary['dataset']}  ({summary['licence']})"
    # Eight columns fit a terminal of 80 characters only without frames.
    table = Table(title=title, title_justify="left", title_style="", box=SIMPLE_HEAD, collapse_padding=True)
    for heading in ("split", "images", "captions", "per image", "words", "pixels", "shards", "MB"):
        table.add_column(heading, justify="left" if heading == "split" else "right", no_wrap=True)
    for name, split in summary["splits"].items():
        table.add_row(
            name,
            f"{split['samples']:,}",
            f"{split['pairs']:,}",
            _span(split["captions_per_sample"]),
            _span(split["words_per_caption"]),
            "x".join(map(str, split["median_pixels"])),
            f"{split['shards']:,}",
            f"{split['bytes'] / 1e6:,.1f}",
        )
    return table


def draw_contact_sheet(manifest: Manifest, reader: ShardReader) -> Image.Image:
    """Up to 12 images spread over all splits, each with its key and captions."""
    places = [(name, medium) for name, split in manifest.splits.items() for medium in range(split.samples)]
    chosen = [places[n] for n in _spread(len(places), SHEET_COLUMNS * SHEET_ROWS)]
    columns = min(SHEET_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    line = FONT_SIZE + 3
    cell = (CELL_WIDTH + MARGIN, PICTURE_HEIGHT + line * (CAPTION_LINES + 1) + MARGIN)
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for number, (split, medium) in enumerate(chosen):
        sample = reader.read(split, medium)
        left, top = MARGIN + number % columns * cell[0], MARGIN + number // columns * cell[1]
        if sample.parts[0].extension in IMAGE_TYPES:
            picture = open_image(sample.parts[0].content, DataConfig().max_pixels, sample.key)
            picture.thumbnail((CELL_WIDTH, PICTURE_HEIGHT))
            sheet.paste(
                picture, (left + (CELL_WIDTH - picture.width) // 2, top + PICTURE_HEIGHT - picture.height)
            )
        top += PICTURE_HEIGHT + 2
        draw.text((left, top), _fit(sample.key, font), fill=(120, 120, 120), font=font)
        captions = [f"· {' '.join(caption.split())}" for caption in sample.record.get("captions", [])]
        for text in _wrap(captions, font, CAPTION_LINES):
            top += line
            draw.text((left, top), text, fill="black", font=font)
    return sheet


def _split_summary(manifest: Manifest, reader: ShardReader, name: str) -> dict[str, Any]:
    split = manifest.split(name)
    counts = manifest.annotation_counts(name, "captions").tolist()
    words, sizes = [], []
    for medium in _spread(split.samples, RECORDS_READ):
        _, record = reader.record(name, medium)
        words += [len(caption.split()) for caption in record.get("captions", [])]
        if "width" in record:
            sizes.append((record["width"], record["height"]))
    return {
        "samples": split.samples,
        "pairs": split.pairs,
        "shards": len(split.shards),
        "bytes": sum(shard.bytes for shard in split.shards),
        "captions_per_sample": _range(counts),
        "words_per_caption": _range(words),
        "median_pixels": [int(side) for side in np.median(sizes, axis=0)] if sizes else [],
    }


def _spread(total: int, most: int) -> list[int]:
    """Up to `most` of 0 … total - 1, evenly spread."""
    return sorted({int(place) for place in np.linspace(0, total - 1, min(total, most))}) if total else []


def _range(numbers: list[int]) -> list[float]:
    """[least, mean, most]"""
    return [min(numbers), round(float(np.mean(numbers)), 2), max(numbers)] if numbers else []


def _span(values: list[float]) -> str:
    return f"{values[0]}–{values[2]}, ⌀ {values[1]:g}" if values else "none"


def _fit(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text, cut with … to the width of a cell."""
    if font.getlength(text) <= CELL_WIDTH:
        return text
    while text and font.getlength(text + "…") > CELL_WIDTH:
        text = text[:-1]
    return text.rstrip() + "…"


def _wrap(captions: list[str], font: ImageFont.FreeTypeFont, most: int) -> list[str]:
    """Captions in lines that fit a cell, at most `most` lines; … where something is left out."""
    lines: list[str] = []
    for caption in captions:
        current = ""
        for word in caption.split(" "):
            if current and font.getlength(f"{current} {word}") > CELL_WIDTH:
                lines.append(current)
                current = f"  {word}"
            else:
                current = f"{current} {word}" if current else word
        lines.append(current)
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1] + " …"]
    return [_fit(text, font) for text in lines]
