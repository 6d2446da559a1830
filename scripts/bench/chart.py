"""Bar charts as PNG, drawn with Pillow: a row per measurement, a line at each bar that is to be held."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_INK, _FAINT, _OURS, _OTHERS, _LIMIT = "#222222", "#dddddd", "#2a6fbb", "#9aa5b1", "#c0392b"
_WIDTH, _ROW, _LEFT, _TOP = 900, 26, 330, 54


@dataclass(frozen=True)
class Bar:
    """One row: what was measured, its value, whether it is ours, and the value it must not exceed."""

    label: str
    value: float
    ours: bool = False
    limit: float | None = None


def draw(path: Path, title: str, unit: str, bars: list[Bar]) -> None:
    """Write the chart of `bars`, from top to bottom, to `path`."""
    from PIL import Image, ImageDraw, ImageFont

    large, small = ImageFont.load_default(18), ImageFont.load_default(14)
    image = Image.new("RGB", (_WIDTH, _TOP + _ROW * len(bars) + 16), "white")
    canvas = ImageDraw.Draw(image)
    canvas.text((12, 10), title, _INK, large)
    canvas.text((12, 32), unit, "#777777", small)
    most = max([bar.value for bar in bars] + [bar.limit or 0.0 for bar in bars]) or 1.0
    scale = (_WIDTH - _LEFT - 80) / most
    for number, bar in enumerate(bars):
        top = _TOP + number * _ROW
        canvas.text((12, top + 3), bar.label, _INK, small)
        canvas.rectangle((_LEFT, top + 4, _WIDTH - 80, top + _ROW - 5), _FAINT)
        canvas.rectangle(
            (_LEFT, top + 4, _LEFT + max(1.0, bar.value * scale), top + _ROW - 5),
            _OURS if bar.ours else _OTHERS,
        )
        if bar.limit is not None:
            at = _LEFT + bar.limit * scale
            canvas.line((at, top, at, top + _ROW - 1), _LIMIT, 2)
        canvas.text((_WIDTH - 72, top + 3), f"{bar.value:.3g}", _INK, small)
    image.save(path, optimize=True)
