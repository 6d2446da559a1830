"""A picture of samples for `shards inspect`: images, sets, frames of clips, with their annotations below."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from aurora_ds.config import DataConfig
from aurora_ds.data.bad_sample import BadSample
from aurora_ds.data.clip import sample_clip
from aurora_ds.data.decode import open_image
from aurora_ds.data.manifest import Manifest
from aurora_ds.data.reader import Sample, ShardReader

CELLS = 12
SHEET_WIDTH, PICTURE_HEIGHT, TEXT_LINES, FONT_SIZE, MARGIN, GAP = 1128, 240, 5, 13, 12, 4
COLUMNS, CLIP_COLUMNS = 3, 2  # frames of a clip stand side by side, and need the room
LINE = FONT_SIZE + 4
FRAMES_SHOWN = 3
BOXES_SHOWN = 4
BLACK, GREY, RED = (0, 0, 0), (120, 120, 120), (190, 30, 30)
BOX_COLOURS = ((214, 39, 40), (31, 119, 180), (44, 140, 44), (148, 80, 189))


class Line(NamedTuple):
    """Something said below a picture."""

    text: str
    colour: tuple[int, int, int] = BLACK


class Cell(NamedTuple):
    """A sample as it is shown."""

    title: str
    picture: Image.Image
    lines: list[Line]


def draw_contact_sheet(manifest: Manifest, reader: ShardReader) -> Image.Image:
    """Up to CELLS samples, of all splits, each with its key and annotations; a damaged one with the reason."""
    chosen = _choose({name: split.samples for name, split in manifest.splits.items()})
    columns = CLIP_COLUMNS if any(_is_clip(reader, *place) for place in chosen) else COLUMNS
    width = (SHEET_WIDTH - MARGIN) // columns - MARGIN
    cells = [_cell(reader, *place, width) for place in chosen]
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    heights = [max(cell.picture.height for cell in row) for row in rows]
    below = LINE * (TEXT_LINES + 1) + MARGIN
    size = (
        MARGIN + max(1, min(columns, len(cells))) * (width + MARGIN),
        MARGIN + sum(heights) + len(rows) * below,
    )
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            left = MARGIN + column * (width + MARGIN)
            middle = left + (width - cell.picture.width) // 2
            sheet.paste(cell.picture, (middle, top + height - cell.picture.height))
            lines = [Line(cell.title, GREY), *_wrapped(cell.lines, font, width)]
            for number, (text, colour) in enumerate(lines):
                place = (left, top + height + 2 + number * LINE)
                draw.text(place, _fit(text, font, width), fill=colour, font=font)
        top += height + below
    return sheet


def spread(total: int, most: int) -> list[int]:
    """Up to `most` of 0 … total - 1, evenly spread."""
    return sorted({int(place) for place in np.linspace(0, total - 1, min(total, most))}) if total else []


def _choose(samples: dict[str, int]) -> list[tuple[str, int]]:
    """(split, medium) of the samples to show: as many of each split as there are, up to the sheet's cells."""
    quota = dict.fromkeys(samples, 0)
    for _ in range(CELLS):
        open_splits = [name for name in samples if quota[name] < samples[name]]
        if not open_splits:
            break
        quota[min(open_splits, key=quota.__getitem__)] += 1
    return [(name, medium) for name, most in quota.items() for medium in spread(samples[name], most)]


def _is_clip(reader: ShardReader, split: str, medium: int) -> bool:
    try:
        return reader.record(split, medium)[1].get("kind") in ("video", "frames")
    except BadSample:  # shown as what it is
        return False


def _cell(reader: ShardReader, split: str, medium: int, width: int) -> Cell:
    try:
        sample = reader.read(split, medium)
    except BadSample as error:
        return Cell(f"{split} {medium}", _damaged(error, width), [Line(str(error), RED)])
    try:
        return Cell(sample.key, _picture(sample, width), _told(sample))
    except BadSample as error:
        return Cell(sample.key, _damaged(error, width), [Line(str(error), RED), *_told(sample)])


def _picture(sample: Sample, width: int) -> Image.Image:
    """An image with its boxes, or images or frames side by side, no wider than `width`. Raises BadSample."""
    most = DataConfig().max_pixels
    if sample.kind in ("video", "frames"):
        frames, seconds = sample_clip(sample, FRAMES_SHOWN, "centre", max_pixels=most)
        pictures = [Image.fromarray(frame) for frame in frames]
        return _side_by_side(pictures, [f"{second:.1f} s" for second in seconds], width)
    pictures = [open_image(part.content, most, sample.key) for part in sample.parts]
    if len(pictures) > 1:
        return _side_by_side(pictures, ["" for _ in pictures], width)
    picture = pictures[0]
    stored = picture.size
    picture.thumbnail((width, PICTURE_HEIGHT))
    across, down = picture.width / stored[0], picture.height / stored[1]
    draw = ImageDraw.Draw(picture)
    for phrase, colour in zip(_phrases(sample.record), BOX_COLOURS, strict=False):
        left, top, box_width, box_height = phrase["box"]
        corners = (left * across, top * down, (left + box_width) * across, (top + box_height) * down)
        draw.rectangle(corners, outline=colour, width=2)
    return picture


def _side_by_side(pictures: list[Image.Image], marks: list[str], width: int) -> Image.Image:
    """Pictures in a row, marks in their corners."""
    room = (width - GAP * (len(pictures) - 1)) // len(pictures)
    for picture in pictures:
        picture.thumbnail((max(1, room), PICTURE_HEIGHT))
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    draw, font = ImageDraw.Draw(row), ImageFont.load_default(FONT_SIZE - 2)
    for number, (picture, mark) in enumerate(zip(pictures, marks, strict=True)):
        left, top = number * (room + GAP), row.height - picture.height
        row.paste(picture, (left, top))
        if mark:
            draw.text((left + 4, top + 2), mark, fill="white", font=font, stroke_width=2, stroke_fill="black")
    return row


def _damaged(error: BadSample, width: int) -> Image.Image:
    """An empty picture with the reason."""
    picture = Image.new("RGB", (width, PICTURE_HEIGHT // 2), (238, 238, 238))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(2 * FONT_SIZE)
    middle = (picture.width // 2, picture.height // 2)
    draw.text(middle, f"damaged\n{error.reason}", fill=RED, font=font, anchor="mm", align="center")
    return picture


def _told(sample: Sample) -> list[Line]:
    """The annotations in words."""
    record = sample.record
    lines = [Line(f"· {caption}") for caption in record.get("captions", [])]
    # Of a hidden test set there are neither answers nor labels.
    for question in record.get("questions", []):
        answers = sorted(question.get("answers", []), key=lambda answer: -answer["weight"])
        shares = ", ".join(_share(answer) for answer in answers) or "no answer"
        lines.append(Line(f"{question['question']} - {shares}"))
    for statement in record.get("statements", []):
        lines.append(Line(f"[{statement.get('label', 'no label')}] {statement['sentence']}"))
    for phrase, colour in zip(_phrases(record), BOX_COLOURS, strict=False):
        lines.append(Line(f"· {phrase['phrase']}", colour))
    for moment in record.get("moments", []):
        times = ", ".join(f"{first} to {last}" for first, last in moment.get("times", []))
        lines.append(Line(f"· {moment['caption']} (segments {times or 'not told'})"))
    return lines


def _share(answer: dict[str, Any]) -> str:
    return answer["answer"] + (f" {100 * answer['weight']:.0f} %" if answer["weight"] < 1 else "")


def _phrases(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [phrase for phrase in record.get("phrases", []) if phrase.get("box")][:BOXES_SHOWN]


def _wrapped(lines: Iterable[Line], font: ImageFont.FreeTypeFont, width: int) -> list[Line]:
    """Lines broken to `width`, at most TEXT_LINES; … where something is left out."""
    broken: list[Line] = []
    for text, colour in lines:
        current = ""
        for word in text.split():
            if current and font.getlength(f"{current} {word}") > width:
                broken.append(Line(current, colour))
                current = f"   {word}"
            else:
                current = f"{current} {word}" if current else word
        broken.append(Line(current, colour))
    if len(broken) > TEXT_LINES:
        last = broken[TEXT_LINES - 1]
        broken = [*broken[: TEXT_LINES - 1], Line(last.text + " …", last.colour)]
    return broken


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut with … to `width`."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
