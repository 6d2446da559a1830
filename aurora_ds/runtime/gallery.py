"""A picture of what retrieval found: one row per query with its first answers, each marked right or wrong.

A text query shows pictures in green (right) or red (wrong) frames; a picture query shows its captions in those
colours. Every answer also carries the word, so that the marks can be told apart without colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

RIGHT, WRONG, INK, PAPER, FAINT = (22, 128, 57), (200, 30, 30), (25, 25, 25), (255, 255, 255), (225, 225, 225)
THUMBNAIL, FRAME, GAP, LABEL = 144, 5, 10, 20
TEXT_SIZE, LINE, BETWEEN = 15, 20, 8  # of texts; between one and the next mark


@dataclass(frozen=True)
class Answer:
    """One retrieved item: a picture (uint8, height x width x 3) or a text, and whether it belongs to the query; None
    where that is no question. `label` stands in the place of the word that says so."""

    item: np.ndarray | str
    right: bool | None
    score: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Query:
    """A text or a picture (uint8, height x width x 3) and what was found for it, best first."""

    item: np.ndarray | str
    answers: Sequence[Answer]


def gallery(queries: Sequence[Query], columns: int = 5, ranked: bool = False) -> np.ndarray:
    """Draw the rows. Returns uint8 (3, height, width), as TensorBoard takes it.

    At most `columns` answers are drawn per query; with `ranked` they are numbered. An empty list of queries gives a
    small note that says so.
    """
    font = _font()
    cell = THUMBNAIL + 2 * FRAME + GAP
    left = 2 * THUMBNAIL
    width = GAP + left + GAP + columns * cell
    rows = [_row(query, columns, ranked, left, width, font) for query in queries]
    if not rows:
        note = Image.new("RGB", (width, 3 * LINE), PAPER)
        ImageDraw.Draw(note).text((GAP, LINE), "No queries to show.", INK, font)
        rows = [note]
    page = Image.new("RGB", (width, sum(row.height for row in rows)), PAPER)
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    return np.ascontiguousarray(np.asarray(page).transpose(2, 0, 1))


def _row(
    query: Query, columns: int, ranked: bool, left: int, width: int, font: ImageFont.ImageFont
) -> Image.Image:
    answers = list(query.answers)[:columns]
    lines = [
        _wrap(answer.item, width - left - 5 * GAP, font) if isinstance(answer.item, str) else []
        for answer in answers
    ]  # A caption takes its lines and the line of its mark.
    text_height = sum((1 + len(wrapped)) * LINE + BETWEEN for wrapped in lines if wrapped) + GAP
    height = max(THUMBNAIL + 2 * FRAME + LABEL, text_height) + 2 * GAP
    row = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(row)
    draw.line((0, height - 1, width, height - 1), FAINT)
    if isinstance(query.item, str):
        for number, line in enumerate(_wrap(query.item, left, font)[: (height - 2 * GAP) // LINE]):
            draw.text((GAP, GAP + number * LINE), line, INK, font)
    else:
        row.paste(_thumbnail(query.item), (GAP + (left - THUMBNAIL) // 2, GAP + FRAME))
    x, y = GAP + left + GAP, GAP
    for place, (answer, wrapped) in enumerate(zip(answers, lines, strict=True), start=1):
        colour = INK if answer.right is None else RIGHT if answer.right else WRONG
        score = "" if answer.score is None else f"  {answer.score:.3f}"
        mark = (
            f"{f'{place} ' if ranked else ''}{answer.label or ('right' if answer.right else 'wrong')}{score}"
        )
        if isinstance(answer.item, str):
            draw.rectangle((x, y + 3, x + FRAME, y + (1 + len(wrapped)) * LINE - 4), colour)
            draw.text((x + 2 * GAP, y), mark, colour, font)
            for number, line in enumerate(wrapped, start=1):
                draw.text((x + 2 * GAP, y + number * LINE), line, INK, font)
            y += (1 + len(wrapped)) * LINE + BETWEEN
        else:
            side = THUMBNAIL + 2 * FRAME
            draw.rectangle((x, y, x + side - 1, y + side - 1), colour)
            row.paste(_thumbnail(answer.item), (x + FRAME, y + FRAME))
            draw.text((x, y + side + 1), mark, colour, font)
            x += side + GAP
    return row


def _font() -> ImageFont.ImageFont:
    """DejaVu Sans where the system has it, for captions with accents; Pillow's own font knows plain Latin only."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", TEXT_SIZE - 1)
    except OSError:
        return ImageFont.load_default(TEXT_SIZE)


def _thumbnail(picture: np.ndarray) -> Image.Image:
    """The picture fitted into a square (enlarged when it is small), its proportions kept, on a faint ground."""
    image = Image.fromarray(np.ascontiguousarray(picture)).convert("RGB")
    image = ImageOps.contain(image, (THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (THUMBNAIL, THUMBNAIL), FAINT)
    square.paste(image, ((THUMBNAIL - image.width) // 2, (THUMBNAIL - image.height) // 2))
    return square


def _wrap(text: str, width: int, font: ImageFont.ImageFont) -> list[str]:
    """Lines of whole words no wider than `width` pixels; a longer word is cut, and long texts end in an
    ellipsis.
    """
    lines, line = [], ""
    for word in text.split():
        while font.getlength(word) > width and len(word) > 1:
            fitting = next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines.extend([line, word[:fitting]] if line else [word[:fitting]])
            word, line = word[fitting:], ""
        candidate = f"{line} {word}".strip()
        if font.getlength(candidate) <= width:
            line = candidate
        else:
            lines.append(line)
            line = word
    lines.append(line)
    return lines if len(lines) <= 6 else [*lines[:5], f"{lines[5]} …"]
